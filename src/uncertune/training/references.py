"""Teacher, anchor and holdout reference of a run: frozen models, or caches of their outputs.

Shape legend: ``T`` response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.fused import TokenStats, linear_token_stats, linear_top_k
from uncertune.models import output_head
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head, SparseTeacher, TeacherLike
from uncertune.runs.notes import note
from uncertune.teachers.adapter import ModelTeacher, Teacher, load_base, load_teacher
from uncertune.training import devices
from uncertune.training.batch import Tokens
from uncertune.training.teacher_cache import Cached, CachedHidden, open_caches
from uncertune.uncertainty.bald import Logits, decompose_members

Teaching = FactoredTeacher | SparseTeacher | CachedHidden


@dataclass(frozen=True)
class Rows:
    """Distributions of the response tokens of a micro-batch: of the teacher's members, and of the anchor."""

    members: tuple[Teaching, ...] = ()
    anchor: Teaching | None = None


class References:
    """``members`` of the teacher, ``anchor`` and ``rho`` are the models, None if a cache has all their outputs.

    ``sources`` are the paths, hub ids or models of the teacher's members. Raises UserError for a model that is not
    available or does not fit.
    """

    def __init__(self, trainer: Any, sources: Sequence[str | nn.Module]) -> None:
        self._trainer, self._args = trainer, trainer.args
        self.caches = open_caches(trainer, sources)
        self.members: list[Teacher | None] = [None] * len(sources)
        self.anchor: Teacher | None = None
        self.rho: Teacher | None = None
        self._load_what_is_asked(sources)

    @property
    def teacher(self) -> Teacher | None:
        """The first member."""
        return self.members[0] if self.members else None

    # ---- outputs

    def rows(self, model: nn.Module, tokens: Tokens) -> Rows:
        """The outputs that the objective needs; called before the student's forward, so that its adapter is active in
        the backward."""
        members = self.member_rows(model, tokens) if self._args.distils else ()
        anchor: Teaching | None = None
        if self._args.uses_anchor:
            anchor = self._ask(self.anchor, self.caches.anchor, model, tokens)
        return Rows(tuple(self._truncated(one) for one in members), anchor)

    def bound(self, rows: Rows, head: Head) -> tuple[TeacherLike | None, TeacherLike | None]:
        """p_ref and the anchor; only cached hidden states use the head of the student's forward."""
        members: list[Any] = [self._truncated(bound(one, head)) for one in rows.members]
        teacher = members[0] if len(members) == 1 else members or None
        return teacher, None if rows.anchor is None else bound(rows.anchor, head)

    def member_rows(self, model: nn.Module, tokens: Tokens) -> tuple[Teaching, ...]:
        """The distributions of each member of the teacher on the response tokens."""
        caches: Sequence[Cached | None] = self.caches.members or [None] * len(self.members)
        return tuple(self._ask(live, cached, model, tokens) for live, cached in zip(self.members, caches, strict=True))

    def _ask(self, live: Teacher | None, cached: Cached | None, model: nn.Module, tokens: Tokens) -> Teaching:
        if cached is not None:
            return cached.rows(model, tokens)
        assert live is not None
        return live.rows(model, tokens.inputs, tokens.mask, tokens.index)

    def rho_loss(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """The holdout reference's loss of the response tokens, (T,)."""
        if self.caches.rho is not None:
            return self.caches.rho.columns(model, tokens)["loss"]
        assert self.rho is not None
        return stats_of(self.rho.rows(model, tokens.inputs, tokens.mask, tokens.index), tokens.labels).loss

    def epistemic(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """The epistemic uncertainty (BALD) of the teacher's members, (T,), in nats."""
        student = output_head(self._trainer.accelerator.unwrap_model(model))
        rows = [bound(one, student) for one in self.member_rows(model, tokens)]
        members = [one for one in rows if isinstance(one, FactoredTeacher)]
        logits = [Logits.of(one.head, like=one.hidden) for one in members]
        return decompose_members([one.hidden for one in members], logits).epistemic

    def _truncated(self, teacher: Teaching) -> Teaching:
        """p_ref in the form that the objective needs."""
        if "top_k" not in OBJECTIVES[self._args.objective].uses or not isinstance(teacher, FactoredTeacher):
            return teacher
        with torch.autocast(teacher.hidden.device.type, enabled=False):
            return linear_top_k(teacher.hidden, teacher.head, self._args.teacher_top_k)

    # ---- the caches

    def ready(self, model: nn.Module) -> None:
        """Before the first step or evaluation: fill the caches, and release models that are no longer needed."""
        if self.caches.ready(model):
            self._release()

    def fill(self) -> None:
        """Compute the missing cache entries. Raises UserError without a cache, and with FSDP or DeepSpeed."""
        if not self.caches.all:
            raise UserError("there is no cache to fill: set teacher_cache to hidden or topk")
        if self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled:
            raise UserError(
                "the teacher cache cannot be filled separately with FSDP or DeepSpeed: train, which fills it first, or "
                "launch without them"
            )
        self.ready(self._trainer.model)

    # ---- the models

    def _load_what_is_asked(self, sources: Sequence[str | nn.Module]) -> None:
        args, caches = self._args, self.caches
        same = args.rho_reference == "teacher"
        wanted = caches.rho.lacks if caches.rho is not None else args.rho_reference is not None
        members: Sequence[Cached | None] = caches.members or [None] * len(sources)
        for number, (source, cached) in enumerate(zip(sources, members, strict=True)):
            asked = args.uses_teacher if cached is None else cached.lacks
            if asked or (same and wanted):
                name = "reference" if number == 0 else f"reference_{number + 1}"
                self.members[number] = self._load(source, name, "teacher")
        if args.uses_anchor and (caches.anchor is None or caches.anchor.lacks):
            self.anchor = self._load(args.anchor, "anchor", "anchor")
        if same:
            self.rho = self.teacher
            if self._trainer.accelerator.is_main_process:
                note("rho_reference: the teacher saw the data of this run, so it is not a holdout")
        elif wanted:
            self.rho = self._load(args.rho_reference, "rho_reference", "rho_reference")
        for cached, live in [
            *zip(members, self.members, strict=True),
            (caches.anchor, self.anchor),
            (caches.rho, self.rho),
        ]:
            if cached is not None and cached.lacks:
                cached.live = live
                cached.announce()

    def _load(self, source: str | nn.Module | None, name: str, field: str) -> Teacher | None:
        if source is None:
            return None
        trainer = self._trainer
        student = trainer.accelerator.unwrap_model(trainer.model)
        dtype = next(student.parameters()).dtype
        while name in getattr(student, "peft_config", {}):  # never replace an existing adapter
            name += "_"
        with torch.random.fork_rng():  # a new adapter draws random numbers, which must not change the student's dropout
            if source == "base":
                teacher = load_base(student, field)
            else:
                teacher = load_teacher(
                    source,
                    student,
                    name=name,
                    tokenizer=trainer._tokenizer,
                    dtype=dtype,
                    allow_pickle=self._args.allow_pickle,
                    field=field,
                )
        if isinstance(teacher, ModelTeacher):
            teacher = ModelTeacher(devices.prepare_reference(teacher.model, trainer.accelerator))
        return teacher

    def _release(self) -> None:
        """Release models whose outputs are all on disk."""
        args = self._args
        kept: list[Any] = [one.live for one in self.caches.all if one.live is not None]
        kept += [] if self.caches.members or not args.uses_teacher else self.members
        kept += [self.anchor] if self.caches.anchor is None else []
        kept += [self.rho] if self.caches.rho is None else []

        def left(teacher: Teacher | None) -> Teacher | None:
            if teacher is None or any(teacher is one for one in kept):
                return teacher
            if isinstance(teacher, ModelTeacher):
                models = self._trainer.accelerator._models
                models[:] = [model for model in models if model is not teacher.model]
            return None

        self.members = [left(one) for one in self.members]
        self.anchor, self.rho = left(self.anchor), left(self.rho)


def bound(rows: Teaching, head: Head) -> FactoredTeacher | SparseTeacher:
    """``rows`` with cached hidden states bound to the student's head."""
    return rows.bound(head) if isinstance(rows, CachedHidden) else rows


def stats_of(rows: FactoredTeacher, labels_T: Tensor) -> TokenStats:
    """Loss and entropy of a frozen model's rows."""
    return linear_token_stats(rows.hidden, rows.head, labels_T)
