"""The command line: help, and every mistake in one line with status 2."""

import json
import subprocess
import sys

import pytest
import yaml

from helpers.tiny import save_tiny
from uncertune.cli import main

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "model", marked=True)
    save_tiny(folder / "wide", marked=True, vocab_size=300)

    def data(name, *rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    data("good.jsonl", *[ROW] * 4)
    turns = [[{**turn, "content": f"{turn['content']} {number}"} for turn in ROW["messages"]] for number in range(8)]
    data("different.jsonl", *({"messages": one} for one in turns))
    data("empty.jsonl")
    data("silent.jsonl", ROW, {"messages": [{"role": "user", "content": "Hi"}]})
    data("masked.jsonl", *[{"input_ids": [1, 2, 3], "labels": [-100] * 3}] * 4)
    data("uneven.jsonl", *[{"input_ids": [1, 2, 3], "labels": [1, 2]}] * 4)
    (folder / "broken.jsonl").write_text('{"messages": [', encoding="utf-8")
    (folder / "broken.yaml").write_text("a: [", encoding="utf-8")
    (folder / "list.yaml").write_text("- a", encoding="utf-8")
    (folder / "typo.yaml").write_text("selection_fracton: 0.5", encoding="utf-8")
    (folder / "file").write_text("", encoding="utf-8")
    return folder


def words(place, out, **more):
    fields = {
        "model_name_or_path": place / "model",
        "dataset_name": place / "good.jsonl",
        "output_dir": out,
        "assistant_only_loss": True,
        "max_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }
    return ["train", *(w for name, value in fields.items() if value is not None for w in (f"--{name}", str(value)))]


MISTAKES = {
    "unknown flag": ({"selection_fracton": 0.5}, "did you mean 'selection_fraction'?"),
    "unknown field in YAML": ({"config": "{}/typo.yaml"}, "did you mean 'selection_fraction'?"),
    "broken YAML": ({"config": "{}/broken.yaml"}, "not valid YAML"),
    "YAML that is no mapping": ({"config": "{}/list.yaml"}, "must be a YAML mapping"),
    "missing YAML": ({"config": "{}/nowhere.yaml"}, "cannot be read"),
    "missing data": ({"dataset_name": "{}/nowhere.jsonl"}, "nowhere.jsonl"),
    "broken data": ({"dataset_name": "{}/broken.jsonl"}, "broken.jsonl"),
    "empty data": ({"dataset_name": "{}/empty.jsonl"}, "no rows"),
    "no assistant turn": ({"dataset_name": "{}/silent.jsonl"}, "row 1"),
    "all labels masked": ({"dataset_name": "{}/masked.jsonl", "assistant_only_loss": False}, "labels are all -100"),
    "labels of another length": ({"dataset_name": "{}/uneven.jsonl", "assistant_only_loss": False}, "row 0"),
    "fraction 0": ({"objective": "masked_mle", "selection_fraction": 0}, "selection_fraction must be in (0, 1]"),
    "fraction 2": ({"objective": "masked_mle", "selection_fraction": 2}, "selection_fraction must be in (0, 1]"),
    "wrong type": ({"learning_rate": "abc"}, "learning_rate"),
    "unknown objective": ({"objective": "magic"}, "objective"),
    "no teacher": ({"objective": "masked_mle_distill"}, "needs a teacher"),
    "missing teacher": ({"objective": "distill", "teacher": "{}/nowhere"}, "nowhere"),
    "teacher of another vocabulary": ({"objective": "distill", "teacher": "{}/wide"}, "another vocabulary"),
    "teacher without effect": ({"teacher": "auto"}, "has no effect"),
    "folder of somebody else": ({"output_dir": "{}/wide"}, "holds another run"),
    "folder that is a file": ({"output_dir": "{}/file"}, "is a file"),
    "no model": ({"model_name_or_path": None}, "model_name_or_path is missing"),
    "missing model": ({"model_name_or_path": "{}/nowhere"}, "nowhere"),
    "hub model while offline": ({"model_name_or_path": "nobody/nothing"}, "nobody/nothing"),
    "no data": ({"dataset_name": None}, "dataset_name is missing"),
    "hub data while offline": ({"dataset_name": "nobody/nothing"}, "nobody/nothing"),
    "no samples": ({"max_train_samples": 0}, "max_train_samples must be at least 1"),
    "explicit resuming": ({"resume_from_checkpoint": "x"}, "resumes automatically"),
    "nothing to resume from": ({"save_only_model": True}, "save_only_model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(place, tmp_path, capsys, mistake):
    more, message = MISTAKES[mistake]
    more = {k: v.format(place) if isinstance(v, str) else v for k, v in more.items()}
    before = sorted(path for path in place.rglob("*") if path.name != ".lock")
    assert main(words(place, tmp_path / "out", **more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("uncertune: error: ")
    assert message in lines[-1]
    assert sum(line.startswith("uncertune: error") for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    assert sorted(path for path in place.rglob("*") if path.name != ".lock") == before
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "fields",
    [
        {"eval_strategy": "steps", "eval_steps": 100, "load_best_model_at_end": True, "do_eval": True},
        {"resume_from_checkpoint": True},
    ],
    ids=["the best model at the end", "resuming, which it does by itself"],
)
def test_files_of_trl_run_as_they_are(place, tmp_path, fields):
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(fields))
    evaluates = {"dataset_name": place / "different.jsonl", "test_split_size": 0.25}
    given = evaluates if "do_eval" in fields else {}
    assert main(words(place, tmp_path / "out", config=path, **given)) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() or (tmp_path / "out/model.safetensors").is_file()


def test_of_two_data_sets_the_mixture_is_taken_and_it_is_said(place, tmp_path, capsys):
    """As ``trl sft`` does."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(4)))
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{"path": str(tmp_path / "data")}]}))
    assert main(words(place, tmp_path / "out", config=path)) == 0
    assert "good.jsonl' is left out, since datasets is set" in capsys.readouterr().err


def test_the_hub_token_is_written_nowhere(place, tmp_path, monkeypatch):
    arguments = words(place, tmp_path / "out", hub_token="hf_SECRET")
    monkeypatch.setattr(sys, "argv", ["uncertune", *arguments])
    assert main() == 0
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".jsonl", ".html"):
            assert "hf_SECRET" not in path.read_text(encoding="utf-8"), path


def test_unknown_command_and_help(capsys):
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["train", "--help"]) == 0
    help_text = capsys.readouterr().out
    for field in ("--objective", "--selection_fraction", "--teacher", "--overwrite", "--learning_rate"):
        assert field in help_text


def test_help_imports_no_torch():
    code = "import sys; from uncertune.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("peft", [False, True], ids=["dense", "lora"])
def test_a_trl_sft_file_trains_as_trl_sft_does(place, tmp_path, peft):
    """SPEC B7: one file, read by TRL's parser and by ours."""
    from datasets import load_dataset
    from trl import SFTTrainer, get_peft_config
    from trl.scripts import sft

    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"text": f"The {n} quick brown foxes jump over {n * 7} lazy dogs."} for n in range(24)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields = {
        "model_name_or_path": str(place / "model"),
        "dataset_name": str(folder),
        "learning_rate": "1e-4",
        "bf16": False,
        "use_cpu": True,
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        **({"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"} if peft else {}),
    }
    ours = tmp_path / "ours"
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**fields, "output_dir": str(tmp_path / "theirs")}), encoding="utf-8")
    script, training, model, _ = sft.make_parser().parse_args_and_config(
        ["--config", str(path)], fail_with_unknown_args=False
    )
    trainer = SFTTrainer(
        model.model_name_or_path,
        training,
        train_dataset=load_dataset(script.dataset_name)["train"],
        peft_config=get_peft_config(model),
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    path.write_text(yaml.safe_dump({**fields, "output_dir": str(ours)}), encoding="utf-8")
    assert main(["train", "--config", str(path)]) == 0
    lines = (ours / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    mine = [row["loss"] for row in map(json.loads, lines) if row["kind"] == "log" and "loss" in row]
    assert len(theirs) == 5
    assert mine == pytest.approx(theirs, abs=1e-5)
