"""Teacher and holdout reference of a run: frozen models, or what a cache holds of them.

Shape legend: ``T`` response tokens of a micro-batch.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.fused import TokenStats, linear_token_stats, linear_top_k
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head, TeacherLike
from uncertune.teachers.adapter import ModelTeacher, Teacher, load_teacher
from uncertune.training import devices
from uncertune.training.batch import Tokens
from uncertune.training.teacher_cache import CachedHidden, open_caches


class References:
    """``teacher`` and ``rho`` are the models, None where there is none or a cache already holds all they would say.

    ``source`` is the teacher's path, hub id or model. Raises UserError where it cannot be had or does not fit.
    """

    def __init__(self, trainer: Any, source: str | nn.Module | None) -> None:
        self._trainer, self._args = trainer, trainer.args
        self.caches = open_caches(trainer, source)
        self.teacher: Teacher | None = None
        self.rho: Teacher | None = None
        self._load_what_is_asked(source)

    # ---- what they say

    def teacher_rows(self, model: nn.Module, tokens: Tokens) -> TeacherLike | CachedHidden | None:
        """p_ref of the response tokens; run before the student's forward, so that its adapter is on in the backward."""
        if not self._args.uses_teacher:
            return None
        if self.caches.teacher is not None:
            return self._truncated(self.caches.teacher.rows(model, tokens))
        assert self.teacher is not None
        return self._truncated(self.teacher.rows(model, tokens.inputs, tokens.mask))

    def bound(self, teacher: TeacherLike | CachedHidden | None, head: Head) -> TeacherLike | None:
        """p_ref, where the cache holds hidden states alone through the head of the student's forward."""
        if not isinstance(teacher, CachedHidden):
            return teacher
        bound = self._truncated(teacher.bound(head))
        assert not isinstance(bound, CachedHidden)
        return bound

    def rho_loss(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """The holdout reference's loss of the response tokens, (T,)."""
        if self.caches.rho is not None:
            return self.caches.rho.columns(model, tokens)["loss"]
        assert self.rho is not None
        return stats_of(self.rho.rows(model, tokens.inputs, tokens.mask), tokens.labels).loss

    def _truncated(self, teacher: TeacherLike | CachedHidden | None) -> TeacherLike | CachedHidden | None:
        """The form of p_ref that the objective asks for."""
        if "top_k" not in OBJECTIVES[self._args.objective].uses or not isinstance(teacher, FactoredTeacher):
            return teacher
        with torch.autocast(teacher.hidden.device.type, enabled=False):
            return linear_top_k(teacher.hidden, teacher.head, self._args.teacher_top_k)

    # ---- the caches

    def ready(self, model: nn.Module) -> None:
        """Before the first step or evaluation: fill what is to be filled ahead, and let go of models done with."""
        if self.caches.ready(model):
            self._release()

    def fill(self) -> None:
        """Compute what the caches lack. Raises UserError where nothing is cached, and with FSDP or DeepSpeed."""
        if not self.caches.all:
            raise UserError("there is no cache to fill: set teacher_cache to hidden or topk")
        if self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled:
            raise UserError(
                "the teacher cache cannot be filled by itself with FSDP or DeepSpeed: train, which fills it first, or "
                "launch without them"
            )
        self.ready(self._trainer.model)

    # ---- the models

    def _load_what_is_asked(self, source: str | nn.Module | None) -> None:
        cached, rho = self.caches.teacher, self.caches.rho
        same = self._args.rho_reference == "teacher"
        asked = (cached is None and self._args.uses_teacher) or (cached is not None and cached.lacks)
        wanted = rho.lacks if rho is not None else self._args.rho_reference is not None
        if asked or (same and wanted):
            self.teacher = self._load(source, "reference")
        if same:
            self.rho = self.teacher
            if self._trainer.accelerator.is_main_process:
                print("rho_reference: the teacher saw the data of this run, so it is no holdout", file=sys.stderr)
        elif wanted:
            self.rho = self._load(self._args.rho_reference, "rho_reference")
        for one, live in ((cached, self.teacher), (rho, self.rho)):
            if one is not None and one.lacks:
                one.live = live
                one.announce()

    def _load(self, source: str | nn.Module | None, name: str) -> Teacher | None:
        if source is None:
            return None
        trainer = self._trainer
        student = trainer.accelerator.unwrap_model(trainer.model)
        dtype = next(student.parameters()).dtype
        while name in getattr(student, "peft_config", {}):  # never load over an adapter that is there
            name += "_"
        with torch.random.fork_rng():  # a new adapter draws numbers, which the student's dropout must not notice
            teacher = load_teacher(
                source,
                student,
                name=name,
                tokenizer=trainer._tokenizer,
                dtype=dtype,
                allow_pickle=self._args.allow_pickle,
            )
        if isinstance(teacher, ModelTeacher):
            teacher = ModelTeacher(devices.prepare_reference(teacher.model, trainer.accelerator))
        return teacher

    def _release(self) -> None:
        """Let go of models whose answers are all on disk now."""
        kept: list[Any] = [one.live for one in self.caches.all if one.live is not None]
        if self.caches.teacher is None and self._args.uses_teacher:
            kept.append(self.teacher)
        if self.caches.rho is None:
            kept.append(self.rho)
        for name in ("teacher", "rho"):
            one = getattr(self, name)
            if one is not None and not any(one is other for other in kept):
                setattr(self, name, None)
                if isinstance(one, ModelTeacher):
                    models = self._trainer.accelerator._models
                    models[:] = [model for model in models if model is not one.model]


def stats_of(rows: FactoredTeacher, labels_T: Tensor) -> TokenStats:
    """Loss and entropy of a frozen model's rows."""
    return linear_token_stats(rows.hidden, rows.head, labels_T)
