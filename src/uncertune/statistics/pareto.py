"""The Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which points are on the Pareto front if lower is better in every coordinate.

    A point is on the front if no other is ≤ in all coordinates and < in at least one. Coordinates that are not finite
    are not compared.
    """

    def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        pairs = [(a, b) for a, b in zip(one, other, strict=True) if np.isfinite(a) and np.isfinite(b)]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [not any(dominates(other, one) for other in points) for one in points]
