"""``uncertune sweep``: what is multiplied, what is shared, what is kept, what is tried again, and the table."""

import csv
import gc
import gzip
import hashlib
import json
import os
import re
import shutil
import warnings
import weakref
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import yaml

from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.cli.sweep import parse
from uncertune.sweep import runs
from uncertune.sweep.plan import plan
from uncertune.sweep.sweep import sweep

ADAPTER = "adapter_model.safetensors"
ARMS = [{"objective": ["masked_mle", "masked_mle_distill"], "selection_fraction": [0.5]}]
NAMES = ["mle", "masked_mle-loss-0.5", "masked_mle_distill-loss-0.5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), marked=True, max_position_embeddings=4096))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty conversations without a test split, and three texts."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"instruction": f"Say {n}.", "output": f"{n}, {n * n}, {'yes' if n % 3 else 'no'}."} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.txt").write_text("One fish.\nTwo fish, red fish.\nBlue fish!\n")
    return folder


@pytest.fixture
def write(model, data, tmp_path):
    """A function that writes the file of a sweep: ``sweep`` and other fields over the small ones here."""

    def to_file(sweep=None, **settings):
        own = {"arms": ARMS, "seeds": [3, 5], "held_out": 4, "documents": 3, "out": str(data / "texts.txt")}
        fields = {
            "model_name_or_path": model,
            "dataset_name": str(data / "rows.jsonl"),
            "max_train_samples": 8,
            "assistant_only_loss": True,
            "use_peft": True,
            "lora_r": 2,
            "lora_target_modules": "all-linear",
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 0.01,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "probe_steps": 0,
            "report_to": "none",
            "sweep": {**own, **(sweep or {})},
            **settings,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(fields, sort_keys=False))
        return str(path)

    return to_file


def run(path, out, *flags):
    return main(["sweep", "--config", path, "--output_dir", str(out), *flags])


def arms(path, *flags):
    return plan(**parse(["--config", path, "--output_dir", "out", *flags])).arms


def digests(folder):
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(f"runs/*/{ADAPTER}")
    }


