"""Mutations of the source that a test must notice: ``python -m tools.mutations [ROOM|FILE …]``.

Each entry of ``tools.mutation_list`` changes one place of a file in a copy of the repository; its tests then run there,
stopping at the first failure. A mutation is killed if they fail and survives if they pass. One that no test can notice
says why, and is not run. The tests must pass without a mutation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "tests", "tools", "docs", "benchmarks", "examples")
"""What the tests read; the rest of the repository is not copied."""
LIMIT = 300
"""Seconds after which tests that do not end count as failed."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "transformers", "trl", "peft", "datasets", "scipy.stats", "pytest"])
"""Test runs fork from a process that has imported what takes long and is never mutated."""


def copy_of_the_repository(folder: Path) -> Path:
    """A copy whose source may be changed."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (one for one in ROOT.iterdir() if one.is_file()):
        shutil.copy2(path, folder / path.name)
    return folder


def status(root: Path, tests: Sequence[str]) -> int:
    """What pytest returns in the copy: 0 where the tests pass, 1 where one fails or they do not end."""
    process = _CONTEXT.Process(target=_tests, args=(str(root), list(tests)))
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return 1
    return process.exitcode if process.exitcode is not None and process.exitcode >= 0 else 1


def _tests(root: str, tests: list[str]) -> None:
    """Run the tests of a copy of the repository in this process."""
    os.chdir(root)
    sys.path[:0] = [os.path.join(root, "src"), root]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    sys.dont_write_bytecode = True
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    import pytest

    sys.exit(
        int(
            pytest.main(
                ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow and not browser", *tests]
            )
        )
    )


def mutated(mutation: Mutation, text: str) -> str:
    """The text with the mutation. Raises ValueError if ``old`` does not occur exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file}: {mutation.old!r} occurs {text.count(mutation.old)} times, not once")
    return text.replace(mutation.old, mutation.new)


def outcome(root: Path, mutation: Mutation) -> str:
    """``killed``, ``SURVIVED``, or ``explained`` with the reason. Raises ValueError where the tests cannot run."""
    if mutation.why:
        return f"explained: {mutation.why}"
    path = root / "src" / "uncertune" / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(mutated(mutation, text), encoding="utf-8")
    try:
        found = status(root, mutation.asked)
    finally:
        path.write_text(text, encoding="utf-8")
    if found not in (0, 1):
        raise ValueError(f"{mutation.file}: {mutation.new!r}: pytest ends with status {found}, not with a failed test")
    return "killed" if found else "SURVIVED"


def main() -> int:
    """Print a line a mutation and a table of the rooms; 1 if one survives that is not explained."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutations", description=__doc__.partition("\n")[0])
    known = list(dict.fromkeys(name for one in MUTATIONS for name in (one.room, one.file)))
    parser.add_argument("rooms", nargs="*", choices=[[], *known], metavar="ROOM", help="rooms or files to mutate; all")
    rooms = parser.parse_args().rooms or list(dict.fromkeys(one.room for one in MUTATIONS))
    mutations = [one for one in MUTATIONS if one.room in rooms or one.file in rooms]
    for one in mutations:
        mutated(one, (ROOT / "src" / "uncertune" / one.file).read_text(encoding="utf-8"))
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_the_repository(Path(folder))
        for tests in dict.fromkeys(one.asked for one in mutations if not one.why):
            if status(root, tests) != 0:
                raise ValueError(f"{' '.join(tests)}: the tests fail without a mutation")
        for one in mutations:
            found = outcome(root, one)
            counts.update((name, found.partition(":")[0]) for name in {one.room, one.file, "all"})
            print(f"{found:<10} {one.file}: {one.old!r} -> {one.new!r}", flush=True)
    print("\n| room | mutations | killed | survived | explained |\n|---|---|---|---|---|")
    for room in (*rooms, "all"):
        found = [counts[room, what] for what in ("killed", "SURVIVED", "explained")]
        print(f"| {room} | {sum(found)} | {' | '.join(map(str, found))} |")
    return 1 if counts["all", "SURVIVED"] else 0


if __name__ == "__main__":
    sys.exit(main())
