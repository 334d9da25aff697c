"""The wheel holds all that the commands need: built, installed into a folder of its own, and used from there."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from helpers.tiny import save_tiny

ROOT = Path(__file__).resolve().parent.parent
DATA_FILES = (".jinja", ".yaml", ".css", ".js", ".html", "py.typed")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and source distribution, built from what git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in listed.stdout.splitlines():
        if name.startswith(("src/", "pyproject", "README", "LICENSE", "MANIFEST")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = dist.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def run(installed, *words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "uncertune.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_nothing_is_missing(dist):
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert wheel.name == f"uncertune-{version}-py3-none-any.whl"
    tracked = subprocess.run(["git", "ls-files", "src/uncertune"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {str(Path(name).relative_to("src")) for name in tracked.stdout.split() if (ROOT / name).is_file()}
    assert {name for name in wanted if name.endswith(DATA_FILES)}
    with zipfile.ZipFile(wheel) as archive:
        assert wanted <= set(archive.namelist())
    with tarfile.open(source) as archive:
        packed = {name.partition("/src/")[2] for name in archive.getnames()}
    assert wanted <= packed


def test_the_commands_run_from_it(installed, tmp_path):
    where = run(installed, "--version", cwd=tmp_path)
    assert where.returncode == 0, where.stderr
    for words in (["--help"], ["train", "--help"], ["study", "polynomial", "--seeds", "2", "--output_dir", "study"]):
        done = run(installed, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "study" / "report.html").is_file()


def test_a_tiny_training_runs_from_it(installed, tmp_path):
    save_tiny(tmp_path / "model", "llama")
    words = ["--model_name_or_path", "model", "--dataset_name", "word_problems", "--output_dir", "run", "--use_peft"]
    words += ["--max_train_samples", "8", "--max_steps", "2", "--per_device_train_batch_size", "4", "--bf16", "false"]
    done = run(installed, "train", *words, "--objective", "masked_mle", "--report_to", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
