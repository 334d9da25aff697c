"""Claims, tests and results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from uncertune.statistics.intervals import Estimate

Side = Literal["above", "below"]


@dataclass(frozen=True)
class Finding:
    """A claim, its test, and its result: an effect that the claim puts above (or below) ``level``."""

    claim: str
    says: str
    test: str
    effect: Estimate
    side: Side
    level: float = 0.0

    @property
    def outcome(self) -> Literal["held", "not held", "undecided"]:
        """Held where the whole interval is on the claimed side, not held where it is on the other."""
        low, high = self.effect.low - self.level, self.effect.high - self.level
        if math.isnan(low) or math.isnan(high) or low <= 0 <= high:
            return "undecided"
        return "held" if (low > 0) == (self.side == "above") else "not held"
