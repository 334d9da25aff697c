"""``uncertune check``: its numbers counted by hand on a tokenizer of bytes, and nothing written."""

import json
import re

import pytest
import yaml
from transformers import modeling_utils

from tests.helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.cli.check import marked
from uncertune.training.arguments import arguments_of
from uncertune.training.check import look
from uncertune.training.jobs import job_of

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
SPECIAL = re.compile(r"<\|im_start\|>|<\|im_end\|>")


def size(text):
    """Tokens of a text: bytes, and one for each special token."""
    return len(SPECIAL.sub("", text).encode()) + len(SPECIAL.findall(text))


def conversation(question, answer):
    said = f"{answer}<|im_end|>"
    before = f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return size(before), size(said), size(before + said + "\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), marked=True)


def settings(tmp_path, model, rows, **more):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        **more,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    return given


PAIRS = [("Hi?", "Hello."), ("A longer question?", "Y\u00e9s."), ("x" * 40, "No."), ("Why?", "z" * 60)]


def test_messages_are_counted(tmp_path, model, capsys):
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS]
    counts = [conversation(*pair) for pair in PAIRS]
    limit = counts[2][0]  # of the third row nothing of the answer is left
    given = settings(
        tmp_path, model, [{"messages": one} for one in turns], assistant_only_loss=True, max_length=limit,
        objective="masked_mle_distill", teacher="auto",
    )  # fmt: skip
    files = sorted(tmp_path.rglob("*"))
    found = look(job_of(arguments_of(given)))
    kept = [counts[0], counts[1], counts[3]]
    assert (found.rows, found.left_out, found.sequences) == (4, 1, 3)
    assert found.cut == sum(total > limit for *_, total in counts)
    assert found.longest == max(total for *_, total in counts)
    assert found.tokens == sum(min(total, limit) for *_, total in kept)
    assert found.loss_tokens == sum(min(before + said, limit) - before for before, said, _ in kept)
    assert found.steps == 3 * 2  # three rows are two steps of two
    capsys.readouterr()
    assert main(["check", str(tmp_path / "run.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "rows:         4; " in printed
    assert f"with loss:    {found.loss_tokens} tokens ({found.loss_tokens / found.tokens:.1%})" in printed
    assert "⟦Hello.<|im_end|>⟧" in printed or "⟦Y\u00e9s.<|im_end|>⟧" in printed
    (memory,) = [line for line in printed.splitlines() if line.startswith("memory: ")]
    assert memory.endswith(", without teacher and reference models")
    assert len(memory) <= 80
    assert sorted(tmp_path.rglob("*")) == files


def test_references_that_are_trained_first_need_no_second_model(tmp_path, model, monkeypatch):
    given = settings(
        tmp_path, model, [{"prompt": q, "completion": a} for q, a in 3 * PAIRS], use_peft=True,
        objective="masked_mle_distill", selection_metric="rho", rho_reference="auto", teacher="auto", teacher_members=2,
    )  # fmt: skip
    loaded, load = [], modeling_utils.PreTrainedModel.from_pretrained.__func__
    monkeypatch.setattr(
        modeling_utils.PreTrainedModel,
        "from_pretrained",
        classmethod(lambda cls, *words, **named: loaded.append(1) or load(cls, *words, **named)),
    )
    look(job_of(arguments_of(given)))
    assert len(loaded) == 1


def test_prompts_with_completions_are_counted(tmp_path, model):
    given = settings(tmp_path, model, [{"prompt": q, "completion": a} for q, a in PAIRS], max_length=None)
    found = look(job_of(arguments_of(given)))
    completions = [size(f"{answer}<|im_end|>") for _, answer in PAIRS]
    assert (found.rows, found.cut, found.left_out, found.sequences) == (4, 0, 0, 4)
    assert found.tokens == sum(size(question) for question, _ in PAIRS) + sum(completions)
    assert found.loss_tokens == sum(completions)
    assert found.steps == 3 * 2
    assert {pieces[1] for pieces in found.examples} <= {(f"{answer}<|im_end|>", True) for _, answer in PAIRS}
    assert found.trained == found.parameters
    assert found.memory.training == 3 * found.memory.parameters == 12 * found.parameters


def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, model, capsys):
    settings(tmp_path, model, [{"messages": [{"role": "user", "content": "Hi?"}]}], assistant_only_loss=True)
    files = sorted(tmp_path.rglob("*"))
    assert main(["check", "--config", str(tmp_path / "run.yaml")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("uncertune: error: ")
    assert sorted(tmp_path.rglob("*")) == files


def test_trained_tokens_are_marked_and_control_characters_escaped():
    pieces = (("a\x1b[2J\n", False), ("b\x07", True))
    assert marked(pieces, terminal=False) == "a\\x1b[2J\n⟦b\\x07⟧"
    assert marked(pieces, terminal=True) == "a\\x1b[2J\n\x1b[7mb\\x07\x1b[0m"
