"""What the README, and the pages that a newcomer reads next, show works as it stands, with a tiny model."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig, ScriptArguments

from helpers.tiny import save_tiny
from uncertune import UncertuneConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCORE = (ROOT / "docs" / "how-to" / "score.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial" / "first_run.md").read_text(encoding="utf-8")
METHOD = ("objective", "teacher")  # of the README's first file, which the other snippets replace


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_the_code_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny("tiny", marked=True)
    (trained,), (scored,) = blocks(README, "python"), blocks(SCORE, "python")
    for code in (trained, scored):
        assert "smollm2-135m" in code
        exec(compile(code.replace("smollm2-135m", "./tiny"), "README.md", "exec"), {})
    for run in ("mine", "mine/stage1"):
        assert (tmp_path / "runs" / run / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert (tmp_path / "paris.svg").is_file()


def files():
    whole, *methods = [yaml.safe_load(block) for block in blocks(README, "yaml")]
    assert set(METHOD) <= set(whole)
    assert len(methods) == 2
    rest = {name: value for name, value in whole.items() if name not in METHOD}
    return [whole, *(rest | method for method in methods), *map(yaml.safe_load, blocks(TUTORIAL, "yaml"))]


@pytest.mark.parametrize("fields", files(), ids=["paper", "dft", "anchor", "tutorial"])
def test_a_file_names_fields_that_work_together(fields, tmp_path):
    names = {
        cls: {field.name for field in dataclasses.fields(cls)}
        for cls in (UncertuneConfig, ModelConfig, ScriptArguments)
    }
    assert set(fields) <= set.union(*names.values()) | {"config"}
    ours = {name: value for name, value in fields.items() if name in names[UncertuneConfig]}
    UncertuneConfig(**ours | {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True})


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:src|tests|docs|examples|benchmarks)/[\w./-]+)`", CONTRIBUTING)))
)
def test_contributing_names_what_exists(path):
    assert (ROOT / path).exists()


def test_contributing_names_every_room():
    rooms = [one.name for one in (ROOT / "src" / "uncertune").iterdir() if (one / "__init__.py").is_file()]
    assert [room for room in rooms if f"`src/uncertune/{room}`" not in CONTRIBUTING] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
