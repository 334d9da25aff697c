"""``uncertune evaluate``: the numbers of lm-eval and of plain code, going on after an interruption, mistakes."""

import gzip
import io
import json
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.evaluation import harness
from uncertune.runs import notes

pytest.importorskip("lm_eval")

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def rows_of_gsm8k(start):
    return [
        {"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(start, start + 8)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """GSM8K and IFEval in miniature, as local files."""
    folder = tmp_path_factory.mktemp("data")
    ifeval = [
        {
            "key": number,
            "prompt": f"Say {word} in at least three sentences, without commas.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
            "kwargs": [{}, {"relation": "at least", "num_sentences": 3}],
        }
        for number, word in enumerate(WORDS)
    ]
    files = {"gsm8k_train": rows_of_gsm8k(10), "gsm8k_test": rows_of_gsm8k(30), "ifeval": ifeval}
    for name, rows in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def save_adapter(folder, model, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base = str(save_tiny(root / "base", marked=True, max_position_embeddings=4096))
    return base, save_adapter(root / "a", base, 1), save_adapter(root / "b", base, 2)


TASKS = ["--tasks", "gsm8k,ifeval,tokens:gsm8k", "--limit", "4", "--max_new_tokens", "12", "--batch_size", "4"]


@pytest.fixture(scope="module")
def evaluated(models, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "e"
    assert main(["evaluate", *models, *TASKS, "--data_dir", str(data), "--output_dir", str(out)]) == 0
    return out


def result(folder, label, task):
    found = json.loads((folder / label / f"{task}.json").read_text())
    lines = (folder / label / f"{task}.samples.jsonl").read_text().splitlines()
    return found, [json.loads(line) for line in lines]


def direct(task, data, limit, tokens, model):
    """lm-eval by itself: its own loading, its own adapter."""
    import lm_eval

    tasks = list(harness.load_task(task, data).loaded["tasks"].values())
    lm = lm_eval.models.huggingface.HFLM(**model, batch_size=4, device="cpu")
    found = lm_eval.simple_evaluate(
        model=lm, tasks=tasks, limit=limit, apply_chat_template=True, gen_kwargs={"max_gen_toks": tokens}
    )
    numbers = {key.removesuffix(",none"): value for key, value in found["results"][task].items() if "," in key}
    answers = {one["doc_id"]: one["resps"][0][0] for one in found["samples"][task]}
    return {key: value for key, value in numbers.items() if "stderr" not in key}, answers


@pytest.mark.parametrize("task", ["gsm8k", pytest.param("ifeval", marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_lm_eval_itself(task, evaluated, models, data):
    base, adapter, _ = models
    metrics, answers = direct(task, str(data), 4, 12, {"pretrained": base, "peft": adapter})
    found, samples = result(evaluated, "a", task)
    assert found["metrics"] == metrics
    assert {one["doc_id"]: one["answer"] for one in samples} == answers
    assert set(samples[0]["scores"]) == set(metrics)
    assert [one["answer"] for one in samples] != [one["answer"] for one in result(evaluated, "base", task)[1]]


@pytest.mark.slow
def test_the_numbers_are_those_of_lm_eval_itself_on_a_real_model(tmp_path):
    from uncertune.models import resolve_model

    command = ["evaluate", "smollm2-135m", "--tasks", "gsm8k,ifeval", "--limit", "4", "--max_new_tokens", "128"]
    assert main([*command, "--batch_size", "4", "--output_dir", str(tmp_path / "out")]) == 0
    for task in ("gsm8k", "ifeval"):
        metrics, answers = direct(task, None, 4, 128, {"pretrained": resolve_model("smollm2-135m")})
        found, samples = result(tmp_path / "out", "smollm2-135m", task)
        assert found["metrics"] == metrics
        assert {one["doc_id"]: one["answer"] for one in samples} == answers


def test_token_measures_are_those_of_plain_code(evaluated, models):
    base, adapter, _ = models
    found, samples = result(evaluated, "a", "tokens-gsm8k")
    tokenizer = AutoTokenizer.from_pretrained(base)
    lm = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    confidence, correct = [], []
    for one, row in zip(samples, rows_of_gsm8k(30), strict=False):
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        encoded = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = torch.tensor([encoded["input_ids"]]), torch.tensor(encoded["assistant_masks"][1:]).bool()
        with torch.no_grad():
            ours = tuned(ids).logits[0, :-1].log_softmax(-1)[mask]
            theirs = lm(ids).logits[0, :-1].log_softmax(-1)[mask]
        labels = ids[0, 1:][mask]
        right = ours.argmax(-1) == labels
        expected = {
            "loss": -ours.gather(1, labels[:, None]).sum(),
            "accuracy": right.sum(),
            "entropy": -(ours.exp() * ours).sum(),
            "kl": (theirs.exp() * (theirs - ours)).sum(),
            "tokens": len(labels),
        }
        assert one["scores"] == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)
        assert one["answer"] == row["answer"] + "<|im_end|>"
        confidence += ours.exp().max(-1).values.tolist()
        correct += right.tolist()
    gaps = {}
    for share, hit in zip(confidence, correct, strict=True):
        gaps[int(share * 15)] = gaps.get(int(share * 15), 0.0) + share - hit
    assert found["metrics"]["ece"] == pytest.approx(sum(map(abs, gaps.values())) / len(confidence), rel=1e-4)
    assert result(evaluated, "base", "tokens-gsm8k")[0]["metrics"]["kl"] == pytest.approx(0, abs=1e-5)


def test_one_table_holds_every_model_and_task(evaluated):
    rows = json.loads((evaluated / "results.json").read_text())["results"]
    assert [(row["label"], row["task"]) for row in rows] == [
        (label, task) for label in ("base", "a", "b") for task in ("gsm8k", "ifeval", "tokens:gsm8k")
    ]
    table = (evaluated / "results.md").read_text()
    assert all(word in table for word in ("gsm8k strict", "gsm8k flexible", "tokens:gsm8k KL from base"))


def test_what_is_there_is_not_measured_again(evaluated, models, data, capsys, monkeypatch):
    from uncertune.evaluation import evaluate as command

    before = {path: path.stat().st_mtime_ns for path in evaluated.glob("*/*.json*")}
    monkeypatch.setattr(command, "measure_tokens", None)
    assert main(["evaluate", *models, *TASKS, "--data_dir", str(data), "--output_dir", str(evaluated)]) == 0
    assert {path: path.stat().st_mtime_ns for path in evaluated.glob("*/*.json*")} == before
    assert "b: ifeval is there already" in capsys.readouterr().err


def test_a_task_that_was_cut_off_goes_on_in_the_middle(evaluated, models, data, tmp_path, monkeypatch):
    asked = []
    generate = PeftModelForCausalLM.generate

    def stops(self, *args, **kwargs):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(kwargs["input_ids"]))
        return generate(self, *args, **kwargs)

    command = ["evaluate", *models[:2], *TASKS[:4], "--max_new_tokens", "12", "--batch_size", "1"]
    command += ["--tasks", "ifeval", "--data_dir", str(data), "--output_dir", str(tmp_path)]
    monkeypatch.setattr(PeftModelForCausalLM, "generate", stops)
    assert main(command) == 130
    monkeypatch.setattr(PeftModelForCausalLM, "generate", lambda *a, **k: asked.append(1) or generate(*a, **k))
    assert main(command) == 0
    assert len(asked) == 8, "two models, four prompts, none twice"
    assert result(tmp_path, "a", "ifeval")[0]["metrics"] == result(evaluated, "a", "ifeval")[0]["metrics"]
    assert not list(tmp_path.glob("*/.ifeval*"))


def test_a_task_of_lm_eval_in_a_file_says_how_far_it_is(models, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notes, "NOTE_SECONDS", 0.0)
    words = ["--tasks", "gsm8k", "--limit", "3", "--max_new_tokens", "2", "--batch_size", "1", "--data_dir", str(data)]
    assert main(["evaluate", models[0], *words, "--output_dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().err
    assert "requests:   0%" not in shown
    assert [line.rsplit(", ", 1)[0] for line in shown.splitlines() if " left" in line] == [
        f"Running generate_until requests: {done} of 3" for done in (1, 2)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_bars_of_lm_eval_on_a_terminal(shared, monkeypatch):
    """One process shows them; one of several shows none, though lm-eval says ``disable=False``."""
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(notes, "SHARED", shared)
    before = tqdm.__init__, tqdm.update
    with harness._own_progress():
        assert list(tqdm([1, 2], disable=False, desc="Running")) == [1, 2]
        assert list(tqdm([1], disable=True, desc="off")) == [1]
    assert ("Running: 100%" in shown.getvalue()) == (not shared)
    assert "off" not in shown.getvalue()
    assert (tqdm.__init__, tqdm.update) == before


def test_a_run_of_ours_brings_its_base_along(models, data, tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", "--model_name_or_path", models[0], "--dataset_name", "word_problems", "--max_steps", "1"]
    train += [
        "--use_peft",
        "--output_dir",
        str(run),
        "--max_train_samples",
        "8",
        "--report_to",
        "none",
        "--bf16",
        "false",
    ]
    assert main([*train, "--gradient_checkpointing", "false", "--save_strategy", "no"]) == 0
    out = str(tmp_path / "out")
    measure = ["--tasks", "tokens:word_problems", "--limit", "3", "--output_dir", out]
    assert main(["evaluate", str(run), *measure]) == 0
    assert json.loads((tmp_path / "out" / "run" / "tokens-word_problems.json").read_text())["model"] == str(run)
    other = str(save_tiny(tmp_path / "other", marked=True, max_position_embeddings=4096, seed=1))
    capsys.readouterr()
    assert main(["evaluate", other, str(run), *measure]) == 2
    assert "is of another base than" in capsys.readouterr().err


MISTAKES = {
    "task": (["{a}", "--tasks", "gsm8k_of_nowhere"], "lm-eval has no task 'gsm8k_of_nowhere'"),
    "data": (["{a}", "--tasks", "tokens:nowhere.jsonl"], "nowhere.jsonl"),
    "adapter": (["{a}/nowhere", "--tasks", "gsm8k"], "there is no such folder"),
    "whole model": (["{deep}", "--tasks", "gsm8k"], "is a whole model"),
    "deeper": (["{deeper}", "--tasks", "gsm8k"], "is of another base"),
    "labels": (["{a}", "--tasks", "gsm8k", "--labels", "x"], "labels: 1 for 2 models"),
    "room": (["{a}", "--tasks", "ifeval", "--max_new_tokens", "4096", "--output_dir", "{new}"], "leave no room"),
    "vllm": (["{a}", "--tasks", "tokens:gsm8k", "--backend", "vllm"], "backend"),
    "settings": (
        ["{a}", "--tasks", "gsm8k", "--limit", "4", "--max_new_tokens", "13"],
        "with settings max_new_tokens 12",
    ),
    "folder": (["{a}", "--tasks", "gsm8k", "--output_dir", "{deep}/config.json/x"], "cannot be made"),
}


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    root = tmp_path_factory.mktemp("deeper")
    model = str(save_tiny(root / "deep", num_hidden_layers=3))
    return model, save_adapter(root / "adapter", model, 1)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_loses_nothing(case, evaluated, models, deeper, data, tmp_path, capsys):
    words, says = MISTAKES[case]
    before = sorted(evaluated.rglob("*.json*"))
    words = [word.format(a=models[1], deep=deeper[0], deeper=deeper[1], new=tmp_path) for word in words]
    assert main(["evaluate", models[0], "--output_dir", str(evaluated), "--data_dir", str(data), *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "uncertune: error:" in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert sorted(evaluated.rglob("*.json*")) == before


def test_the_sentence_splitter_of_the_package_is_nltks(tmp_path):
    import os
    from pathlib import Path

    from uncertune.evaluation.punkt import write_punkt

    written = write_punkt(tmp_path) / "tokenizers" / "punkt_tab" / "english"
    theirs = Path(os.environ.get("UNCERTUNE_DATA", "nowhere")) / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    if not theirs.is_dir():
        pytest.skip("needs nltk_data in UNCERTUNE_DATA")
    for file in theirs.iterdir():
        assert sorted(file.read_text().splitlines()) == sorted((written / file.name).read_text().splitlines())
