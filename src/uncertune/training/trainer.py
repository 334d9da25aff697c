"""``UncertuneTrainer``: TRL's ``SFTTrainer`` with eq. 1 as its loss.

Data, templates, packing and ``-100`` labels are TRL's. This class adds the selection of a step's tokens, their targets,
the fused loss inside the model's forward (so that DDP and FSDP hooks fire), and one division by the step's token count.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from uncertune.errors import NotFiniteError, UserError
from uncertune.models import attach_head, checked_in_trl, head_shape, resolve_model, verify_head
from uncertune.models.packing import verify_packing
from uncertune.runs import checkpoints
from uncertune.runs.records import METRICS, read_metrics
from uncertune.training import console, dataset, devices, publishing
from uncertune.training.batch import (
    LAYOUT,
    ROW_LENGTHS,
    SELECTED,
    SIDE_COLUMNS,
    SideColumnCollator,
    Tokens,
    layouts,
    mask_repeats,
)
from uncertune.training.config import UncertuneConfig
from uncertune.training.document_dropping import skipped
from uncertune.training.evaluation import Evaluation, EvaluationLoss, check_best_metric
from uncertune.training.kept_forward import KEPT
from uncertune.training.references import References
from uncertune.training.refusals import check_arguments, check_model, teachers_of
from uncertune.training.run_folder import keep_records, with_references
from uncertune.training.runlog import RunLog
from uncertune.training.saving import Progress, arguments_without_secrets, name_base, student_adapter_only
from uncertune.training.selector import Selector
from uncertune.training.side_columns import check_vocabulary
from uncertune.training.step import StepRecord
from uncertune.training.step_loss import StepLoss
from uncertune.training.trl_templates import known_templates

_NOT_THE_MODELS = ("labels", SELECTED, KEPT, LAYOUT, ROW_LENGTHS, *SIDE_COLUMNS)


class UncertuneTrainer(SFTTrainer):
    """Fine-tune a causal language model with any objective of ``uncertune.objectives``.

    Takes the arguments of TRL's ``SFTTrainer``, and ``teacher``: a path or hub id (of an adapter or a model), a model,
    or a list of these, whose distributions are averaged. It replaces the field of the same name of ``UncertuneConfig``.

    The loss is ``Σ_t ℓ_t / N`` with N all response tokens of the optimizer step (over micro-batches and ranks), so it
    does not depend on how a step is cut; ``normalize_by="selected"`` divides by the selected tokens. ``eval_loss`` is
    plain cross-entropy over response tokens for every objective; the objective's value is ``eval_objective``.

    Hooks of TRL and transformers that it overrides, and why:

    * ``_prepare_dataset``, ``_set_signature_columns_if_needed``: side columns stay aligned with their labels.
    * ``get_batch_samples``: all micro-batches of a step are known here, so its tokens are counted and selected here.
    * ``compute_loss``: the loss is computed inside the forward of the wrapped model, from its hidden states.
    * ``training_step``: documents that are not selected are not run; the last one of a step completes its record.
    * ``evaluation_loop``: means over tokens, instead of means of batches.
    * ``train``: on a GPU without cuDNN's attention, whose gradients can be NaN.
    * ``_get_grad_norm``: a non-finite gradient ends the run before it reaches the weights.
    * ``_save``, ``_save_checkpoint``, ``_load_optimizer_and_scheduler``: checkpoints are complete or absent, and have
      the student's adapter alone and the running threshold.
    * ``create_model_card``, ``push_to_hub``, ``_push_from_checkpoint``: only the model is published, with our card.

    Raises UserError at construction for unsupported settings.
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
        teacher: Any = None,
        **kwargs: Any,
    ) -> None:
        args = UncertuneConfig() if args is None else args
        if not isinstance(args, UncertuneConfig):
            raise UserError(f"args must be an UncertuneConfig, got {type(args).__name__}")
        check_arguments(model, kwargs)
        args, teacher, train_dataset = with_references(model, args, teacher, train_dataset, eval_dataset, kwargs)
        teachers = teachers_of(args, teacher)
        formatting_func = kwargs.get("formatting_func")
        train_dataset = dataset.readable(train_dataset, dataset.TRAIN, args, formatting_func)
        eval_dataset = dataset.readable(eval_dataset, "eval", args, formatting_func)
        dataset.report_shared(train_dataset, eval_dataset)
        args = dataset.resolve_assistant_only_loss(args, train_dataset)
        if isinstance(model, str | os.PathLike):
            model = resolve_model(os.fspath(model))
        kwargs |= {"data_collator": data_collator, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
        checked = checked_in_trl(allow_pickle=args.allow_pickle)
        known = known_templates(adapter=kwargs.get("peft_config") is not None)
        with known, dataset.refusals(), checked, warnings.catch_warnings():
            # TRL's smoothing runs the model twice; ours is in the fused head
            warnings.filterwarnings("ignore", "`label_smoothing_factor` is deprecated", FutureWarning)
            dataset.check_prepared(args, train_dataset)
            super().__init__(model, args, **kwargs)
        check_best_metric(args, self.eval_dataset, more=self.compute_metrics is not None)
        check_model(self)
        devices.check(self.accelerator, self.model, average_tokens=args.average_tokens_across_devices)
        if train_dataset is not None:
            devices.check_batches(args, self.train_dataset, self._rows_of_a_batch)
        attach_head(self.model)
        verify_head(self.model)
        if getattr(self.data_collator, "padding_free", False):
            verify_packing(self.model)
        check_vocabulary(train_dataset, head_shape(self.model)[0])
        for rows, name in ((train_dataset, dataset.TRAIN), (eval_dataset, "eval")):
            dataset.check_ids(rows, head_shape(self.model)[0], name)
        self.data_collator = SideColumnCollator(self.data_collator)
        self.model_accepts_loss_kwargs = True  # the loss is divided by our own count, for the whole step at once
        self.selector = Selector(self)  # before a reference adds dropout layers
        self._flops_per_token = 6 * self.model.num_parameters(exclude_embeddings=True)  # before a teacher adds adapters
        self.references = References(self, teachers)
        base, taught = getattr(self.model.config, "_name_or_path", ""), ", ".join(map(_name_of, teachers))
        self.card_settings: dict[str, Any] = {"model_name_or_path": base or None, "teacher": taught or None}
        self._step: StepRecord | None = None
        self._evaluation = Evaluation(self.selector.rule)
        self.progress = Progress(self)
        self.run_log = RunLog(self)
        self.add_callback(self.run_log)
        console.take_over(self)
        self.add_callback(self.references.caches)
        keep_records(self)

    # ---- construction

    def _prepare_dataset(
        self, rows: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """TRL's preparation, with side columns along the labels and a report of what was truncated or dropped."""
        how = dataset.labelling(args, processing_class, self.completion_only_loss)
        prepare = super()._prepare_dataset
        return dataset.prepare(prepare, rows, processing_class, args, packing, formatting_func, dataset_name, how)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = getattr(self, "_signature_columns", None) or []
        self._signature_columns = list(dict.fromkeys([*columns, *SIDE_COLUMNS]))

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with student_adapter_only(self.model), arguments_without_secrets(self):
            super()._save(output_dir, state_dict)
        name_base(output_dir or self.args.output_dir)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """``README.md`` of the output folder: objective, selection, teacher, data set and results so far."""
        if self.is_world_process_zero():
            settings = {**self.args.to_dict(), **self.card_settings}
            records = Path(self.args.output_dir) / METRICS
            rows = read_metrics(records) if records.is_file() else []
            text = publishing.model_card(settings, rows, adapter=hasattr(self.model, "peft_config"))
            checkpoints.write_atomically(Path(self.args.output_dir) / publishing.CARD, text)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer``, but only the model of the output folder (``uncertune.training.publishing``)."""
        with publishing.model_only():
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with publishing.model_only(), arguments_without_secrets(self):
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """TRL's checkpoint; complete once its last file is renamed into place, and only then are older ones deleted."""
        args, step = self.args, self.state.global_step
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            with checkpoints.nothing_half_written(args.output_dir, step):
                self.run_log.flush()
                self.references.caches.flush()
                super()._save_checkpoint(model, trial)
                folder = checkpoints.folder_of(args.output_dir, step)
                self.progress.save(folder)
                if args.should_save and args.selection_scope == "running":
                    self.selector.running.save(folder)
                self.accelerator.wait_for_everyone()
                if args.should_save:
                    checkpoints.mark_complete(args.output_dir, step, self.run_log.recorded())
        finally:
            args.save_total_limit = limit
        if args.should_save:
            rotate_checkpoints(args.output_dir, limit, self.state.best_model_checkpoint)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer``, with attention kernels whose gradients are finite."""
        with devices.without_cudnn_attention(self.args.device):
            return super().train(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint. Raises UserError if its files were changed."""
        checkpoints.check_intact(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        checkpoints.check_intact(str(self.state.best_model_checkpoint))
        super()._load_best_model()

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As ``Trainer``; the best checkpoint is found also in a run folder that was moved."""
        done = super()._init_training_state(*args, **kwargs)
        checkpoint = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        if checkpoint is not None:
            self.state.best_model_checkpoint = checkpoints.best_of(checkpoint)
        return done

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """As ``Trainer``, with summaries of the whole run also after a resume."""
        self._initial_global_step = 0
        return super()._finalize_training(trial, num_train_samples, self.progress.started)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.progress.resume_from(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.selection_scope == "running":
            self.selector.running.load(checkpoint)

    def fill_teacher_cache(self) -> None:
        """Compute the missing cache entries, and nothing else; training then starts without the teacher.

        Under ``accelerate launch`` the ranks share the work. Raises UserError without a cache, and with FSDP or
        DeepSpeed, which shard the model only when training starts.
        """
        self.references.fill()

    # ---- the optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step, its token count over all ranks and, where needed, its masks."""
        self.references.ready(self.model_wrapped)
        self.args.logging_nan_inf_filter = False  # waits for the device; a loss that is not finite ends the run anyway
        batches, _ = super().get_batch_samples(self._without_repeats(epoch_iterator), num_batches, device)
        found = layouts(batches)
        for batch, layout in zip(batches, found, strict=True):
            batch[LAYOUT] = layout
        tokens = sum(layout.index.numel() for layout in found)
        tokens = int(devices.sum_over_ranks({"tokens": tokens})["tokens"])
        if self.state.global_step == 0:
            self.selector.running.threshold.value = None
        exactly = self.args.selection_scope != "running" or self.selector.running.threshold.value is None
        self._step = record = StepRecord(
            self.state.global_step,
            tokens,
            len(batches),
            exactly,
            by_selected=self.args.normalize_by == "selected",
            from_below=self.args.selection_order == "lowest",
        )
        record.add(inputs=sum(layout.inputs for layout in found))
        batches = self.selector.select_for_step(batches, record)
        return batches, torch.full((), max(tokens, 1), device=device)

    def _without_repeats(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Training batches without the response tokens of repeated rows."""
        for batch in batches:
            self._mask_repeats(batch)
            yield batch

    def _mask_repeats(self, batch: dict[str, Any]) -> None:
        """Remove the response tokens of rows that accelerate repeats to fill the last batch."""
        loading = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not loading.end_of_dataloader:
            return
        if hasattr(loading.active_dataloader.dataset, "__len__") and loading.remainder > 0:
            mask_repeats(batch, self.accelerator.process_index, loading.remainder)

    @property
    def _rows_of_a_batch(self) -> int:
        """Rows of a batch over all ranks."""
        split = self.args.accelerator_config.split_batches
        return self._train_batch_size * (1 if split else self.accelerator.num_processes)

    # ---- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Training: the objective's loss of this micro-batch over the step's tokens. Evaluation: cross-entropy."""
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
        rows = self.references.rows(model, tokens)
        extra_T = None if SELECTED in batch else self.selector.extra_scores(model, tokens)
        step_loss = StepLoss(self, record, batch, tokens, rows, extra_T)
        kept = {"kept": batch[KEPT].take()} if KEPT in batch else {}
        loss = model(**tokens.inputs, **kept, **tokens.response, head_fn=step_loss.of_hidden)["loss"]
        result = step_loss.result
        assert result is not None
        if result.stats is not None:
            record.add_stats(result.stats)
            if result.selected_T is not None:
                record.add_nll(result.stats.loss, result.selected_T)
        rank = self.accelerator.process_index
        record.add_loss(result.loss_T, result.selected_T, lambda: tokens.hashes, rank)
        return loss + (result.loss - loss).detach()  # FSDP2 has rounded what left its forward to half precision

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As ``Trainer``, for the student alone: with a full cache its teacher is not in memory."""
        return self._flops_per_token * inputs["input_ids"].numel()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass; none for a micro-batch whose documents are not run."""
        if skipped(inputs):
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, *args, **kwargs)
        record = self._step
        assert record is not None
        if record.complete:  # after the backward, since the record's values are waited for
            if not record.exact:
                record.add(**self.selector.running.finish(record.step))
            self._log_step(record.finish())
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Raises NotFiniteError before the optimizer changes the weights; the scaler of fp16 skips such a step."""
        norm = super()._get_grad_norm(model, grad_norm)
        value = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.accelerator.scaler is None and value is not None and not math.isfinite(float(value)):
            raise NotFiniteError(f"step {self.state.global_step + 1}: the gradient is {float(value)}, the loss is not")
        return norm

    def _tokens(self, batch: dict[str, Any]) -> Tokens:
        """The response tokens of a micro-batch, and the model's inputs."""
        inputs = {k: v for k, v in batch.items() if k not in _NOT_THE_MODELS}
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        return Tokens.of(batch, inputs)

    # ---- evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer``, with means over all tokens instead of means of batches; each data set has its prefix."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._evaluation = Evaluation(self.selector.rule)
        output = super().evaluation_loop(*args, **kwargs)
        measured = {**self._evaluation.finish(), "num_tokens": self._total_train_tokens}
        output.metrics.update({f"{prefix}_{name}": value for name, value in measured.items()})
        return output

    def _evaluation_loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of the batch's response tokens; their sums are added to the current evaluation."""
        self.references.ready(model)
        self._mask_repeats(batch)
        tokens = self._tokens(batch)
        rows, extra_T = self.references.rows(model, tokens), self.selector.extra_scores(model, tokens)
        loss = EvaluationLoss(self, self._evaluation, tokens, rows, extra_T)
        with torch.no_grad():
            loss_T = model(**tokens.inputs, **tokens.response, head_fn=loss.of_hidden)["loss"]
        return loss_T.sum() / max(tokens.labels.numel(), 1)

    # ---- records

    def _log_step(self, metrics: dict[str, float]) -> None:
        self._total_train_tokens += int(metrics.pop("inputs"))
        for name, value in metrics.items():
            if name != "loss":  # logged by Trainer itself
                self._metrics["train"][name].append(value)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self.run_log.step = {**metrics, "num_tokens": self._total_train_tokens}


def _name_of(reference: Any) -> str:
    return reference if isinstance(reference, str) else type(reference).__name__
