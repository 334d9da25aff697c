"""``UncertuneConfig``: TRL's ``SFTConfig`` with the fields of objective, selection and teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES
from uncertune.selection import METRICS, exact_count
from uncertune.settings import convert, specs_of
from uncertune.training import trl_fields
from uncertune.training.family import FamilyConfig, one_or_several
from uncertune.training.fields import ObjectiveFields

SELECTION_FIELDS = (
    "selection_metric",
    "selection_fraction",
    "selection_order",
    "selection_threshold",
    "selection_level",
    "selection_scope",
    "selection_memory_gb",
    "normalize_by",
    *(name for metric in METRICS.values() for name in metric.fields),
)
TEACHER_FIELDS = ("teacher", "teacher_checkpoint")
CACHE_FIELDS = ("teacher_cache", "teacher_cache_fill", "teacher_cache_dir")
OBJECTIVE_FIELDS = tuple(
    name for objective in OBJECTIVES.values() for name in objective.fields if name not in SELECTION_FIELDS
)
"""Fields that belong to single objectives, selection aside."""
CLIP_FIELDS = ("epsilon", "epsilon_high")


@dataclass
class UncertuneConfig(FamilyConfig):
    """Configuration of ``UncertuneTrainer``: every field of TRL's ``SFTConfig``, with its defaults, and these.

    Args:
        objective: the target of each token: ``mle``, ``masked_mle``, ``distill``, ``truncated_distill``,
            ``masked_mle_distill``, ``policy_gradient``, ``oracle``.
        selection_metric: score by which tokens are selected: ``loss``, ``entropy`` (nats), ``rho``
            (loss minus that of ``rho_reference``), ``random``, ``bald`` (epistemic uncertainty, Monte-Carlo dropout).
        selection_fraction: q in (0, 1]; exactly ``ceil(q · T)`` tokens, or documents, are selected.
        selection_order: which end is selected: ``highest``, ``lowest``, or ``middle``, which leaves out as many above
            as below.
        selection_threshold: instead of a fraction, in the unit of the metric: selects scores of at least this value,
            or of at most this value with order ``lowest``. A step may select nothing.
        selection_level: ``token``, or ``document`` (one training example, by the mean score of its response tokens).
        selection_scope: the tokens that are ranked together: ``batch``, all rows of the optimizer step, or
            ``microbatch``; ``running`` compares with a threshold from earlier steps, without a pass over the
            micro-batches first.
        selection_memory_gb: with gradient checkpointing, a step's forwards run before its selection if the layer
            inputs of its micro-batches fit into this many gigabytes per rank; otherwise, or with 0, tokens are scored
            in a separate forward pass. The masks are the same.
        teacher: p_ref of the distilling objectives: a folder or hub id of an adapter or model; ``base``, the model
            before training; or ``auto``: the same model fine-tuned on the same data with MLE, trained first
            (``uncertune.training.pipeline``). A list (in text, separated by commas): the mean of their distributions.
        teacher_top_k, teacher_truncation: of ``truncated_distill``: k, and ``plain`` | ``renormalized`` | ``tail``.
        epsilon, epsilon_high: of ``policy_gradient`` with a column ``old_log_probs``: the importance ratio is clipped
            to [1 − epsilon, 1 + epsilon_high], as PPO does; ``epsilon_high`` unset is ``epsilon``.
        token_weighting: multiplies the label's term by a function of the model's prediction, constant in the gradient:
            ``none``; ``dft``, the label's probability; ``eaft``, the entropy of the ``eaft_top_k`` most probable tokens
            over its maximum, to the power of ``eaft_alpha``; ``infosft``, largest for medium probabilities and 0 from
            ``infosft_cutoff`` on; ``focal``, (1 − p) to the power of ``focal_gamma``. TRL's ``loss_type: dft`` sets
            ``dft``.
        anchor, anchor_weight: adds ``anchor_weight · KL(anchor ‖ model)`` on every response token, exact over the
            vocabulary, with any objective. The anchor is ``base``, the model before training (with LoRA its adapters
            are disabled, otherwise a frozen copy is kept), or a folder or hub id.
        teacher_checkpoint: with ``teacher="auto"``: stage 1 at its ``last`` step, or at its ``best`` evaluation, the
            one of lowest held-out loss (needs ``eval_strategy``).
        teacher_members: with ``teacher="auto"``, the number of teachers that are trained, each with its own seed.
        bald_members: the ensemble of ``bald``: ``dropout``, or the members of the ``teacher``, at least two.
        label_smoothing_factor: ε, which makes the target of the label's term ``(1 − ε) · label + ε / V``.
        teacher_cache: cache the teacher's outputs for the response tokens on disk, so that it runs once: ``hidden``,
            its last hidden states in bfloat16 (exact over the full vocabulary), or ``topk`` (``truncated_distill``
            only), its ``teacher_top_k`` most probable tokens; ``none``: the teacher runs in every step.
        teacher_cache_fill: ``ahead``, before the first step, or ``first_epoch``, as the documents come (streams).
        teacher_cache_dir: folder of the cache; by default ``teacher_cache`` in ``output_dir``. Runs may share it, also
            concurrently.
        rho_reference: the holdout reference of ``rho``: a folder or hub id, ``base``, ``teacher``, or ``auto``: MLE on
            10 % of the data that no stage trains on, trained first. Its losses are computed once and kept in
            ``teacher_cache_dir`` (of streams: computed in every step).
        bald_samples, bald_rate: number of dropout passes of ``bald`` over every training token, each at about the cost
            of a forward pass without gradient, and their dropout rate.
        normalize_by: the loss is divided by ``all`` response tokens of the optimizer step, or (masked_mle only) by the
            ``selected`` ones.
        probe_steps, probe_samples: a few texts are scored token by token at the start, the middle and the end of a run,
            or every ``probe_steps`` steps (0: never); with ``probe_samples`` dropout passes of ``bald_rate`` also for
            their uncertainty.
        save_report: write ``report.html`` and ``tokens.html`` when training ends.
        save_selection: write the selected tokens of each step to ``selection.parquet``.
        allow_pickle: load weights that are stored as a pickle (.bin); reading a pickle can run its code.
        assistant_only_loss: TRL's; unset, it is true for ``messages`` with an objective other than ``mle``.

    Raises:
        UserError: (a ValueError) for values and combinations that cannot be trained; nothing is ignored silently.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_values()
        self.teacher = one_or_several(self.teacher)
        self._map_loss_type()
        self._check_family(self.objective)
        self._check_objective()
        self._check_selection()
        self._check_teacher()
        self._check_policy()
        self._check_probe()
        self._check_unsupported()

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with secrets hidden; the tokenizer's special tokens are not secrets."""
        return {**super().to_dict(), "eos_token": self.eos_token, "pad_token": self.pad_token}

    @property
    def is_plain(self) -> bool:
        """Whether the objective is plain cross-entropy of the labels."""
        return not OBJECTIVES[self.objective].needs and not self.changes_labels and not self.uses_anchor

    @property
    def uses_selection(self) -> bool:
        """Whether the objective treats selected tokens differently."""
        return "selected" in OBJECTIVES[self.objective].uses

    @property
    def selection_extra(self) -> str | None:
        """The ``extra`` of the metric."""
        return METRICS[self.selection_metric].extra if self.uses_selection else None

    @property
    def distils(self) -> bool:
        """Whether the objective needs p_ref."""
        return "teacher" in OBJECTIVES[self.objective].needs

    @property
    def scores_by_members(self) -> bool:
        """Whether the teacher's members are the ensemble of ``bald``."""
        return self.selection_extra == "epistemic" and self.bald_members == "teacher"

    @property
    def uses_teacher(self) -> bool:
        """Whether the objective or the metric needs the teacher."""
        return self.distils or self.scores_by_members

    def _check_values(self) -> None:
        """Check type and range of our fields, and TRL's fields with a fixed set of values; it checks the others."""
        for name, spec in specs_of(ObjectiveFields).items():
            setattr(self, name, convert(spec, getattr(self, name)))
        for name, spec in trl_fields.specs().items():
            if spec.choices and hasattr(self, name) and not isinstance(getattr(self, name), Enum):
                convert(spec, getattr(self, name))

    def _check_objective(self) -> None:
        """Refuse the fields of other objectives, and of other metrics."""
        own = OBJECTIVES[self.objective].fields
        for other, objective in OBJECTIVES.items():
            for name in self._changed(objective.fields):
                if name in OBJECTIVE_FIELDS and name not in own:
                    raise UserError(
                        f"{name} has no effect with objective={self.objective!r}: it belongs to {other}; remove it"
                    )
        if not self.uses_selection:
            return
        own = (*METRICS[self.selection_metric].fields, *(("bald_rate",) if self.probe_samples else ()))
        for other, metric in METRICS.items():
            for name in self._changed(metric.fields):
                if name not in own:
                    raise UserError(
                        f"{name} has no effect with selection_metric={self.selection_metric!r}: it belongs to {other}; "
                        "remove it"
                    )

    def _check_selection(self) -> None:
        try:
            exact_count(self.selection_fraction, 0)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not self.uses_selection:
            for name in self._changed(SELECTION_FIELDS):
                if name == "bald_rate" and self.probe_samples:
                    continue
                raise UserError(
                    f"{name}={getattr(self, name)!r} has no effect with objective={self.objective!r}, which selects no "
                    "tokens: remove it, or set objective to masked_mle or masked_mle_distill"
                )
            return
        if self.bald_samples < 2:
            raise UserError(f"bald_samples must be at least 2, got {self.bald_samples}: one sample has no variance")
        if not 0 < self.bald_rate < 1:
            raise UserError(f"bald_rate must be in (0, 1), got {self.bald_rate}")
        metric = METRICS[self.selection_metric]
        if self.selection_scope == "running" and metric.drawn:
            raise UserError(
                f"selection_scope='running' has no use with selection_metric={self.selection_metric!r}, which needs no "
                "pass: use 'batch'"
            )
        self._check_order(metric.drawn)
        if not self.selection_memory_gb >= 0:
            raise UserError(f"selection_memory_gb must be at least 0, got {self.selection_memory_gb}")
        if self.selection_scope == "running" and self.normalize_by == "selected":
            raise UserError(
                "normalize_by='selected' needs the number of selected tokens before a step's first backward, which is "
                "unknown with selection_scope='running': use normalize_by='all', or scope 'batch'"
            )
        if metric.extra == "reference_loss" and self.rho_reference is None:
            raise UserError(
                f"selection_metric={self.selection_metric!r} needs rho_reference: 'auto', a folder, a hub id, or "
                "'teacher'"
            )
        if self.normalize_by == "selected" and self.uses_anchor:
            raise UserError("normalize_by='selected' is refused with an anchor, a loss of all tokens: use 'all'")
        if self.normalize_by == "selected" and "normalize_by" not in OBJECTIVES[self.objective].fields:
            raise UserError(
                f"normalize_by='selected' is refused for objective={self.objective!r}, whose other tokens have loss "
                "too: use normalize_by='all'"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise UserError(
                f"packing_strategy={self.packing_strategy!r} cuts documents in the middle: with a selecting objective "
                "use 'bfd'"
            )

    def _check_order(self, drawn: bool) -> None:
        """Refuse combinations with an order or a threshold that have no meaning."""
        order, fixed = self.selection_order, self.selection_threshold
        name = f"selection_order={order!r}" if fixed is None else f"selection_threshold={fixed}"
        if drawn and (order != "highest" or fixed is not None):
            raise UserError(
                f"{name} has no meaning with selection_metric={self.selection_metric!r}, whose scores are random "
                "numbers: remove it"
            )
        if order == "middle" and self.selection_scope == "running":
            raise UserError(
                "selection_order='middle' has two ends, and selection_scope='running' has one threshold: use "
                "selection_scope='batch'"
            )
        if fixed is None:
            return
        if not math.isfinite(fixed):
            raise UserError(f"selection_threshold must be a finite number, got {fixed}")
        if order == "middle":
            raise UserError(
                f"{name} cannot be used with selection_order='middle', which has two ends: use highest or lowest"
            )
        if changed := self._changed(("selection_fraction", "selection_scope")):
            raise UserError(
                f"{changed[0]}={getattr(self, changed[0])!r} has no effect with {name}, which needs no ranking: remove "
                "one of them"
            )

    def _check_teacher(self) -> None:
        if not self.uses_teacher:
            for name in self._changed(TEACHER_FIELDS):
                if not (self.uses_selection and self.rho_reference == "teacher"):
                    raise UserError(
                        f"{name}={getattr(self, name)!r} has no effect with objective={self.objective!r}: remove it, "
                        + (
                            "or set anchor"
                            if "advantages" in OBJECTIVES[self.objective].needs
                            else "or set objective to distill, truncated_distill or masked_mle_distill"
                        )
                    )
        evaluates = str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no"
        if self.teacher_checkpoint == "best" and not (self.teacher == "auto" and evaluates):
            raise UserError(
                "teacher_checkpoint='best' is the best evaluation of stage 1: set teacher to auto, and eval_strategy "
                "to epoch or steps"
            )
        if self.teacher_top_k < 1:
            raise UserError(f"teacher_top_k must be at least 1, got {self.teacher_top_k}")
        self._check_members()
        self._check_cache()

    def _check_members(self) -> None:
        members = self.teacher if isinstance(self.teacher, list) else [self.teacher]
        several = len(members) > 1
        if self.teacher_members > 1 and self.teacher != "auto" and len(members) != self.teacher_members:
            raise UserError(f"teacher_members={self.teacher_members} has no effect without teacher='auto': remove it")
        if several and "auto" in members:
            raise UserError("teacher: 'auto' cannot be combined with other teachers; for several use teacher_members")
        if (several or self.teacher_members > 1) and "top_k" in OBJECTIVES[self.objective].uses:
            raise UserError(
                f"objective={self.objective!r} takes one teacher: the top-k of a mean of several is not supported; use "
                "distill or masked_mle_distill"
            )
        if several and self.rho_reference == "teacher":
            raise UserError("rho_reference='teacher' needs one teacher, not several: give a folder or a hub id")
        if self.scores_by_members and self.teacher is not None and not several and self.teacher_members < 2:
            raise UserError("bald_members='teacher' needs a teacher of at least two members: one has no variance")
        if self.scores_by_members and self.teacher_cache == "topk":
            raise UserError("bald_members='teacher' needs whole distributions: use teacher_cache='hidden'")

    def _check_cache(self) -> None:
        scored = self.selection_extra == "reference_loss"
        for name in self._changed(CACHE_FIELDS):
            asked = self.uses_teacher or self.uses_anchor
            if not asked and not (scored and name == "teacher_cache_dir"):
                raise UserError(
                    f"{name} has no effect with objective={self.objective!r}, which has no teacher, and without an "
                    "anchor: remove it"
                )
            if self.teacher_cache == "none" and not (scored and name == "teacher_cache_dir"):
                raise UserError(f"{name} has no effect with teacher_cache='none': set teacher_cache to hidden or topk")
        if self.teacher_cache == "topk" and "top_k" not in OBJECTIVES[self.objective].uses:
            raise UserError(
                f"teacher_cache='topk' stores a truncated teacher, but objective={self.objective!r} needs all of "
                "p_ref: use teacher_cache='hidden', or objective truncated_distill"
            )

    def _check_policy(self) -> None:
        for name in CLIP_FIELDS:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} must be at least 0, got {value}")

    def _check_probe(self) -> None:
        if self.probe_steps is not None and self.probe_steps < 0:
            raise UserError(f"probe_steps must be at least 0, got {self.probe_steps}")
        if self.probe_steps == 0 and self.probe_samples:
            raise UserError("probe_samples has no effect with probe_steps=0, which scores nothing: remove one of them")
        if self.probe_samples != 0 and self.probe_samples < 2:
            raise UserError(f"probe_samples must be 0 or at least 2, got {self.probe_samples}")

    def _check_unsupported(self) -> None:
        if self.loss_type != "nll":
            raise UserError(f"loss_type={self.loss_type!r} is not supported: the loss is set by objective; use 'nll'")
        parallel = self.parallelism_config
        for size in ("cp_size", "sp_size", "tp_size"):
            if parallel is not None and (getattr(parallel, size, 1) or 1) > 1:
                raise UserError(f"parallelism_config.{size} > 1 is not supported: use data parallelism (DDP or FSDP)")
