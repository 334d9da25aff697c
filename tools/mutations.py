# ruff: noqa: E501
"""Mutations of the source that a test must notice: ``python -m tools.mutations [ROOM …]``.

Each entry changes one place of a file; the tests of its room then run, stopping at the first failure. A mutation is
killed if they fail and survives if they pass. An entry with ``why`` cannot be noticed and says why not: it is not run.
Rooms are added as entries of ``MUTATIONS``, tests of a room in ``TESTS``. The file is restored in any case.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "uncertune"
TESTS = {
    "statistics": (
        "tests/statistics/test_intervals.py",
        "tests/statistics/test_paired.py",
        "tests/scoring/test_correlation.py",
    ),
    "sweep": ("tests/sweep/test_sweep_curves.py", "tests/sweep/test_sweep_page.py"),
}
"""The tests of a room, quick ones only."""


@dataclass(frozen=True)
class Mutation:
    """``old`` occurs once in ``file`` (under ``src/uncertune``) and becomes ``new``; ``why``: it cannot be noticed."""

    file: str
    old: str
    new: str
    why: str = ""

    @property
    def room(self) -> str:
        """The first part of the path."""
        return self.file.partition("/")[0]


MUTATIONS = (
    # ---- statistics
    Mutation("statistics/intervals.py", "(1 + LEVEL) / 2, len(known) - 1)", "(1 + LEVEL) / 2, len(known))"),
    Mutation("statistics/intervals.py", "known.std(ddof=1) / np.sqrt", "known.std(ddof=0) / np.sqrt"),
    Mutation("statistics/intervals.py", "Estimate(mean, mean - half, mean + half)", "Estimate(mean, mean + half, mean - half)"),
    Mutation("statistics/intervals.py", "known = known[np.isfinite(known)]", "known = known"),
    Mutation("statistics/intervals.py", "dtype=np.float64) - np.asarray(baseline", "dtype=np.float64) + np.asarray(baseline"),
    Mutation("statistics/intervals.py", "counts - 1) * spread", "counts) * spread"),
    Mutation("statistics/intervals.py", "np.arange(2, MOST_SEEDS + 1)", "np.arange(3, MOST_SEEDS + 1)"),
    Mutation("statistics/intervals.py", "abs(float(known.mean()))", "float(known.mean())"),
    Mutation("statistics/pareto.py", "all(a <= b for", "all(a < b for"),
    Mutation("statistics/pareto.py", "any(a < b for", "any(a <= b for"),
    Mutation("statistics/findings.py", "or low <= 0 <= high:", "or low <= 0:"),
    Mutation("statistics/findings.py", '(low > 0) == (self.side == "above")', '(low > 0) == (self.side == "below")'),
    Mutation("statistics/findings.py", "self.effect.low - self.level", "self.effect.low + self.level"),
    Mutation("statistics/paired.py", "x.sum() / w.sum())", "x.sum() / len(w))"),
    Mutation("statistics/paired.py", 'method="wilson"', 'method="exact"'),
    Mutation("statistics/paired.py", "_error(x - value * w) / w.sum()", "_error(x) / w.sum()"),
    Mutation("statistics/paired.py", "(x > y).sum()), int((x < y).sum())", "(x < y).sum()), int((x > y).sum())"),
    Mutation("statistics/paired.py", "(len(known) - rank) * p", "len(known) * p"),
    Mutation("statistics/paired.py", "highest = max(highest, min(", "highest = max(0.0, min("),
    Mutation("statistics/paired.py", "for error in errors)) / len(estimates)", "for error in errors))"),
    Mutation("statistics/paired.py", "* count / (count - 1)))", "))"),
    Mutation("statistics/paired.py", "centre = (won - lost) / (count + 2)", "centre = (won - lost) / count"),
    Mutation("statistics/paired.py", "won + lost + 1 - (won", "won + lost - (won"),
    Mutation("statistics/paired.py", "2 * t.sf(abs(value)", "t.sf(abs(value)"),
    Mutation("statistics/paired.py", "square = _t(count) ** 2", "square = 1.96**2"),
    Mutation("statistics/paired.py", "np.cov(x, y) * count", "np.cov(x, y)"),
    Mutation("statistics/paired.py", "(b + root) / a - 1), error", "(b + root) / a), error"),
    Mutation("statistics/bootstrap.py", "[(1 - LEVEL) / 2, (1 + LEVEL) / 2]", "[(1 - LEVEL), LEVEL]"),
    Mutation("statistics/bootstrap.py", "(weights_RG @ sums) / (weights_RG @ counts)", "(weights_RG @ sums) / len(values)"),
    Mutation("statistics/bootstrap.py", "np.random.default_rng(seed)", "np.random.default_rng()"),
    # ---- sweep
    Mutation("sweep/measures.py", "sign = -1.0 if self.main[name] in LOWER else 1.0", "sign = 1.0"),
    Mutation("sweep/measures.py", "sign * one for seed, one in self.differences", "one for seed, one in self.differences"),
    Mutation("sweep/measures.py", 'run["arm"] == arm and run["status"] == "done"', 'run["arm"] == arm'),
    Mutation("sweep/measures.py", "seed: one[seed] - other[seed]", "seed: other[seed] - one[seed]"),
    Mutation("sweep/measures.py", "for one in sets) / len(sets)", "for one in sets)"),
    Mutation("sweep/measures.py", "set.intersection(*map(set, sets))", "set.union(*map(set, sets))"),
    Mutation("sweep/measures.py", "if len(one) > 1]", "if len(one) > 0]"),
    Mutation("sweep/figures.py", "(-one.x.value, -one.y.value)", "(one.x.value, one.y.value)"),
    Mutation("sweep/figures.py", "sum(one.value > 0 for one in gains)", "sum(one.value < 0 for one in gains)"),
    Mutation("sweep/figures.py", "sum(one.low > 0 for one in gains)", "sum(one.high > 0 for one in gains)"),
    Mutation("sweep/gains.py", "str(needed - len(gains))", "str(needed)"),
    Mutation("sweep/gains.py", "found.low > 0 or found.high < 0", "found.low > 0"),
    Mutation("sweep/gains.py", "or found.low == found.high:", "or False:"),
    Mutation("sweep/curves.py", "sign = 1.0 if measure in LOWER else -1.0", "sign = -1.0"),
    Mutation("sweep/curves.py", "(-1.0 if measure in LOWER else 1.0) * (float", "1.0 * (float"),
    Mutation("sweep/curves.py", "level = min(max(", "level = max(max("),
    Mutation("sweep/curves.py", "if x0 < level <= x1:", "if level <= x1:"),
    Mutation("sweep/curves.py", "(level - x0) / (x1 - x0)", "(x1 - level) / (x1 - x0)"),
    Mutation("sweep/curves.py", "_outside_at(ours[seed], level) - _outside_at(baseline", "_outside_at(ours[seed], level) + _outside_at(baseline"),
    Mutation("sweep/curves.py", "for name in names) / len(names)", "for name in names)"),
    Mutation("sweep/claims.py", 'and arm.get("level") == "token":', ":"),
)  # fmt: skip


def killed(mutation: Mutation) -> bool:
    """Whether the tests of its room fail with it. Raises ValueError if ``old`` does not occur exactly once."""
    path = SOURCE / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file}: {mutation.old!r} occurs {text.count(mutation.old)} times, not once")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
    try:
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        return subprocess.run([*command, *TESTS[mutation.room]], cwd=ROOT, capture_output=True).returncode == 1
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Print a line a mutation; 1 if one survives that is not explained."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutations", description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", help="rooms to mutate; all")
    rooms = parser.parse_args().rooms or list(TESTS)
    survived = 0
    for mutation in (one for one in MUTATIONS if one.room in rooms):
        outcome = f"explained: {mutation.why}" if mutation.why else "killed" if killed(mutation) else "SURVIVED"
        survived += outcome == "SURVIVED"
        print(f"{outcome:<10} {mutation.file}: {mutation.old!r} -> {mutation.new!r}", flush=True)
    print(f"{survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
