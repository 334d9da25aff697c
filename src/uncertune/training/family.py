"""The fields that combine freely with any objective: token weighting, anchor, teacher of several members (SPEC §8)."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from trl import SFTConfig

from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES, TOKEN_WEIGHTINGS, Weighting, token_weighting
from uncertune.objectives.weighting import parameters
from uncertune.training.fields import ObjectiveFields

WEIGHTING_FIELDS = tuple(f"{name}_{one}" for name in TOKEN_WEIGHTINGS for one in parameters(name))
ANCHOR_FIELDS = ("anchor", "anchor_weight")
FAMILY_FIELDS = ("token_weighting", *WEIGHTING_FIELDS, *ANCHOR_FIELDS, "teacher_members", "label_smoothing_factor")


@dataclass
class FamilyConfig(ObjectiveFields, SFTConfig):
    """Checks and meaning of the fields of token weighting, anchor and several teachers, documented in
    ``UncertuneConfig``."""

    @property
    def uses_anchor(self) -> bool:
        """Whether an anchor has weight."""
        return self.anchor != "none" and self.anchor_weight > 0

    @property
    def weighting(self) -> Weighting | None:
        """The token weighting with its parameters; None for ``none``."""
        return token_weighting(self.token_weighting, self._weighting_options())

    @property
    def label_options(self) -> dict[str, Any]:
        """The keywords of an objective with a label term."""
        return {"token_weighting": self.weighting, "label_smoothing": self.label_smoothing_factor or None}

    @property
    def changes_labels(self) -> bool:
        """Whether the label's term differs from cross-entropy."""
        return self.token_weighting != "none" or self.label_smoothing_factor > 0

    def _weighting_options(self) -> dict[str, Any]:
        return {one: getattr(self, f"{self.token_weighting}_{one}") for one in parameters(self.token_weighting)}

    def _changed(self, names: tuple[str, ...]) -> list[str]:
        """The fields among ``names`` that differ from their default."""
        defaults = {one.name: one.default for one in fields(self) if one.default is not MISSING}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def _map_loss_type(self) -> None:
        """TRL's ``loss_type: dft`` is ``token_weighting: dft``."""
        if self.loss_type == "dft":  # type: ignore[has-type]
            if self.token_weighting not in ("none", "dft"):
                raise UserError(
                    f"loss_type='dft' and token_weighting={self.token_weighting!r} contradict each other: keep one"
                )
            self.token_weighting, self.loss_type = "dft", "nll"

    def _check_family(self, objective: str) -> None:
        self._check_weighting(objective)
        if self.anchor_weight < 0:
            raise UserError(f"anchor_weight must be at least 0, got {self.anchor_weight}")
        if self.anchor == "none" and self._changed(("anchor_weight",)):
            raise UserError("anchor_weight has no effect with anchor='none': set anchor to base, a folder or a hub id")
        if self.anchor == "auto":
            raise UserError("anchor='auto' is not a model: set anchor to base, a folder or a hub id")
        if self.teacher_members < 1:
            raise UserError(f"teacher_members must be at least 1, got {self.teacher_members}")

    def _check_weighting(self, objective: str) -> None:
        for name in self._changed(("token_weighting", "label_smoothing_factor")):
            if "token_weighting" not in OBJECTIVES[objective].uses:
                raise UserError(
                    f"{name}={getattr(self, name)!r} has no effect with objective={objective!r}, which has no label "
                    "term: remove it, or set objective to mle, masked_mle or masked_mle_distill"
                )
        own = [f"{self.token_weighting}_{one}" for one in parameters(self.token_weighting)]
        for name in self._changed(WEIGHTING_FIELDS):
            if name not in own:
                raise UserError(f"{name} has no effect with token_weighting={self.token_weighting!r}: remove it")
        try:
            token_weighting(self.token_weighting, self._weighting_options())
        except ValueError as error:
            raise UserError(str(error)) from None
        if not 0 <= self.label_smoothing_factor < 1:
            raise UserError(f"label_smoothing_factor must be in [0, 1), got {self.label_smoothing_factor}")


def one_or_several(teacher: list[str] | str | None) -> list[str] | str | None:
    """Teachers given as a list or as text with commas; a list of one becomes its element."""
    given = teacher.split(",") if isinstance(teacher, str) else teacher
    if given is None:
        return None
    names = [name.strip() for name in given]
    if not all(names):
        raise UserError(f"teacher: {teacher!r} holds an empty name: give folders or hub ids")
    return names[0] if len(names) == 1 else names
