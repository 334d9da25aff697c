"""The demo, whole, on a tiny model; and, slowly, on the real one."""

import json
import re

import pytest

from helpers.tiny import save_tiny
from tools import demos
from uncertune.cli import main

ARMS = ("mle", "masked_mle", "masked_mle_distill", "anchor")
SMALL = {
    "arms": ",".join(ARMS),
    "train_problems": 8,
    "batch_size": 4,
    "test_problems": 3,
    "general_prompts": 2,
    "max_new_tokens": 4,
    "learning_rate": 0.01,
}


def options(folder, **more):
    fields = {**SMALL, "output_dir": folder / "demo", **more}
    return ["demo", *(part for name, value in fields.items() for part in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    model = save_tiny(folder / "tiny", marked=True)
    assert main(options(folder, model=model)) == 0
    return folder


def test_what_it_leaves_behind(demo):
    out = demo / "demo"
    for arm in ARMS:
        for name in ("config.yaml", "environment.json", "metrics.jsonl", "adapter_model.safetensors", "report.html"):
            assert (out / arm / name).is_file(), f"{arm}/{name}"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "--train_problems 8 --batch_size 4 --learning_rate 0.01" in page
    for text in ("masked MLE + distillation", "KL from base", "exact match", "Which tokens are selected", "Answers"):
        assert text in page
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page), "the page loads something from elsewhere"
    assert "masked MLE + distillation" in (out / "table.md").read_text(encoding="utf-8")


def test_the_measures(demo):
    measures = json.loads((demo / "demo" / "measures.json").read_text(encoding="utf-8"))["measures"]
    assert set(measures) == {"base", *ARMS}
    assert (measures["base"]["kl"], measures["base"]["kept"]) == (0, 1)
    assert measures["anchor"]["kl"] < measures["mle"]["kl"]
    for arm in ARMS:
        assert 0 <= measures[arm]["kept"] <= 1
        assert measures[arm]["kl"] > 0
        assert 0 <= measures[arm]["exact_match"] <= 1
        assert measures[arm]["loss"] < measures["base"]["loss"]
    assert len({round(measures[arm]["loss"], 6) for arm in ARMS}) == len(ARMS)


def test_several_seeds_in_one_table(demo, tmp_path):
    """``tools.demos``: another seed whose masked MLE solves one problem more than MLE, and refused where it differs."""
    one = json.loads((demo / "demo" / "measures.json").read_text(encoding="utf-8"))
    for seed, more in ((0, 0.0), (1, 1 / 3)):
        one["settings"]["seed"] = seed
        one["measures"]["masked_mle"]["exact_match"] = one["measures"]["mle"]["exact_match"] + more
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "measures.json").write_text(json.dumps(one))
    folders = [str(tmp_path / f"seed-{seed}") for seed in (0, 1)]
    demos.main(str(tmp_path / "both"), *folders)
    assert main(["report", str(tmp_path / "both")]) == 0
    rows = [line for line in (tmp_path / "both" / "sweep.md").read_text().splitlines() if "masked\\_mle-loss" in line]
    assert any("Δ +16.67% \\[−195.10, +228.44\\]" in line for line in rows)
    one["settings"]["test_problems"] = 5
    (tmp_path / "seed-1" / "measures.json").write_text(json.dumps(one))
    with pytest.raises(ValueError, match="differ in more than their seed"):
        demos.main(str(tmp_path / "other"), *folders)


def test_arms_start_alike_and_see_the_same_data(demo):
    first = {}
    for arm in ARMS:
        lines = (demo / "demo" / arm / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        first[arm] = (
            next(row["eval_loss"] for row in rows if row["kind"] == "eval"),
            [row["num_tokens"] for row in rows if row["kind"] == "step"],
        )
    assert all(one == first["mle"] for one in first.values())


def test_a_second_call_only_prints(demo, capsys):
    before = (demo / "demo" / "mle" / "adapter_model.safetensors").stat().st_mtime_ns
    assert main(options(demo, model=demo / "tiny")) == 0
    out = capsys.readouterr().out
    assert "masked MLE + distillation" in out
    assert "report.html" in out
    assert (demo / "demo" / "mle" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"train_problems": 0}, "train_problems must be at least 1"),
        ({"selection_fraction": 2}, "selection_fraction"),
        ({"arms": "mle,dft"}, "arms: 'dft' is unknown: choose from mle, masked_mle, masked_mle_distill, anchor"),
        ({"arms": "anchor"}, "arms lacks 'mle', which the others are compared with: add it"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"seed": 1}, "holds another run"),
        ({"sed": 1}, "did you mean 'seed'?"),
    ],
)
def test_mistakes_are_one_line(demo, capsys, more, message):
    assert main(options(demo, **{"model": demo / "tiny", **more})) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("uncertune: error: ")
    assert message in error


@pytest.mark.slow
def test_the_real_model_learns_and_the_method_forgets_less(tmp_path):
    """A short run of SmolLM2-135M: every arm learns the format; distillation stays nearer to the base than its mask."""
    arguments = options(
        tmp_path,
        model="smollm2-135m",
        arms="mle,masked_mle,masked_mle_distill",
        train_problems=80,
        batch_size=8,
        max_new_tokens=60,
        learning_rate=1e-4,
    )
    assert main(arguments) == 0
    measures = json.loads((tmp_path / "demo" / "measures.json").read_text(encoding="utf-8"))["measures"]
    for arm in ("mle", "masked_mle", "masked_mle_distill"):
        assert measures[arm]["loss"] < 0.8 * measures["base"]["loss"]
    assert measures["masked_mle_distill"]["loss"] < measures["masked_mle"]["loss"]
