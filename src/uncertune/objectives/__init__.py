"""What each token is asked for: the weights ``w_t(x)`` of eq. 1, and the loss that consumes them."""

from uncertune.objectives.advantages import clip_binds, clipped_advantage, group_advantages
from uncertune.objectives.catalogue import IGNORED, OBJECTIVES, Objective
from uncertune.objectives.head import Finish, Head
from uncertune.objectives.loss import weighted_nll
from uncertune.objectives.targets import MAX_DENSE_VOCABULARY, FactoredTeacher, SparseTeacher, Targets, TeacherLike

__all__ = [
    "IGNORED",
    "MAX_DENSE_VOCABULARY",
    "OBJECTIVES",
    "FactoredTeacher",
    "Finish",
    "Head",
    "Objective",
    "SparseTeacher",
    "Targets",
    "TeacherLike",
    "clip_binds",
    "clipped_advantage",
    "group_advantages",
    "weighted_nll",
]
