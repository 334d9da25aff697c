"""Objectives: the weights ``w_t(x)`` of eq. 1 for each token, and the loss that consumes them."""

from uncertune.objectives.advantages import clip_binds, clipped_advantage, group_advantages
from uncertune.objectives.catalogue import IGNORED, OBJECTIVES, Objective, anchored
from uncertune.objectives.head import Finish, Head
from uncertune.objectives.loss import weighted_nll
from uncertune.objectives.targets import (
    MAX_DENSE_VOCABULARY,
    FactoredTeacher,
    FactoredTerm,
    SparseTeacher,
    Targets,
    Teacher,
    TeacherLike,
)
from uncertune.objectives.weighting import TOKEN_WEIGHTINGS, TokenView, Weighting, token_weighting

__all__ = [
    "IGNORED",
    "MAX_DENSE_VOCABULARY",
    "OBJECTIVES",
    "TOKEN_WEIGHTINGS",
    "FactoredTeacher",
    "FactoredTerm",
    "Finish",
    "Head",
    "Objective",
    "SparseTeacher",
    "Targets",
    "Teacher",
    "TeacherLike",
    "TokenView",
    "Weighting",
    "anchored",
    "clip_binds",
    "clipped_advantage",
    "group_advantages",
    "token_weighting",
    "weighted_nll",
]
