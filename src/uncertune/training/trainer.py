"""``UncertuneTrainer``: TRL's ``SFTTrainer`` with eq. 1 as its loss.

Data, templates, packing and ``-100`` labels are TRL's. Here: which tokens of a step are selected, the targets of each,
the fused loss inside the model's forward (so that DDP and FSDP hooks fire), and one division by the step's own count.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from uncertune.errors import NotFiniteError, UserError
from uncertune.fused import (
    Scored,
    TokenStats,
    linear_token_stats,
    linear_top_k,
    linear_weighted_nll,
    linear_weighted_nll_with_stats,
    score_tokens,
)
from uncertune.models import OutputHead, attach_head, head_shape, resolve_model, verify_head
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Targets, TeacherLike
from uncertune.teachers.adapter import ModelTeacher, Teacher, frozen_rows, load_teacher
from uncertune.training import checkpoints, dataset, devices, hub, policy
from uncertune.training.batch import (
    ROW_LENGTHS,
    SELECTED,
    SIDE_COLUMNS,
    Documents,
    SideColumnCollator,
    Tokens,
    document_hashes,
    document_rows,
    documents,
    mask_repeats,
    response_mask,
)
from uncertune.training.caching import CachedHidden, open_caches
from uncertune.training.card import CARD, model_card
from uncertune.training.columns import check_vocabulary
from uncertune.training.config import UncertuneConfig
from uncertune.training.kept import keep_selected, skipped
from uncertune.training.runlog import METRICS, RunLog, read_metrics
from uncertune.training.running import RunningThreshold
from uncertune.training.step import Chosen, Rule, StepRecord, choose, has_dropout, sum_over_ranks
from uncertune.uncertainty import mc_dropout, token_uncertainty

_NOT_THE_MODELS = ("labels", SELECTED, ROW_LENGTHS, *SIDE_COLUMNS)


class UncertuneTrainer(SFTTrainer):
    """Fine-tune a causal language model with any objective of ``uncertune.objectives``.

    Takes what TRL's ``SFTTrainer`` takes, and ``teacher``: a path or hub id (of an adapter or a model), or a model;
    given here it stands for the field of the same name of ``UncertuneConfig``.

    The loss is ``Σ_t ℓ_t / N`` with N all response tokens of the optimizer step (over micro-batches and ranks), so
    how a step is cut changes nothing; ``normalize_by="selected"`` divides by the selected ones. ``eval_loss`` is plain
    cross-entropy over response tokens whatever the objective; the objective's own value is ``eval_objective``.

    Raises UserError at construction for what it does not support.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "uncertune"]
    args: UncertuneConfig
    data_collator: Any

    def __init__(
        self,
        model: Any,
        args: UncertuneConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        teacher: str | os.PathLike[str] | nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        args = UncertuneConfig() if args is None else args
        if not isinstance(args, UncertuneConfig):
            raise UserError(f"args must be an UncertuneConfig, got {type(args).__name__}")
        self._refuse(model, kwargs)
        reference: Any = os.fspath(teacher) if isinstance(teacher, os.PathLike) else teacher
        reference = self._teacher_of(args, reference)
        args = dataset.resolve_assistant_only_loss(args, train_dataset)
        if isinstance(model, str | os.PathLike):
            model = resolve_model(os.fspath(model))
        kwargs |= {"data_collator": data_collator, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
        with dataset.known_templates(), dataset.refusals():
            dataset.check_prepared(args, train_dataset)
            super().__init__(model, args, **kwargs)
        if self._is_vlm or getattr(self.model.config, "vision_config", None) is not None:
            name = f"model: {self.model.config.model_type}"
            name = f"processing_class: {type(self.processing_class).__name__}" if self._is_vlm else name
            raise UserError(f"{name} is vision-language, which is not supported: give a text model and its tokenizer")
        devices.check(self.accelerator, self.model, average_tokens=args.average_tokens_across_devices)
        attach_head(self.model)
        verify_head(self.model)
        check_vocabulary(train_dataset, head_shape(self.model)[0])
        self.data_collator = SideColumnCollator(self.data_collator)
        self.model_accepts_loss_kwargs = True  # the loss is divided by our own count, for the whole step at once
        # before a reference brings dropout of its own; NEFTune's noise is another
        self._dropout = has_dropout(self.model) or bool(args.neftune_noise_alpha)
        self.caches = open_caches(self, reference)
        self._load_references(reference)
        self._check_bald()
        self._rule = Rule(args.selection_metric, args.selection_fraction, args.selection_level, args.seed)
        self._running = RunningThreshold(self._rule)
        base = getattr(self.model.config, "_name_or_path", "") or None
        self.card_settings: dict[str, Any] = {"model_name_or_path": base, "teacher": _name_of(reference)}
        self._step: StepRecord | None = None
        self.run_log = RunLog(self)
        self.add_callback(self.run_log)
        self.add_callback(self.caches)

    # ---- construction

    @staticmethod
    def _refuse(model: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("compute_loss_func") is not None:
            raise UserError("compute_loss_func is not supported: the loss is set by the objective")
        for peft_config in (kwargs.get("peft_config"), *getattr(model, "peft_config", {}).values()):
            if getattr(peft_config, "is_prompt_learning", False):
                name = type(peft_config).__name__
                raise UserError(f"peft_config: {name} is prompt learning, which is not supported: use LoraConfig")

    @staticmethod
    def _teacher_of(args: UncertuneConfig, teacher: Any) -> Any:
        """The teacher, from the argument or the configuration, and refused where missing or without effect."""
        if teacher is not None and args.teacher not in (None, "auto"):
            raise UserError(f"teacher is given twice, to the trainer and as args.teacher={args.teacher!r}: keep one")
        teacher = args.teacher if teacher is None else teacher
        if teacher == "auto":
            raise UserError(
                "teacher='auto' trains a reference first, which uncertune.training.pipeline.run and `uncertune train` "
                "do: call them, or give the trainer a path or a model"
            )
        if args.rho_reference == "auto":
            raise UserError(
                "rho_reference='auto' trains a reference first, which uncertune.training.pipeline.run and `uncertune "
                "train` do: call them, or give a path"
            )
        if args.uses_teacher and teacher is None:
            raise UserError(
                f"objective={args.objective!r} needs a teacher: set teacher to 'auto', a folder or a hub id"
            )
        if teacher is not None and not args.uses_teacher and args.rho_reference != "teacher":
            raise UserError(f"teacher has no effect with objective={args.objective!r}: remove it")
        if args.rho_reference == "teacher" and teacher is None:
            raise UserError("rho_reference='teacher' needs a teacher: set teacher to a folder or a hub id")
        return teacher

    def _prepare_dataset(
        self, rows: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """TRL's preparation, with side columns kept along the labels and what is cut or dropped counted."""
        return dataset.prepare(
            super()._prepare_dataset, rows, processing_class, args, packing, formatting_func, dataset_name
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = getattr(self, "_signature_columns", None) or []
        self._signature_columns = list(dict.fromkeys([*columns, *SIDE_COLUMNS]))

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with checkpoints.student_adapter_only(self.model):
            super()._save(output_dir, state_dict)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """``README.md`` of the output folder: objective, selection, teacher, data set and results so far."""
        if self.is_world_process_zero():
            settings = {**self.args.to_dict(), **self.card_settings}
            records = Path(self.args.output_dir) / METRICS
            rows = read_metrics(records) if records.is_file() else []
            text = model_card(settings, rows, adapter=hasattr(self.model, "peft_config"))
            checkpoints.write_atomically(Path(self.args.output_dir) / CARD, text)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer`` does it, but of the output folder only the model: ``uncertune.training.hub``."""
        with hub.model_only():
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with hub.model_only():
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """TRL's checkpoint; it counts as complete from the moment its last file is renamed into place, and only then
        may older ones go."""
        args, step = self.args, self.state.global_step
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            with checkpoints.nothing_half_written(args.output_dir, step):
                self.run_log.flush()
                self.caches.flush()
                super()._save_checkpoint(model, trial)
                if args.should_save and args.selection_scope == "running":
                    self._running.save(checkpoints.folder_of(args.output_dir, step))
                self.accelerator.wait_for_everyone()
                if args.should_save:
                    checkpoints.mark_complete(args.output_dir, step)
        finally:
            args.save_total_limit = limit
        if args.should_save:
            rotate_checkpoints(args.output_dir, limit, self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.selection_scope == "running":
            self._running.load(checkpoint)

    def _check_bald(self) -> None:
        """Refuse metric ``bald`` where dropout cannot be sampled."""
        if not (self.args.uses_selection and self.args.selection_metric == "bald"):
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError("selection_metric='bald' is not supported with FSDP or DeepSpeed: use DDP, or metric loss")
        with mc_dropout(self.model, self.args.bald_rate):
            pass
        self._verify_dropout = True  # at the first batch, which has tokens to try it on

    def _load_references(self, teacher: str | nn.Module | None) -> None:
        """Teacher and holdout reference, unless a cache already holds all that they would say."""
        cached, rho = self.caches.teacher, self.caches.rho
        same = self.args.rho_reference == "teacher"
        asked = (cached is None and self.args.uses_teacher) or (cached is not None and cached.lacks)
        wanted = rho.lacks if rho is not None else self.args.rho_reference is not None
        self.teacher = self._load(teacher, "reference") if asked or (same and wanted) else None
        self.rho_reference = self.teacher if same else None
        if wanted and not same:
            self.rho_reference = self._load(self.args.rho_reference, "rho_reference")
        for one, live in ((cached, self.teacher), (rho, self.rho_reference)):
            if one is not None and one.lacks:
                one.live = live
                one.announce()

    def _release_references(self) -> None:
        """Let go of models whose answers are all on disk now."""
        kept: list[Any] = [one.live for one in self.caches.all if one.live is not None]
        if self.caches.teacher is None and self.args.uses_teacher:
            kept.append(self.teacher)
        if self.caches.rho is None:
            kept.append(self.rho_reference)
        for name in ("teacher", "rho_reference"):
            one = getattr(self, name)
            if one is not None and not any(one is other for other in kept):
                setattr(self, name, None)
                if isinstance(one, ModelTeacher):
                    models = self.accelerator._models
                    models[:] = [model for model in models if model is not one.model]

    def fill_teacher_cache(self) -> None:
        """Compute what the caches lack, and nothing else; training then starts without the teacher.

        Under ``accelerate launch`` the ranks share the work. Raises UserError where nothing is cached, and with FSDP or
        DeepSpeed, which shard the model only when training begins.
        """
        if not self.caches.all:
            raise UserError("there is no cache to fill: set teacher_cache to hidden or topk")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "the teacher cache cannot be filled by itself with FSDP or DeepSpeed: train, which fills it first, or "
                "launch without them"
            )
        self._ready_caches(self.model)

    def _ready_caches(self, model: nn.Module) -> None:
        if self.caches.ready(model):
            self._release_references()

    def _load(self, source: str | nn.Module | None, name: str) -> Teacher | None:
        if source is None:
            return None
        student = self.accelerator.unwrap_model(self.model)
        dtype = next(student.parameters()).dtype
        while name in getattr(student, "peft_config", {}):  # never load over an adapter that is there
            name += "_"
        with torch.random.fork_rng():  # a new adapter draws numbers, which the student's dropout must not notice
            teacher = load_teacher(source, student, name=name, tokenizer=self._tokenizer, dtype=dtype)
        if isinstance(teacher, ModelTeacher):
            teacher = ModelTeacher(devices.prepare_reference(teacher.model, self.accelerator))
        return teacher

    # ---- the optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step, its token count over all ranks and, where needed, its masks."""
        self._ready_caches(self.model_wrapped)
        batches, _ = super().get_batch_samples(self._without_repeats(epoch_iterator), num_batches, device)
        tokens = sum(int(response_mask(batch["labels"]).sum()) for batch in batches)
        tokens = int(sum_over_ranks({"tokens": tokens})["tokens"])
        if self.state.global_step == 0:
            self._running.value = None
        exactly = self.args.selection_scope != "running" or self._running.value is None
        self._step = record = StepRecord(self.state.global_step, tokens, len(batches), exactly)
        record.add(inputs=sum(_input_tokens(batch) for batch in batches))
        if batches and self.args.uses_selection and self._needs_own_pass(record):
            batches = self._select_before(batches, record)
        return batches, torch.tensor(max(tokens, 1), device=device)

    def _without_repeats(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Training batches whose rows that fill up an epoch's last one have no response tokens."""
        ranks, whole = self.accelerator.num_processes, self._train_batch_size
        whole *= 1 if self.args.accelerator_config.split_batches else ranks
        for batch in batches:
            if (
                ranks > 1
                and self.accelerator.gradient_state.end_of_dataloader
                and hasattr(self.train_dataset, "__len__")
            ):
                mask_repeats(batch, self.accelerator.process_index, len(self.train_dataset) % whole or whole)
            yield batch

    @property
    def _everywhere(self) -> bool:
        """Whether all micro-batches of all ranks are ranked together."""
        return self.args.selection_scope != "microbatch"

    def _drops(self, record: StepRecord) -> bool:
        """Whether the documents that are not selected need not be run. The auxiliary loss of a mixture of experts is
        over all tokens, and DeepSpeed counts micro-batches itself."""
        args = self.args
        can = args.selection_level == "document" and args.objective == "masked_mle" and args.selection_fraction < 1
        return can and record.exact and not (self.aux_loss_enabled or self.is_deepspeed_enabled)

    def _needs_own_pass(self, record: StepRecord) -> bool:
        """Whether the masks must be known before the training forward, or can be found in it."""
        if not record.exact:
            return False
        if self._drops(record) and self.args.selection_fraction <= 0.5:
            return True
        alone = self.args.selection_scope == "microbatch" and self.args.normalize_by == "all"
        inside = record.micro_batches == 1 or alone
        return not inside or (self._dropout and self._rule.metric not in ("random", "bald"))

    def _select_before(self, batches: list[Any], record: StepRecord) -> list[Any]:
        """Score all micro-batches with dropout off, select, and store each one's mask in it; or leave out what is not
        selected."""
        scores: list[Tensor | None] = []
        places: list[Documents] = []
        for batch in batches:
            tokens = self._tokens(self._prepare_inputs(batch))
            places.append(tokens.documents)
            scores.append(None if self._rule.metric == "random" else self._scores(tokens, record))
        record.has_stats = self._rule.metric not in ("random", "bald")
        if self._everywhere:
            chosen = [choose(self._rule, record.step, scores, places)]
        else:
            pairs = zip(scores, places, strict=True)
            chosen = [choose(self._rule, record.step, [score], [place], everywhere=False) for score, place in pairs]
        masks = [mask for one in chosen for mask in one.masks]
        self._note(record, chosen, batches, masks)
        for batch, mask in zip(batches, masks, strict=True):
            batch[SELECTED] = mask
        if not self._drops(record):
            return batches
        kept = keep_selected(
            batches,
            masks,
            self.data_collator,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            rows=self._train_batch_size,
            flattened=self.data_collator.flattens,
        )
        if kept is None:
            return batches
        record.micro_batches = sum(not skipped(batch) for batch in kept)
        return kept

    def _note(self, record: StepRecord, chosen: list[Chosen], batches: list[Any], masks: list[Tensor]) -> None:
        """Keep the outcome of selections, and write the masks of this rank's micro-batches to the selection log."""
        record.thresholds += [one.threshold for one in chosen]
        mine = sum(int(mask.sum()) for mask in masks)
        record.add(selected=mine)
        if self.args.normalize_by == "selected":
            everywhere = self._everywhere and record.exact
            record.selected += chosen[0].selected if everywhere else int(sum_over_ranks({"selected": mine})["selected"])
        if self.args.selection_scope == "running" and record.exact:
            self._running.update(chosen[0].threshold)
        if self.args.save_selection:
            for batch, mask in zip(batches, masks, strict=True):
                self.run_log.add_selection(record.step + 1, batch, mask)

    def _scores(self, tokens: Tokens, record: StepRecord) -> Tensor:
        """Scores of one micro-batch from a forward pass of its own, without gradient and with dropout off."""
        beside_T = self._beside(self.model_wrapped, tokens)
        if self._rule.metric == "bald":
            assert beside_T is not None
            return beside_T
        stats = _stats(frozen_rows(self.model_wrapped, tokens.inputs, tokens.mask), tokens.labels)
        _add_stats(record, stats)
        return self._metric(stats, beside_T)

    def _beside(self, model: nn.Module, tokens: Tokens) -> Tensor | None:
        """What the metric needs beside the student's own pass, from passes outside it: for ``rho`` the loss of the
        holdout reference, for ``bald`` the epistemic uncertainty."""
        if not self.args.uses_selection:
            return None
        if self._rule.metric == "bald":
            return self._epistemic(tokens)
        if self._rule.metric != "rho":
            return None
        if self.caches.rho is not None:
            return self.caches.rho.columns(model, tokens)["loss"]
        assert self.rho_reference is not None
        return _stats(self.rho_reference.rows(model, tokens.inputs, tokens.mask), tokens.labels).loss

    def _epistemic(self, tokens: Tokens) -> Tensor:
        """BALD by Monte-Carlo dropout, ``bald_samples`` passes. Each document is scored by itself, so that the numbers
        do not depend on how the step is cut; and without DDP around the model, as ranks differ in their passes."""
        ids, labels, attention_mask = document_rows(tokens)
        found = token_uncertainty(
            self.model,
            ids,
            labels,
            attention_mask=attention_mask,
            samples=self.args.bald_samples,
            rate=self.args.bald_rate,
            seed=self.args.seed,
            verify=self._verify_dropout,
        )
        self._verify_dropout = False
        return found.epistemic

    def _metric(self, stats: TokenStats, beside_T: Tensor | None) -> Tensor:
        match self._rule.metric:
            case "entropy":
                return stats.entropy
            case "loss":
                return stats.loss
        assert beside_T is not None
        return beside_T if self._rule.metric == "bald" else stats.loss - beside_T

    # ---- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Training: the objective's loss of this micro-batch over the tokens of the step. Evaluation: cross-entropy."""
        loss = (self._training_loss if self.model.training else self._evaluation_loss)(model, dict(inputs))
        if not return_outputs:
            return loss
        given = {k: v for k, v in inputs.items() if k not in _NOT_THE_MODELS}
        with torch.no_grad():
            return loss, model(**given)

    def _training_loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        record = self._step
        assert record is not None, "the training loss is part of a step of Trainer.train"
        tokens = self._tokens(batch)
        teacher = self._teacher_rows(model, tokens)
        beside_T = None if SELECTED in batch else self._beside(model, tokens)
        outcome: dict[str, Any] = {}
        exact: list[Tensor] = []

        def head_fn(hidden: Tensor, head: OutputHead, aux_loss: Tensor | None) -> dict[str, Tensor]:
            scored, selected = None, batch.get(SELECTED)
            if self.args.uses_selection and selected is None:
                scored, selected = self._select_inside(hidden, head, tokens, beside_T, record, batch)
            elif policy.has_ratio(tokens):
                scored = score_tokens(hidden, head.weight, tokens.labels, keep=True, **head.options)
            stats = None if scored is None else scored.stats
            reference = self._bound(teacher, head)
            targets = self._targets(tokens, selected, reference, stats)
            options = {**head.options, "factor": self.accelerator.num_processes / self._denominator(record)}
            if stats is None and not record.has_stats:
                options["rounded"] = self.args.objective == "mle"
                loss_T, stats = linear_weighted_nll_with_stats(hidden, head.weight, targets, tokens.labels, **options)
            else:
                loss_T = linear_weighted_nll(hidden, head.weight, targets, scored=scored, **options)
            outcome.update(loss_T=loss_T.detach(), stats=stats, selected=selected)
            if stats is not None and self.args.objective == "policy_gradient":
                record.add(**policy.measures(self.args, tokens, stats, reference))
            loss = loss_T.sum() / self._denominator(record) * self.accelerator.num_processes
            if self.aux_loss_enabled:
                assert aux_loss is not None
                self._metrics["train"]["aux_loss"].append(self._mean_over_ranks(aux_loss.detach()))
                loss = loss + self.router_aux_loss_coef * aux_loss / record.micro_batches
            exact.append(loss.detach())
            return {"loss": loss}

        loss = model(**tokens.inputs, head_fn=head_fn, response_mask=tokens.mask)["loss"]
        if outcome["stats"] is not None:
            _add_stats(record, outcome["stats"])
        rank = self.accelerator.process_index
        record.add_loss(outcome["loss_T"], outcome["selected"], lambda: document_hashes(batch), rank)
        if record.complete:
            if not record.exact:
                record.add(**self._running.finish(record.step))
            self._log_step(record.finish(self._denominator(record)))
        return loss + (exact[0] - loss).detach()  # FSDP2 has rounded what left its forward to half precision

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass; none for a micro-batch whose documents are not run."""
        if skipped(inputs):
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, *args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Raises NotFiniteError before the optimizer would spoil the weights; the scaler of fp16 skips such a step."""
        norm = super()._get_grad_norm(model, grad_norm)
        value = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.accelerator.scaler is None and value is not None and not math.isfinite(float(value)):
            raise NotFiniteError(f"step {self.state.global_step + 1}: the gradient is {float(value)}, the loss is not")
        return norm

    def _denominator(self, record: StepRecord) -> int:
        """What the summed loss of a step is divided by; the step's selection must be known."""
        return max(record.selected if self.args.normalize_by == "selected" else record.tokens, 1)

    def _tokens(self, batch: dict[str, Any]) -> Tokens:
        """The response tokens of a micro-batch, and what is left of it for the model."""
        mask = response_mask(batch["labels"])
        inputs = {k: v for k, v in batch.items() if k not in _NOT_THE_MODELS}
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        side = {name: batch[name][:, 1:][mask] for name in SIDE_COLUMNS if name in batch}
        return Tokens(inputs, mask, batch["labels"][:, 1:][mask], side, documents(batch))

    def _teacher_rows(self, model: nn.Module, tokens: Tokens) -> TeacherLike | CachedHidden | None:
        """p_ref of the response tokens; run before the student's forward, so that its adapter is on in the backward."""
        if not self.args.uses_teacher:
            return None
        if self.caches.teacher is not None:
            return self._truncated(self.caches.teacher.rows(model, tokens))
        assert self.teacher is not None
        return self._truncated(self.teacher.rows(model, tokens.inputs, tokens.mask))

    def _truncated(self, teacher: TeacherLike | CachedHidden | None) -> TeacherLike | CachedHidden | None:
        """The form of p_ref that the objective asks for."""
        if self.args.objective != "truncated_distill" or not isinstance(teacher, FactoredTeacher):
            return teacher
        with torch.autocast(teacher.hidden.device.type, enabled=False):
            return linear_top_k(teacher.hidden, teacher.head, self.args.teacher_top_k, **teacher.options)

    def _bound(self, teacher: TeacherLike | CachedHidden | None, head: OutputHead) -> TeacherLike | None:
        """p_ref, where the cache holds hidden states alone through the head of the student's forward."""
        if not isinstance(teacher, CachedHidden):
            return teacher
        bound = self._truncated(teacher.bound(head))
        assert not isinstance(bound, CachedHidden)
        return bound

    def _select_inside(
        self,
        hidden: Tensor,
        head: OutputHead,
        tokens: Tokens,
        beside_T: Tensor | None,
        record: StepRecord,
        batch: dict[str, Any],
    ) -> tuple[Scored | None, Tensor]:
        """Select from the hidden states of the training forward itself, without a pass of its own."""
        scored, scores = None, None
        if self._rule.metric != "random":
            most = self.args.objective != "masked_mle" or self.args.selection_fraction > 0.5
            scored = score_tokens(hidden, head.weight, tokens.labels, keep=most, **head.options)
            scores = self._metric(scored.stats, beside_T)
        if record.exact:
            chosen = choose(self._rule, record.step, [scores], [tokens.documents], everywhere=self._everywhere)
        else:
            assert scores is not None
            mask = self._running.choose(scores, tokens.documents)
            chosen = Chosen([mask], self._running.value or 0.0, int(mask.sum()))
        self._note(record, [chosen], [batch], chosen.masks)
        return scored, chosen.masks[0]

    def _targets(
        self, tokens: Tokens, selected: Tensor | None, teacher: TeacherLike | None, stats: TokenStats | None
    ) -> Targets:
        side = tokens.side
        given: dict[str, Any] = {"selected": selected, "teacher": teacher}
        given |= policy.side_information(self.args, tokens, stats)
        if self.args.objective == "truncated_distill":
            given |= {"top_k": self.args.teacher_top_k, "truncation": self.args.teacher_truncation}
        targets = OBJECTIVES[self.args.objective](tokens.labels, **given)
        return targets.scaled(side["token_weight"]) if "token_weight" in side else targets

    # ---- evaluation

    def _evaluation_loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of the batch's response tokens; the objective's own value goes to the metrics."""
        self._ready_caches(model)
        tokens = self._tokens(batch)
        teacher, beside_T = self._teacher_rows(model, tokens), self._beside(model, tokens)
        values: dict[str, Tensor] = {}

        def head_fn(hidden: Tensor, head: OutputHead, _aux_loss: Tensor | None) -> dict[str, Tensor]:
            plain = OBJECTIVES["mle"](tokens.labels)
            loss_T, stats = linear_weighted_nll_with_stats(
                hidden, head.weight, plain, tokens.labels, rounded=True, **head.options
            )
            values.update(loss=loss_T, entropy=stats.entropy, correct=stats.correct)
            if self.args.objective != "mle" and policy.has_columns(self.args, tokens):
                selected = None
                if self.args.uses_selection:
                    scores = None if self._rule.metric == "random" else self._metric(stats, beside_T)
                    selected = choose(self._rule, 0, [scores], [tokens.documents], everywhere=False).masks[0]
                targets = self._targets(tokens, selected, self._bound(teacher, head), stats)
                values["objective"] = linear_weighted_nll(hidden, head.weight, targets, **head.options)
            return {"loss": loss_T}

        with torch.no_grad():
            model(**tokens.inputs, head_fn=head_fn, response_mask=tokens.mask)
        count = max(tokens.labels.numel(), 1)
        sums = {name: float(value.sum()) for name, value in values.items()} | {"tokens": tokens.labels.numel()}
        sums = sum_over_ranks(sums)
        metrics, total = self._metrics["eval"], max(sums["tokens"], 1)
        metrics["entropy"].append(sums["entropy"] / total)
        metrics["mean_token_accuracy"].append(sums["correct"] / total)
        metrics["num_tokens"] = [self._total_train_tokens]
        if "objective" in sums:
            metrics["objective"].append(sums["objective"] / total)
        return values["loss"].sum() / count

    # ---- records

    def _log_step(self, metrics: dict[str, float]) -> None:
        self._total_train_tokens += int(metrics.pop("inputs"))
        for name, value in metrics.items():
            if name != "loss":  # logged by Trainer itself
                self._metrics["train"][name].append(value)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self.run_log.step = {**metrics, "num_tokens": self._total_train_tokens}

    def _mean_over_ranks(self, value: Tensor) -> float:
        return sum_over_ranks({"value": float(value)})["value"] / self.accelerator.num_processes


def _name_of(reference: Any) -> str | None:
    return reference if reference is None or isinstance(reference, str) else type(reference).__name__


def _stats(rows: FactoredTeacher, labels_T: Tensor) -> TokenStats:
    return linear_token_stats(rows.hidden, rows.head, labels_T, **rows.options)


def _add_stats(record: StepRecord, stats: TokenStats) -> None:
    record.add(
        entropy=float(stats.entropy.sum()), correct=float(stats.correct.sum()), scored=float(stats.entropy.numel())
    )


def _input_tokens(batch: dict[str, Any]) -> int:
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
