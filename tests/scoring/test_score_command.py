"""``uncertune score`` on a tiny model: files, numbers, going on after an interruption, two processes."""

import json
import math
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.scoring import run
from uncertune.scoring.text import score_text
from uncertune.uncertainty import token_uncertainty

SCORE = ["score", "word_problems", "--samples", "4", "--max_samples", "6", "--bootstrap", "50", "--paper"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), marked=True))


@pytest.fixture(scope="module")
def scores(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "s"
    assert main([*SCORE, "--model", model, "--rate", "0.2,0.05", "--output_dir", str(folder)]) == 0
    return folder


def test_the_folder(scores):
    names = {path.name for path in scores.iterdir()} - {".lock"}
    figures = {f"{name}.{suffix}" for name in ("correlations", "losses", "dropout") for suffix in ("png", "svg")}
    assert names == figures | {
        "config.yaml", "environment.json", "run.json", "summary.json", "summary.md", "tokens.html", "tokens.parquet"
    }  # fmt: skip
    assert yaml.safe_load((scores / "config.yaml").read_text())["samples"] == 4
    summary = json.loads((scores / "summary.json").read_text())
    assert summary["documents"] == 6
    assert set(summary["correlation"]) == set(summary["difference"]) == {"pearson", "spearman"}
    assert set(summary["mean_epistemic_by_rate"]) == {"0.05", "0.2"}
    assert "epistemic correlates more with loss than with entropy" in (scores / "summary.md").read_text()
    for shares in summary["hardest"].values():
        assert sum(one["value"] for one in shares.values()) == pytest.approx(1)
    assert "hardest 25% by loss" in (scores / "summary.md").read_text()


def test_the_table_is_what_the_library_computes(scores, model):
    table = pq.read_table(scores / "tokens.parquet").to_pydict()
    assert list(table) == ["document", "position", "token", "text", "rate", *run.QUANTITIES]
    assert sorted(set(table["rate"])) == [0.05, 0.2]
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    from uncertune.data.sources import load

    messages = load("word_problems", max_samples=6)[2]["messages"]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = torch.tensor([encoded["input_ids"]]), torch.tensor([encoded["assistant_masks"]]).bool()
    expected = token_uncertainty(lm, ids, torch.where(mask, ids, -100), samples=4, rate=0.2)
    mine = [i for i, (d, r) in enumerate(zip(table["document"], table["rate"], strict=True)) if (d, r) == (2, 0.2)]
    assert [table["position"][i] for i in mine] == expected.position[:, 1].tolist()
    assert [table["token"][i] for i in mine] == ids[0][mask[0]].tolist()
    assert "".join(table["text"][i] for i in mine) == messages[-1]["content"] + "<|im_end|>"
    for name in run.QUANTITIES:
        assert [table[name][i] for i in mine] == getattr(expected, name).tolist()


def test_an_interrupted_run_goes_on_at_the_document_where_it_stopped(scores, model, tmp_path, monkeypatch, capsys):
    folder, scored = tmp_path / "again", []
    one = run._score_one

    def stops(prepared, row, *args, **kwargs):
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(row.number)
        return one(prepared, row, *args, **kwargs)

    command = [*SCORE, "--model", model, "--rate", "0.2,0.05", "--output_dir", str(folder)]
    monkeypatch.setattr(run, "_score_one", stops)
    assert main(command) == 130
    assert "start again with:\n  uncertune score" in capsys.readouterr().err
    assert not (folder / "tokens.parquet").exists()
    with open(folder / "parts" / "0.jsonl", "a") as file:
        file.write('{"rate": 0.2, "docu')  # and a crash in the middle of a line
    rest = []
    monkeypatch.setattr(run, "_score_one", lambda p, row, *a, **k: rest.append(row.number) or one(p, row, *a, **k))
    assert main(command) == 0
    assert len(scored) + len(rest) == 12
    assert pq.read_table(folder / "tokens.parquet") == pq.read_table(scores / "tokens.parquet")
    monkeypatch.setattr(run, "_score_one", stops)
    assert main([*command, "--bootstrap", "10"]) == 0  # complete: only figures and page are made again
    assert json.loads((folder / "summary.json").read_text())["bootstrap_draws"] == 10


def test_other_scores_are_not_mixed_in(scores, model, capsys):
    before = (scores / "tokens.parquet").read_bytes()
    assert main([*SCORE, "--model", model, "--rate", "0.3", "--output_dir", str(scores)]) == 2
    assert "rates [0.2, 0.05], here it is [0.3]" in capsys.readouterr().err
    assert (scores / "tokens.parquet").read_bytes() == before


def test_the_change_from_other_scores_is_paired(scores, model, tmp_path, capsys):
    other = save_tiny(tmp_path / "other", marked=True, seed=1)
    command = [*SCORE, "--rate", "0.2", "--against", str(scores)]
    assert main([*command, "--model", str(other), "--output_dir", str(tmp_path / "s")]) == 0
    found = json.loads((tmp_path / "s" / "summary.json").read_text())
    before = json.loads((scores / "summary.json").read_text())
    for name in run.QUANTITIES:
        difference = found["mean_nats"][name] - before["mean_nats"][name]
        assert found["change"][name]["value"] == pytest.approx(difference, abs=1e-12)
        assert found["change"][name]["low"] < difference < found["change"][name]["high"]
    for kind, one in found["hardest_change"]["loss"].items():
        difference = found["hardest"]["loss"][kind]["value"] - before["hardest"]["loss"][kind]["value"]
        assert one["value"] == pytest.approx(difference, abs=1e-12)
    text = (tmp_path / "s" / "summary.md").read_text()
    assert "epistemic, mean change from" in text
    assert f"its change from {scores}" in text
    assert main([*command, "--model", str(other), "--max_samples", "5", "--output_dir", str(tmp_path / "t")]) == 2
    assert "against: those scores are of other tokens" in capsys.readouterr().err


def test_two_processes_give_the_same_scores(scores, model, tmp_path):
    folder = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "uncertune.cli", *SCORE, "--model", model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29617"}
    done = subprocess.run(
        [*command, "--rate", "0.2,0.05", "--output_dir", str(folder)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got, expected = pq.read_table(folder / "tokens.parquet"), pq.read_table(scores / "tokens.parquet")
    assert got.select(["document", "position", "token", "text", "rate"]) == expected.select(
        ["document", "position", "token", "text", "rate"]
    )
    for name in run.QUANTITIES:
        torch.testing.assert_close(torch.tensor(got[name].to_pylist()), torch.tensor(expected[name].to_pylist()))


MISTAKES = {
    "no data": (["--model", "{model}"], "data is missing"),
    "no model": (["word_problems"], "model is missing"),
    "no folder": (["word_problems", "--model", "{model}"], "output_dir is missing"),
    "rate": (
        ["word_problems", "--model", "{model}", "--output_dir", "{out}", "--rate", "1.5"],
        "rate must be in (0, 1), got 1.5",
    ),
    "rates": (
        ["word_problems", "--model", "{model}", "--output_dir", "{out}", "--rate", "a,b"],
        "got 'a'",
    ),
    "twice": (["word_problems", "--model", "{model}", "--output_dir", "{out}", "--rate", "0.1,0.1"], "twice"),
    "samples": (["word_problems", "--model", "{model}", "--output_dir", "{out}", "--samples", "0"], "samples must be"),
    "places": (
        ["word_problems", "--model", "{model}", "--output_dir", "{out}", "--places", "mlp", "--max_samples", "1"],
        "mlp",
    ),
    "adapter": (
        ["word_problems", "--model", "{model}", "--output_dir", "{out}", "--adapter", "{model}", "--max_samples", "1"],
        "adapter",
    ),
    "not ours": (["word_problems", "--model", "{model}", "--output_dir", "{model}", "--max_samples", "1"], "not empty"),
    "too short": (
        ["word_problems", "--model", "{model}", "--output_dir", "{out}", "--max_length", "2"],
        "max_length: none of",
    ),
    "data and text": (
        ["word_problems", "--model", "{model}", "--text", "a b"],
        "text: there is data to score already (word_problems)",
    ),
    "text and data's": (
        ["--model", "{model}", "--text", "a b", "--max_samples", "3"],
        "max_samples is for scoring a data set, not --text",
    ),
    "against": (
        ["word_problems", "--model", "{model}", "--output_dir", "{out}", "--against", "{model}"],
        "against: ",
    ),
    "nothing": (["nowhere.jsonl", "--model", "{model}", "--output_dir", "{out}"], "nowhere.jsonl"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, model, tmp_path, capsys):
    words, says = MISTAKES[case]
    assert main(["score", *(word.format(model=model, out=tmp_path / "out") for word in words)]) == 2
    line = [text for text in capsys.readouterr().err.splitlines() if "uncertune: error:" in text]
    assert len(line) == 1
    assert says in line[0]
    assert not (tmp_path / "out" / "run.json").exists() or case == "places"


# ---- one text


def test_the_most_uncertain_tokens_come_last(scores, capsys):
    """Ten of them, highest first, with n and the words before; the claims of the paper only where asked for."""
    text = (scores / "summary.md").read_text()
    table = pq.read_table(scores / "tokens.parquet").to_pylist()
    main_rate = [row for row in table if row["rate"] == 0.2]
    assert f"The 10 of n = {len(main_rate)} tokens" in text
    assert "6 documents are few" in text
    shown = [line for line in text.splitlines() if line.startswith("|") and ": …" in line]
    highest = sorted((row["epistemic"] for row in main_rate), reverse=True)[:10]
    assert [f"{value:.3f}" for value in highest] == [line.split("|")[3].strip() for line in shown]


def test_a_text_on_the_command_line(model, tmp_path, capsys):
    command = ["score", "--text", "One two three.", "--model", model, "--samples", "4", "--rate", "0.2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    found = score_text(lm, tokenizer, "One two three.", samples=4, rate=0.2)
    assert f"{float(found.uncertainty.epistemic.max()):.3f}" in printed
    assert "The 10 of n = 13 tokens" in printed
    assert main([*command, "--output_dir", str(tmp_path / "t")]) == 0
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["tokens.html"]


def test_without_the_papers_claims(model, tmp_path):
    command = [*SCORE[:-1], "--max_samples", "2", "--model", model, "--output_dir", str(tmp_path / "s")]
    assert main(command) == 0
    assert "correlates more with" not in (tmp_path / "s" / "summary.md").read_text()


# ---- one text in a notebook


def test_a_text_shows_itself_in_a_notebook(model, tmp_path):
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    scored = score_text(lm, tokenizer, "<script>alert(1)</script> and so on", samples=3)
    shown = scored._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<script>" not in shown
    assert len(scored.uncertainty.loss) == len(scored.tokens) - 1
    for suffix in (".html", ".png", ".svg"):
        scored.save(tmp_path / f"text{suffix}")
        assert (tmp_path / f"text{suffix}").stat().st_size > 2000
    with pytest.raises(ValueError, match="must end in one of"):
        scored.save(tmp_path / "text.gif")
    with pytest.raises(ValueError, match="quantity"):
        scored.save(tmp_path / "text.png", "surprise")


@pytest.mark.parametrize(("template", "said"), [("own", "Hello<|im_end|>"), ("TRL's", "\nHello<|im_end|>\n")])
def test_a_conversation_is_scored_with_its_prompt(model, template, said):
    from trl.chat_template_utils import qwen2_5_chat_template

    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    if template != "own":
        tokenizer.chat_template = qwen2_5_chat_template
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    scored = score_text(lm, tokenizer, chat, samples=3)
    answer = "".join(token for token, response in zip(scored.tokens, scored.response, strict=True) if response)
    assert answer == said
    assert len(scored.uncertainty.loss) == len(scored.tokens) - 1
    (document,) = scored.page().documents
    marked = [place for place, one in enumerate(document.moments[0].selected) if one]
    assert len(marked) == math.ceil(sum(scored.response) / 4)
    assert all(scored.response[place] for place in marked)
