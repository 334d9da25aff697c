"""What needs a flag of the person at the keyboard: weights stored as a pickle, and code that a model brings."""

import io
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from helpers.judging import write_answers
from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.cli.main import COMMANDS, command_of
from uncertune.models import load_model

ROW = {"messages": [{"role": "user", "content": "Say 1"}, {"role": "assistant", "content": "It is 1."}]}
TRAIN = "--model_name_or_path {model} --dataset_name {data} --assistant_only_loss false --max_steps 1 --use_cpu"
LINES = {
    "train": f"train {TRAIN} --output_dir {{out}} --per_device_train_batch_size 1 --report_to none --disable_tqdm true",
    "check": f"check {TRAIN} --output_dir {{out}}",
    "merge": "merge {adapter} --output_dir {out}",
    "score": "score {data} --model {model} --output_dir {out} --samples 2 --bootstrap 10",
    "score-text": "score --model {model} --text Hello --samples 2",
    "score-adapter": "score --model {plain} --adapter {adapter} --text Hello --samples 2",
    "evaluate": "evaluate {model} --tasks tokens:{data} --output_dir {out}",
    "generate": "generate {model} --prompts {data} --output_dir {out} --max_new_tokens 2",
    "generate-prompt": "generate {model} --prompt Hello --max_new_tokens 2",
    "chat": "chat {model} --max_new_tokens 2",
    "compare": "compare {plain} {adapter} --tasks tokens:{data} --output_dir {out}",
    "compare-judge": "compare {one} {two} --judge {model} --output_dir {out}",
}


def pickled(weights):
    torch.save(
        load_file(weights), weights.with_name({"model": "pytorch_model"}.get(weights.stem, weights.stem) + ".bin")
    )
    weights.unlink()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model and an adapter that are stored as pickles, and what the commands need beside them."""
    folder = tmp_path_factory.mktemp("pickles")
    found = {name: folder / name for name in ("model", "plain", "adapter")}
    for name in ("model", "plain"):
        save_tiny(found[name], max_position_embeddings=4096)
    adapter = get_peft_model(load_model(str(found["plain"])), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(found["adapter"])
    pickled(found["model"] / "model.safetensors")
    pickled(found["adapter"] / "adapter_model.safetensors")
    (folder / "data.jsonl").write_text(f"{json.dumps(ROW)}\n" * 4)
    answers = {name: write_answers(folder / f"{name}.jsonl", {"Hi?": name}) for name in ("one", "two")}
    return {**found, "data": folder / "data.jsonl", **answers}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_pickle_is_refused_until_a_flag_allows_it(places, tmp_path, capsys, monkeypatch, line):
    words = line.format(**places, out=tmp_path / "out").split()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is a pickle, which can run code" in said
    assert "give the flag --allow_pickle" in said
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main([*words, "--allow_pickle"]) == 0, capsys.readouterr().err
    for written in tmp_path.rglob("config.yaml"):
        assert "allow_pickle" not in written.read_text()


@pytest.mark.parametrize("field", ["trust_remote_code", "allow_pickle"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_file_can_grant_trust(tmp_path, capsys, monkeypatch, command, field):
    monkeypatch.chdir(tmp_path)
    if field not in command_of(command).specs and command != "sweep":
        return
    (tmp_path / "run.yaml").write_text(f"{field}: true\n")
    assert main([command, "--config", "run.yaml"]) == 2
    assert f"{field}: a file cannot allow" in capsys.readouterr().err.splitlines()[-1]
    assert [one.name for one in tmp_path.iterdir()] == ["run.yaml"]


def test_nor_within_model_init_kwargs(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("model_init_kwargs: {trust_remote_code: true}\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "trust_remote_code: a file cannot allow" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
