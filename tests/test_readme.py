"""The README's Python runs as it stands, but for the model, which is a tiny one."""

import re
from pathlib import Path

import pytest

from helpers.tiny import save_tiny

README = Path(__file__).parent.parent / "README.md"


def test_the_code_works(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    save_tiny("tiny", marked=True)
    for code in blocks:
        assert "smollm2-135m" in code
        exec(compile(code.replace("smollm2-135m", "./tiny"), "README.md", "exec"), {})
    for run in ("mle", "masked_mle_distill"):
        assert (tmp_path / "runs" / run / "adapter_model.safetensors").is_file()
    assert (tmp_path / "paris.svg").is_file()


@pytest.mark.parametrize(
    "folder", re.findall(r"^\| `(src/[^`]*|tests)`", README.read_text(encoding="utf-8"), re.MULTILINE)
)
def test_the_map_names_what_exists(folder):
    assert (README.parent / folder).exists()
