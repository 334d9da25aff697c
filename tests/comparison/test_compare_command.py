"""``uncertune compare`` with models: tasks, answers, judgements and the page in one command that goes on."""

import gzip
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.judging import write_answers
from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.evaluation import generate as answers
from uncertune.judging.local import LocalJudge
from uncertune.judging.pairs import is_answer_file

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base = str(save_tiny(root / "base", marked=True, max_position_embeddings=4096))
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
            get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(root / name)
    return base, str(root / "a"), str(root / "b")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """GSM8K in miniature, and prompts to answer."""
    folder = tmp_path_factory.mktemp("data")
    for split, start in (("train", 10), ("test", 30)):
        rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(start, start + 8)]
        (folder / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_answers(folder / "prompts.jsonl", {f"Tell me about {n}.": "" for n in range(9)})
    return folder


@pytest.fixture
def command(models, data, tmp_path):
    prompts = str(data / "prompts.jsonl")
    tasks = [f"tokens:{data / 'gsm8k_test.jsonl'}", f"tokens:{data / 'gsm8k_train.jsonl'}"]
    limits = f"{tasks[0]}=3,{prompts}=5"
    return [
        *("compare", *models, "--baseline", "a", "--tasks", ",".join(tasks), "--prompts", prompts),
        *("--limits", limits, "--limit", "4", "--max_new_tokens", "8", "--judge", models[0]),
        *("--in_distribution", tasks[0], "--output_dir", str(tmp_path / "out")),
    ]


def test_one_command_measures_answers_judges_and_writes_the_page(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert main(command) == 0
    assert str(out / "comparison.html") in capsys.readouterr().out
    results = json.loads((out / "evaluation" / "results.json").read_text())["results"]
    assert [(one["label"], one["documents"]) for one in results] == [(x, n) for x in ("base", "a", "b") for n in (3, 4)]
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert verdicts["baseline"] == "a"
    assert list(verdicts["models"]) == ["base", "b"]
    for label, one in verdicts["models"].items():
        assert len((out / "answers" / f"{label}.jsonl").read_text().splitlines()) == 5
        assert one["pairs"] == 5
        assert one["outcomes"] == {"judged": 10}
        assert 0 < one["adjusted"]["low"] < one["adjusted"]["value"] < one["adjusted"]["high"] < 1
        assert one["order_averaged"]["low"] < one["order_averaged"]["value"] < one["order_averaged"]["high"]
    page = (out / "comparison.html").read_text()
    assert "Gain out of distribution" in page
    assert "Tell me about 3." in page
    kept = {path: path.read_bytes() for path in out.rglob("*.json*")}
    monkeypatch.setattr(answers, "answer_batch", None)
    monkeypatch.setattr(LocalJudge, "ask", None)
    assert main(command) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == kept


def test_cut_off_while_judging_it_goes_on(command, tmp_path, monkeypatch):
    ask, asked = LocalJudge.ask, []

    def stops(self, questions):
        for number, reply in ask(self, questions):
            if len(asked) == 7:
                raise KeyboardInterrupt
            asked.append(number)
            yield number, reply

    monkeypatch.setattr(LocalJudge, "ask", stops)
    assert main(command) == 130
    assert (tmp_path / "out" / "judgements.cache.jsonl").read_text().count("\n") == 7
    monkeypatch.setattr(LocalJudge, "ask", lambda self, questions: asked.extend(questions) or ask(self, questions))
    monkeypatch.setattr(answers, "answer_batch", None)
    assert main(command) == 0
    assert len(asked) == 20, "two models, five prompts, both orders, none twice"


def test_without_a_judge_nothing_is_judged(command, tmp_path):
    place = command.index("--judge")
    prompts = command[command.index("--prompts") + 1]
    assert main([*command[:place], *command[place + 2 :], "--in_distribution", prompts]) == 0
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert not (tmp_path / "out" / "verdicts.json").exists()


def test_lm_evals_tasks_have_their_own_limits_too(models, data, tmp_path):
    for split in ("train", "test"):
        text = (data / f"gsm8k_{split}.jsonl").read_bytes()
        (data / f"gsm8k_{split}.jsonl.gz").write_bytes(gzip.compress(text))
    command = ["compare", *models[:2], "--tasks", "gsm8k,tokens:gsm8k", "--limits", "gsm8k=2", "--limit", "3"]
    command += ["--max_new_tokens", "4", "--data_dir", str(data), "--output_dir", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]
    assert [(one["task"], one["documents"]) for one in results] == 2 * [("gsm8k", 2), ("tokens:gsm8k", 3)]


def test_models_stand_beside_a_file_of_answers(models, data, tmp_path, capsys):
    prompts = str(data / "prompts.jsonl")
    file = write_answers(tmp_path / "gpt4.jsonl", {f"Tell me about {n}.": "It is a number." for n in range(4)})
    command = ["compare", *models[:2], file, "--baseline", "gpt4", "--prompts", prompts, "--max_new_tokens", "4"]
    command += ["--judge", models[0], "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--limit", "4"]) == 0
    assert list(json.loads((tmp_path / "out" / "verdicts.json").read_text())["models"]) == ["base", "a"]
    assert main([*command, "--limit", "5", "--overwrite"]) == 2
    assert "0 of its 4 are missing, 1 others are present" in capsys.readouterr().err


def test_the_page_of_a_run_leads_to_the_comparison(models, data, tmp_path):
    run = tmp_path / "run"
    train = ["train", "--model_name_or_path", models[0], "--dataset_name", "word_problems", "--max_train_samples", "4"]
    train += ["--max_steps", "1", "--use_peft", "--report_to", "none", "--save_strategy", "no", "--bf16", "false"]
    assert main([*train, "--gradient_checkpointing", "false", "--output_dir", str(run)]) == 0
    command = ["compare", models[0], str(run), "--prompts", str(data / "prompts.jsonl"), "--limit", "2"]
    assert main([*command, "--max_new_tokens", "4", "--output_dir", str(tmp_path / "out")]) == 0
    assert "../out/comparison.html" in (run / "report.html").read_text()


MISTAKES = {
    "base": (["{deeper}"], "is of another base"),
    "judge": (["--judge", "no/such judge"], "no/such judge"),
    "baseline": (["--baseline", "mle"], "baseline: 'mle' is not a model of this comparison: choose from base, a, b"),
    "limits": (["--limits", "mmlu=3"], "limits: 'mmlu' is not among"),
    "count": (["--limits", "gsm8k=0"], "limits: 'gsm8k=0' must be a task and a number"),
    "domain": (["--in_distribution", "mmlu"], "in_distribution: 'mmlu' is not among"),
    "settings": (["--max_new_tokens", "9"], "with max_new_tokens 8, here it is 9"),
    "url": (["--judge_url", "http://127.0.0.1:9/v1", "--overwrite"], "cannot be reached"),
}


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    root = tmp_path_factory.mktemp("deeper")
    model = save_tiny(root / "deep", num_hidden_layers=3)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(root / "adapter")
    return str(root / "adapter")


def test_a_mistake_is_one_line_and_loses_nothing(command, deeper, tmp_path, capsys):
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for words, says in MISTAKES.values():
        capsys.readouterr()
        words = [word.format(deeper=deeper) for word in words]
        assert main([*command, *words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "uncertune: error:" in line]
        assert len(lines) == 1
        assert says in lines[0]
        assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{a}"], "a comparison needs two or more"),
        (["{base}", "{a}"], "tasks is missing"),
        (["{base}", "{a}", "--judge", "{base}", "--tasks", "gsm8k"], "prompts is missing"),
        (["{base}", "{a}", "--prompts", "alpaca_eval", "--judge_url", "http://localhost/v1"], "judge is missing"),
        (["{base}", "{a}", "--tasks", "gsm8k,gsm8k"], "twice: keep one"),
    ],
)
def test_what_leaves_nothing_to_do_is_refused(words, says, models, tmp_path, capsys):
    words = [word.format(base=models[0], a=models[1]) for word in words]
    assert main(["compare", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_a_gguf_file_is_a_model_and_not_answers(tmp_path):
    weights, answers = tmp_path / "model.GGUF", tmp_path / "a.jsonl"
    weights.write_bytes(b"GGUF")
    answers.write_text("")
    assert [is_answer_file(str(path)) for path in (weights, answers, tmp_path)] == [False, True, False]