def test_a_sweep_from_its_file_to_its_table(write, data, tmp_path, capsys):
    out, path = tmp_path / "out", write()
    assert run(path, out) == 0
    found = json.loads((out / "sweep.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == NAMES
    assert found["arms"][1] == {
        "name": "masked_mle-loss-0.5",
        "objective": "masked_mle",
        "metric": "loss",
        "level": "token",
        "q": 0.5,
    }
    assert [(one["arm"], one["seed"], one["status"]) for one in found["runs"]] == [
        (name, seed, "done") for seed in (3, 5) for name in NAMES
    ]
    for one in found["runs"]:
        assert set(one["in"]) == set(one["out"]["texts.txt"]) == {"loss", "accuracy", "ece", "kl"}
        assert one["in"]["loss"] < found["base"]["in"]["loss"]
        assert one["in"]["kl"] > 0
        assert one["minutes"] > 0
        assert one["error"] is None
    assert {path.stem for path in out.glob("runs/*.json")} == set(digests(out))
    assert not (out / "runs/mle-s3/probe.jsonl").exists()
    _check_rows(out, data)
    _check_table(out, found)
    for name in ("sweep.html", "in-against-out.svg"):
        assert (out / name).is_file()
    _check_redrawn(out, capsys)
    _check_resumed(path, out, capsys)
    _check_settings_stay(path, out, capsys)


def _check_rows(out, data):
    """What is measured was not trained on, and both are rows of the data."""
    given = {json.loads(line)["instruction"] for line in (data / "rows.jsonl").read_text().splitlines()}
    asked = {
        name: [
            json.loads(line)["messages"][0]["content"] for line in (out / f"data/{name}.jsonl").read_text().splitlines()
        ]
        for name in ("train-s3", "train-s5", "held_out")
    }
    assert len(asked["held_out"]) == 4
    assert len(asked["train-s3"]) == 8
    assert asked["train-s3"] == asked["train-s5"]
    assert not set(asked["held_out"]) & set(asked["train-s3"])
    assert set(asked["held_out"]) | set(asked["train-s3"]) <= given


def _check_table(out, found):
    """The page's table says what numpy says of sweep.csv."""
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 1 + len(found["runs"])
    loss = {(row["arm"], row["seed"]): float(row["in loss"]) for row in rows}
    gains = [1 - loss[NAMES[1], seed] / loss["mle", seed] for seed in ("3", "5")]
    page = (out / "sweep.md").read_text().replace("\\_", "_").replace("−", "-")
    assert f"\n{found['model']} trained on " in page
    assert "/" not in found["model"]
    assert re.search(rf"\| {NAMES[1]} \| 2 \| {100 * np.mean(gains):+.2f}%", page)


def _check_redrawn(out, capsys):
    """``uncertune report`` writes the same pages again, of the sweep and of a run, and nothing where there is none."""
    pages = [out / "sweep.html", out / "runs/mle-s3/report.html"]
    before = [page.read_bytes() for page in pages]
    for page in pages:
        page.unlink()
    capsys.readouterr()
    assert main(["report", *(str(page.parent) for page in pages)]) == 0
    assert [page.read_bytes() for page in pages] == before
    elsewhere = out.parent / "pages"
    assert main(["report", str(out), "--output_dir", str(elsewhere)]) == 0
    assert (elsewhere / "sweep.html").read_bytes() == before[0]
    assert main(["report", str(out), str(pages[1].parent), "--output_dir", str(elsewhere)]) == 2
    assert "is not a run's folder: with output_dir, several runs share one page" in capsys.readouterr().err
    assert main(["report", str(out / "data")]) == 2
    assert "holds no sweep (sweep.json), no comparison" in capsys.readouterr().err


def _check_resumed(path, out, capsys):
    """Once more: nothing is trained or measured, and a new arm finds its teacher there."""
    before = digests(out)
    table = (out / "sweep.json").read_text()
    capsys.readouterr()
    assert run(path, out) == 0
    said = capsys.readouterr().err
    assert "==" not in said
    assert (out / "sweep.json").read_text() == table
    more = yaml.safe_load(Path(path).read_text())
    more["sweep"]["arms"].append({"objective": "distill"})
    Path(path).write_text(yaml.safe_dump(more, sort_keys=False))
    assert run(path, out) == 0
    after = digests(out)
    assert set(after) - set(before) == {"distill-s3", "distill-s5"}
    assert {name: after[name] for name in before} == before


def _check_settings_stay(path, out, capsys):
    capsys.readouterr()
    assert run(path, out, "--learning_rate", "0.02") == 2
    said = capsys.readouterr().err
    assert "learning_rate (0.01 there, 0.02 here)" in said
    assert said.count("\n") == 1


def test_a_run_of_a_sweep_is_that_of_train_with_its_own_stage_1(write, tmp_path):
    out, path = tmp_path / "out", write({"seeds": 3})
    assert run(path, out) == 0
    fields = yaml.safe_load(Path(path).read_text())
    for name in ("sweep", "max_train_samples"):
        del fields[name]
    single = {
        **fields,
        "dataset_name": str(out / "data/train-s3.jsonl"),
        "seed": 3,
        "objective": "masked_mle_distill",
        "selection_fraction": 0.5,
        "teacher": "auto",
        "teacher_cache": "hidden",
        "output_dir": str(tmp_path / "single"),
    }
    (tmp_path / "single.yaml").write_text(yaml.safe_dump(single))
    assert main(["train", "--config", str(tmp_path / "single.yaml")]) == 0
    for mine, theirs in (("mle-s3", "stage1"), ("masked_mle_distill-loss-0.5-s3", ".")):
        assert (out / "runs" / mine / ADAPTER).read_bytes() == (tmp_path / "single" / theirs / ADAPTER).read_bytes()
    assert not (out / "runs" / "masked_mle_distill-loss-0.5-s3" / "stage1").exists()


def test_a_failed_run_is_listed_and_tried_again(write, tmp_path, capsys):
    out, path = tmp_path / "out", write({"seeds": [0], "arms": {"objective": "masked_mle"}})
    foreign = out / "runs" / "masked_mle-loss-0.25-s0"
    foreign.mkdir(parents=True)
    (foreign / "adapter_config.json").write_text("{}")
    assert run(path, out) == 1
    assert "failed: masked_mle-loss-0.25-s0" in capsys.readouterr().err
    (failed,) = [one for one in json.loads((out / "sweep.json").read_text())["runs"] if one["status"] == "failed"]
    assert failed["arm"] == "masked_mle-loss-0.25"
    assert "did not start" in failed["error"]
    assert failed["in"] == {}
    before = digests(out)
    shutil.rmtree(foreign)
    assert run(path, out) == 0
    after = digests(out)
    assert after["mle-s0"] == before["mle-s0"]
    assert foreign.name in after
    assert all(one["status"] == "done" for one in json.loads((out / "sweep.json").read_text())["runs"])


def test_a_run_whose_teacher_failed_says_so(write, tmp_path, capsys, monkeypatch):
    def fail(job):
        raise RuntimeError("the gradient is nan")

    monkeypatch.setattr("uncertune.sweep.runs.run_training", fail)
    assert run(write({"seeds": [0], "arms": {"objective": "masked_mle_distill"}}), tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "mle-s0: RuntimeError: the gradient is nan" in said
    assert "masked_mle_distill-loss-0.25-s0: it needs mle-s0, which has failed" in said


def test_a_failed_run_leaves_memory_to_the_next(write, tmp_path, monkeypatch):
    known, alive = [], []

    class Trainer:
        def __init__(self):
            self.callback = self.__init__  # a cycle, as in every trainer

    def fail(job):
        alive.append([one for one in known if one() is not None])
        trainer = Trainer()
        known.append(weakref.ref(trainer))
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("uncertune.sweep.runs.run_training", fail)
    gc.disable()
    try:
        assert run(write({"seeds": [0], "arms": {"objective": "masked_mle"}}), tmp_path / "out") == 1
    finally:
        gc.enable()
    assert alive == [[], []]


def test_a_worker_takes_its_gpu_without_counting_them(monkeypatch):
    queue: SimpleQueue = SimpleQueue()
    queue.put(3)
    monkeypatch.setattr("torch.cuda.device_count", None)
    monkeypatch.setattr("uncertune.runs.notes.SHARED", False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    runs._start(queue, 4, 2, list(warnings.filters), False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"


def test_processes_side_by_side_give_the_same_bytes_and_are_as_quiet(write, tmp_path, capfd):
    path = write({"arms": {"objective": ["distill", "masked_mle"]}, "seeds": [0]})
    assert run(path, tmp_path / "one") == 0
    shown = capfd.readouterr().err.splitlines()
    assert "distill-s0 is done: 2 of 3 runs done" in shown
    assert "== mle-s0: tokens:held_out.jsonl" in shown
    assert run(path, tmp_path / "two", "--jobs", "2", "--quiet") == 0
    assert capfd.readouterr().err == ""
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert one == two
    assert len(one) == 3


def test_the_reference_of_rho_is_trained_once_a_seed_on_rows_of_its_own(write, tmp_path):
    grid = {"objective": "masked_mle", "selection_metric": ["rho", "loss"], "selection_fraction": [0.25, 0.5]}
    out = tmp_path / "out"
    assert run(write({"arms": grid, "seeds": [1], "fresh_rows": True}), out) == 0
    assert {name for name in digests(out) if "rho" in name} == {
        "rho_reference-s1",
        "masked_mle-rho-0.25-s1",
        "masked_mle-rho-0.5-s1",
    }
    rows = {name: (out / f"data/{name}-s1.jsonl").read_text().splitlines() for name in ("train", "rho_reference")}
    assert len(rows["train"]) == 7
    assert len(rows["rho_reference"]) == 1
    assert not set(rows["train"]) & set(rows["rho_reference"])
    found = json.loads((out / "sweep.json").read_text())
    assert "rho_reference" not in {one["arm"] for one in found["runs"]}


def test_each_seed_may_train_on_rows_of_its_own(write, tmp_path):
    out = tmp_path / "out"
    path = write({"arms": {"objective": "mle"}, "fresh_rows": True})
    assert run(path, out, "--max_train_samples", "6", "--dataset_train_split", "train") == 0
    three, five = ((out / f"data/train-s{seed}.jsonl").read_text() for seed in (3, 5))
    assert three != five
    assert three.count("\n") == five.count("\n") == 6
    assert not set((three + five).splitlines()) & set((out / "data/held_out.jsonl").read_text().splitlines())


def test_only_what_makes_sense_is_multiplied(write):
    grid = {
        "objective": ["mle", "distill", "truncated_distill", "masked_mle"],
        "selection_metric": ["loss", "bald"],
        "selection_fraction": [0.1, 0.25],
        "bald_samples": [2, 4],
        "teacher_top_k": [8, 64],
    }
    found = arms(write({"arms": grid}))
    nothing = {"metric": None, "level": None, "q": None}
    assert found[2].axes == {"objective": "truncated_distill", **nothing, "teacher_top_k": 8}
    assert found[-1].axes == {
        "objective": "masked_mle",
        "metric": "bald",
        "level": "token",
        "q": 0.25,
        "bald_samples": 4,
    }
    assert [arm.name for arm in found] == [
        "mle",
        "distill",
        "truncated_distill-top_k_8",
        "truncated_distill",
        "masked_mle-loss-0.1",
        "masked_mle-loss-0.25",
        "masked_mle-bald-0.1-bald_samples_2",
        "masked_mle-bald-0.1-bald_samples_4",
        "masked_mle-bald-0.25-bald_samples_2",
        "masked_mle-bald-0.25-bald_samples_4",
    ]


def test_a_refused_arm_is_one_line_and_the_others_stay(write, capsys):
    grid = {"objective": "masked_mle", "selection_metric": ["random", "loss"], "selection_scope": "running"}
    assert [arm.name for arm in arms(write({"arms": grid}))] == ["mle", "masked_mle-loss-0.25-running"]
    said = capsys.readouterr().err
    assert said.startswith("refused: masked_mle-random-0.25-running: selection_scope='running'")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("own", "settings", "said"),
    [
        ({"arms": {"objective": "mel"}}, {}, "objective must be one of"),
        ({"arms": {"objective": "mle", "learning_rate": [1, 2]}}, {}, "'learning_rate' cannot be varied"),
        ({"arms": {"selection_fraction": 0.5}}, {}, "each with an objective"),
        ({"seeds": [1, 1]}, {}, "seeds names 1 twice: keep one"),
        ({"seeds": [0, 1.5]}, {}, "seeds must be a whole number"),
        ({"seeds": "one"}, {}, "seeds must be a whole number"),
        ({"held_out": 20}, {}, "held_out: 20 rows are as many as the data has"),
        ({"speed": 1}, {}, "unknown field 'speed'"),
        ({"measure_every": "often"}, {}, "measure_every must be epoch, end or a number of steps"),
        ({"measure_every": 0}, {}, "measure_every must be epoch"),
        ({}, {"seed": 3}, "seed is set by the sweep: give sweep.seeds"),
        ({}, {"lerning_rate": 3}, "unknown field 'lerning_rate'"),
        ({}, {"dataset_name": "no/such/file.jsonl"}, "no such file"),
    ],
)
def test_a_mistake_is_one_line(write, tmp_path, capsys, own, settings, said):
    assert run(write(own, **settings), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_a_sweep_needs_its_file(capsys):
    assert main(["sweep", "--output_dir", "x"]) == 2
    assert "--config is missing" in capsys.readouterr().err


def test_whole_models_are_swept_too_without_a_divergence_from_the_base(write, tmp_path):
    out = tmp_path / "out"
    settings = {"use_peft": False, "lora_r": 16, "lora_target_modules": None}
    assert run(write({"arms": {"objective": "masked_mle_distill"}, "seeds": [0]}, **settings), out) == 0
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [one["status"] for one in runs] == ["done", "done"]
    assert set(runs[1]["in"]) == {"loss", "accuracy", "ece"}
    assert runs[0]["in"]["loss"] != runs[1]["in"]["loss"]


def test_answers_to_the_datas_own_task_are_in_distribution(write, tmp_path):
    pytest.importorskip("lm_eval")
    for split, start in (("train", 10), ("test", 30)):
        rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}\n#### {n + 1}"} for n in range(start, start + 8)]
        with gzip.open(tmp_path / f"gsm8k_{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    out = tmp_path / "out"
    own = {"arms": {"objective": "mle"}, "seeds": [0], "out": "", "documents": 2, "tasks": "gsm8k", "limit": 1}
    assert run(write(own, dataset_name="gsm8k", data_dir=str(tmp_path)), out) == 0
    found = json.loads((out / "sweep.json").read_text())
    assert found["in_data"] == "gsm8k@test"
    assert {"loss", "kl", "exact_match,strict-match"} <= set(found["runs"][0]["in"])
    assert found["runs"][0]["out"] == {}
    assert not (out / "data" / "held_out.jsonl").exists()


def test_every_epoch_is_measured_and_the_best_checkpoint_stays(write, tmp_path, capsys):
    out = tmp_path / "out"
    path = write({"arms": {"objective": "distill"}, "seeds": [0]}, num_train_epochs=3, learning_rate=0.05)
    assert run(path, out) == 0
    found = json.loads((out / "sweep.json").read_text())
    for one in found["runs"]:
        assert [(point["step"], point["epoch"]) for point in one["curve"]] == [(2, 1.0), (4, 2.0), (6, 3.0)]
        assert all(set(point["in"]) == {"loss", "accuracy", "ece", "kl"} for point in one["curve"])
        assert one["curve"][-1]["in"] == one["in"]
        assert len({point["in"]["loss"] for point in one["curve"]}) == 3
        assert one["measuring_minutes"] > 0
        losses = [point["in"]["loss"] for point in one["curve"]]
        best = 2 * (1 + losses.index(min(losses)))
        kept = [folder.name for folder in (out / f"runs/{one['arm']}-s0").glob("checkpoint-*")]
        assert kept == ([f"checkpoint-{best}"] if best < 6 else [])
    assert not list(out.glob("runs/*/checkpoint-*/optimizer.pt"))
    assert (out / "trajectories.svg").is_file()
    assert "Kept at its best epoch" in (out / "sweep.md").read_text()
    _check_measured_once(path, out, capsys)


def _check_measured_once(path, out, capsys):
    """Nothing is trained or measured again, although checkpoints are gone."""
    before = (out / "sweep.json").read_text()
    capsys.readouterr()
    assert run(path, out) == 0
    assert "==" not in capsys.readouterr().err
    assert (out / "sweep.json").read_text() == before


def test_the_last_step_of_a_run_measured_every_n_steps_is_its_end(write, tmp_path):
    out = tmp_path / "out"
    path = write({"arms": {"objective": "mle"}, "seeds": [0]}, num_train_epochs=2)
    given = parse(["--config", path, "--output_dir", str(out)])
    done = sweep(given["settings"], {"objective": "mle"}, out, seeds=[0], held_out=given["held_out"], measure_every=3)
    assert (done.page, done.failed) == (out / "sweep.html", ())
    (only,) = json.loads((out / "sweep.json").read_text())["runs"]
    assert [point["step"] for point in only["curve"]] == [3, 4]


def test_the_family_is_multiplied_too(write):
    grids = [
        {"objective": "mle", "token_weighting": ["none", "dft"], "anchor": ["none", "base"]},
        {"objective": "masked_mle", "selection_order": "lowest", "selection_fraction": 0.75},
        {"objective": ["mle", "distill"], "label_smoothing_factor": 0.1},
    ]
    found = arms(write({"arms": grids}))
    assert [arm.name for arm in found] == [
        "mle",
        "mle-anchor_base",
        "mle-dft",
        "mle-dft-anchor_base",
        "masked_mle-loss-0.75-lowest",
        "mle-label_smoothing_factor_0.1",
        "distill",  # which has no label term
    ]
    assert found[1].axes["anchor"] == "base"
    assert "token_weighting" not in found[1].axes
