"""``uncertune study``: what it writes, and how it refuses."""

import csv
import json

import pytest
import torch

from uncertune.cli import main
from uncertune.statistics.intervals import over_seeds
from uncertune.studies import running


@pytest.mark.parametrize("name", ["polynomial", "subset"])
def test_a_study_leaves_figures_numbers_and_a_page(name, tmp_path, capsys):
    assert main(["study", name, "--output_dir", str(tmp_path), "--seeds", "20", "--small"]) == 0
    found = json.loads((tmp_path / "findings.json").read_text())
    assert {one["outcome"] for one in found["findings"]} <= {"held", "not held", "undecided"}
    assert "--seeds 20 --small" in found["command"]
    for figure in tmp_path.glob("fig*.svg"):
        assert figure.with_suffix(".png").stat().st_size > 5000
    assert list(tmp_path.glob("fig*.svg"))
    rows = list(csv.DictReader((tmp_path / "numbers.csv").read_text().splitlines()))
    assert len(rows) > 100
    assert "What came out" in (tmp_path / "report.html").read_text()
    out = capsys.readouterr().out
    assert all(one["says"] in out for one in found["findings"])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        main(["study", "polynomial", "--output_dir", str(tmp_path / name), "--seeds", "4", "--small"])
    assert (tmp_path / "a" / "numbers.csv").read_bytes() == (tmp_path / "b" / "numbers.csv").read_bytes()
    assert (tmp_path / "a" / "fig2c.svg").read_bytes() == (tmp_path / "b" / "fig2c.svg").read_bytes()


def test_the_language_study_end_to_end(tmp_path, monkeypatch):
    """Every question is answered and drawn, on models that hardly learned anything."""
    from uncertune.studies.language import arms, study
    from uncertune.studies.language.family import SETTINGS

    tiny = {"pretraining_steps": 5, "texts": 8, "epochs": 1, "test_texts": 8, "samples": 2}
    monkeypatch.setattr(study, "SMALL", tiny)
    monkeypatch.setitem(SETTINGS, "overfitted", {**SETTINGS["overfitted"], "epochs": 3})
    assert main(["study", "language", "--output_dir", str(tmp_path), "--seeds", "2", "--small"]) == 0
    rows = list(csv.DictReader((tmp_path / "numbers.csv").read_text().splitlines()))
    assert {row["question"] for row in rows} >= {"a", "b", "d", "e"}
    names = {row["arm"] for row in rows if row["question"] == "b"}
    assert {arm.name for arm in arms.table()} <= names
    for name in ("proxies", "frontier", "fraction", "when"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_mnist_on_a_few_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(running.mnist, "PROBED", 50)
    monkeypatch.setattr(running.mnist, "PROBE_TEST", 50)
    arguments = ["study", "mnist", "--output_dir", str(tmp_path), "--seeds", "2", "--small", "--data", "digits"]
    assert main(arguments) == 0
    rows = list(csv.DictReader((tmp_path / "numbers.csv").read_text().splitlines()))
    assert len({row["run"] for row in rows if not row["run"].startswith("C2b")}) == 11


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cifar", "--output_dir", "x"], "name must be one of polynomial, subset"),
        (["subset"], "output_dir is missing"),
        (["subset", "--output_dir", "x", "--seeds", "1"], "seeds must be at least 2"),
        (["subset", "--output_dir", "x", "--data", "mnist"], "data: study subset makes its own data"),
        (["subset", "--output_dir", "x", "--data_dir", "y"], "data_dir: study subset makes its own data"),
        (["mnist", "--output_dir", "x", "--data", "cifar"], "data must be one of mnist, digits; got 'cifar'"),
        (["mnist", "--output_dir", "x", "--data_dir", "/nowhere"], "data_dir: /nowhere has no MNIST"),
        (["mnist", "--output_dir", "x", "--data", "digits", "--data_dir", "y"], "data_dir: digits come with"),
    ],
)
def test_mistakes_are_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_intervals_cover():
    """Student's interval of five normal values holds the mean 95 times in a hundred."""
    torch.manual_seed(0)
    draws = torch.randn(4000, 5).double().numpy()
    covered = [one.low <= 0 <= one.high for one in map(over_seeds, draws)]
    assert 0.94 < sum(covered) / len(covered) < 0.96
