"""The notebook runs from top to bottom as it stands, on a tiny model."""

import json
import re
from pathlib import Path

import pytest

from helpers.tiny import save_tiny

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


def test_it_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


def test_it_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the Python package nbclient")
    import nbformat

    monkeypatch.setenv("QUICKSTART_MODEL", str(save_tiny(tmp_path / "tiny", marked=True)))
    monkeypatch.setenv("QUICKSTART_PROBLEMS", "8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    printed = "".join(one.get("text", "") for one in outputs)
    table = re.findall(r"^(base|mle|masked_mle_distill) +(\d+\.\d{3}) +(\d+\.\d{3})$", printed, re.MULTILINE)
    losses = {name: float(inside) for name, inside, _ in table}
    assert losses["mle"] != losses["base"]
    assert losses["masked_mle_distill"] != losses["mle"]
    assert any("srcdoc" in one.get("data", {}).get("text/html", "") for one in outputs)
    assert (tmp_path / "runs" / "masked_mle_distill" / "adapter_model.safetensors").is_file()
