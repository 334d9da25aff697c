"""Languages, their shifted versions, data and pretrained models of all seeds, shared by all arms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from uncertune.studies.language.arms import Arm
from uncertune.studies.language.grammar import TASKS, Language
from uncertune.studies.stacked import Stacked

IN_TASKS = list(range(2))
OUT_TASKS = list(range(2, TASKS))


@dataclass(frozen=True)
class Setting:
    """A setting. ``shift``, ``noise`` and ``certainty`` are shares of rows, words and probability."""

    seeds: int
    seed: int
    pretraining_steps: int = 3000
    pretraining_batch: int = 32
    pretraining_rate: float = 3e-3
    texts: int = 128
    batch: int = 32
    epochs: int = 16
    rate: float = 1e-3
    shift: float = 0.5
    noise: float = 0.02
    certainty: float = 0.0
    test_texts: int = 192
    samples: int = 100


SMALL: dict[str, Any] = {"pretraining_steps": 1000, "texts": 64, "epochs": 8, "samples": 20, "test_texts": 64}


class World:
    """``data`` (M, B, 1 + T) are texts of the shifted tasks, with noise; ``test_in`` and ``test_out`` have none.

    ``members`` are the teachers of stage 1, ``best_teacher`` the first of them at its best epoch; ``training`` makes
    them, and ``rho_reference``, on demand.
    """

    def __init__(self, setting: Setting, language: Language, base: Stacked) -> None:
        self.setting = setting
        self.language = language
        self.base = base
        generator = torch.Generator().manual_seed(setting.seed + 1)
        shifted = language.shifted(len(IN_TASKS), setting.shift, generator)
        self.shifted = shifted.certain(len(IN_TASKS), setting.certainty)
        self.data = self.shifted.sample(IN_TASKS, setting.texts, generator, setting.noise)
        self.holdout = self.shifted.sample(IN_TASKS, max(4, setting.texts // 10), generator, setting.noise)
        self.test_in = self.shifted.sample(IN_TASKS, setting.test_texts, generator)
        self.test_out = language.sample(OUT_TASKS, setting.test_texts, generator)
        self.order = [torch.randperm(setting.texts, generator=generator) for _ in range(setting.epochs)]
        self.members: list[Stacked] = []
        self.best_teacher: Stacked | None = None
        self.rho_reference: Stacked | None = None

    def teachers(self, arm: Arm) -> list[Stacked]:
        """The teachers of an arm, which stage 1 has made."""
        if arm.teacher == "best":
            assert self.best_teacher is not None
            return [self.best_teacher]
        return self.members[: arm.members]

    def order_of(self, member: int) -> list[torch.Tensor]:
        """The order of the texts in each epoch, for a member of the teacher; all arms use that of the first."""
        if member == 0:
            return self.order
        generator = torch.Generator().manual_seed(self.setting.seed + 1000 + member)
        return [torch.randperm(self.setting.texts, generator=generator) for _ in self.order]

    def changed(self, **fields: Any) -> World:
        """The same languages and pretrained models in another setting."""
        return World(replace(self.setting, **fields), self.language, self.base)
