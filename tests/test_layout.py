"""How the files of the project are cut."""

import ast
from pathlib import Path

from helpers import order

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return names


def test_no_test_file_imports_another():
    """What tests share is in tests/helpers."""
    modules = {test.stem for test in TESTS if test.stem.startswith("test_")}
    found = {path.name: {name for name in imported(path) if modules & set(name.split("."))} for path in TESTS}
    assert {name: others for name, others in found.items() if others} == {}


def test_no_source_file_is_longer_than_400_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_files_that_start_first_exist():
    assert [path for path in order.LONGEST if not (ROOT / path).is_file()] == []
