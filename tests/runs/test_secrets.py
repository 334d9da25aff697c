"""Secrets are recognised by their name or by their value in the environment."""

import torch

from helpers.harness import rows, settings
from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.runs.secrets import hidden_in_command, without_secrets

SECRET = "hf_abcdefghijklmnop"


def test_fields_named_as_secrets_are_dropped_at_any_depth():
    given = {
        "hub_token": SECRET,
        "model_init_kwargs": {"token": SECRET, "revision": "main", "more": [{"api_key": SECRET}]},
        "eos_token": "</s>",
        "num_tokens": 3,
        "password": SECRET,
    }
    kept = {"model_init_kwargs": {"revision": "main", "more": [{}]}, "eos_token": "</s>", "num_tokens": 3}
    assert without_secrets(given) == kept


def test_values_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    assert without_secrets({"url": f"https://host/{SECRET}/x"}) == {"url": "https://host/***/x"}


def test_commands_show_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "value-of-the-environment")
    words = ["train", "--hub_token", SECRET, f"--hub-token={SECRET}", "--model_init_kwargs", f'{{"token": "{SECRET}"}}']
    words += ["--eos_token", "</s>", "--run_name", "value-of-the-environment"]
    shown = " ".join(hidden_in_command(words))
    assert SECRET not in shown
    assert "value-of" not in shown
    assert "--eos_token </s>" in shown


def test_pickled_arguments_hold_no_secret(tmp_path):
    trainer = UncertuneTrainer(
        tiny_model("llama", 259),
        settings(tmp_path, hub_token=SECRET, save_strategy="steps", save_steps=1, hub_model_id="someone/mine"),
        train_dataset=rows(),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == SECRET
    saved = [tmp_path / "training_args.bin", tmp_path / "checkpoint-1" / "training_args.bin"]
    assert torch.load(saved[0], weights_only=False).hub_model_id == "someone/mine"
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file
    assert all(file.is_file() for file in saved)
