"""What each token is asked for: the weights ``w_t(x)`` of eq. 1, and the loss that consumes them."""

from uncertune.objectives.catalogue import OBJECTIVES, Objective, clipped_advantage
from uncertune.objectives.loss import weighted_nll
from uncertune.objectives.targets import MAX_DENSE_VOCABULARY, FactoredTeacher, SparseTeacher, Targets, TeacherLike

__all__ = [
    "MAX_DENSE_VOCABULARY",
    "OBJECTIVES",
    "FactoredTeacher",
    "Objective",
    "SparseTeacher",
    "Targets",
    "TeacherLike",
    "clipped_advantage",
    "weighted_nll",
]
