"""What a user types, and the number or the one line that is right, through the command itself."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.conversations import CALLED, TOOL_TEMPLATE, WEATHER, chat
from helpers.tiny import MARKED_TEMPLATE, save_tiny
from uncertune.cli import main
from uncertune.runs import read_metrics, read_selection


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversation(*said):
    return {"messages": chat(*zip(("user", "assistant") * len(said), said, strict=False))}


ROWS = [conversation(f"Say {n}.", "It is " + "so " * n + f"{n}.") for n in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "base", marked=True, max_position_embeddings=2048))


def train(model, data, out, *more, lora=True, **fields):
    """The exit code of ``uncertune train``, two steps on the CPU in float32."""
    fields = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "use_peft": lora,
        "lora_target_modules": "all-linear" if lora else None,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        **fields,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return main(["train", *(str(word) for pair in given.items() for word in (f"--{pair[0]}", pair[1])), *more])


def last_evaluation(run):
    return [row for row in read_metrics(Path(run) / "metrics.jsonl", "eval") if "eval_loss" in row][-1]


def last_line(capsys):
    error = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in error)
    return error[-1]


def result_of(folder, label):
    (path,) = (one for one in (Path(folder) / label).glob("tokens-*.json"))
    return json.loads(path.read_text())["metrics"]


def plain_loss(model, rows):
    """The mean cross-entropy of the assistant's tokens, by transformers alone."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    losses = []
    for row in rows:
        got = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = torch.tensor([got["input_ids"]]), torch.tensor(got["assistant_masks"][1:]).bool()
        with torch.no_grad():
            losses.append(-lm(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[mask])
    return float(torch.cat(losses).mean())


# ---- numbers


def test_held_out_loss_is_that_of_rows_that_are_not_trained_on_whatever_the_batch(model, tmp_path, capsys):
    """The model is not moved, so that plain transformers can say which rows were evaluated."""
    data = write(tmp_path / "rows.jsonl", ROWS)
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0, "assistant_only_loss": True}
    assert train(model, data, tmp_path / "none", **evaluated) == 2
    assert "set test_split_size: 0.1" in last_line(capsys)
    found = []
    for size in (1, 2, 8):
        fields = {"test_split_size": 0.4, "objective": "masked_mle", "per_device_eval_batch_size": size, **evaluated}
        assert train(model, data, tmp_path / str(size), **fields) == 0
        found.append(last_evaluation(tmp_path / str(size)))
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy", "eval_objective"):
        assert [one[name] for one in found] == pytest.approx([found[0][name]] * 3, rel=1e-6), name
    assert len({row.document for row in read_selection(tmp_path / "1")}) == 5
    assert "3 of 8 rows are kept out of training" in capsys.readouterr().err
    losses = [plain_loss(model, [ROWS[a], ROWS[b], ROWS[c]]) for a in range(8) for b in range(a) for c in range(b)]
    assert sum(abs(loss - found[0]["eval_loss"]) < 1e-5 for loss in losses) == 1


SYSTEM = [{"instruction": "And?", "output": "Bye", "history": [["Hi", "Yo"]], "system": "Be brief."}]
ALIKE = {
    "conversations": (ROWS, {}),
    "a completion that ends in eos": ([{"prompt": "Say a.", "completion": "a<|im_end|>"}], {}),
    "prompt and completion": ([{"prompt": "Say a.", "completion": " a"}, {"prompt": "Say", "completion": "b"}], {}),
    "a conversational prompt": (
        [{"prompt": chat(("user", "A"), ("assistant", "B"), ("user", "C")), "completion": chat(("assistant", "D"))}],
        {},
    ),
    "text": ([{"text": "one two"}, {"text": "three"}], {}),
    "system and history": (SYSTEM, {}),
    "a blank turn": ([conversation("Hi", " \n", "And?", "Bye"), *ROWS[:2]], {}),
    "parts of text": (
        [{"messages": [{"role": "user", "content": [{"type": "text", "text": "A"}]}, *chat(("assistant", "B"))]}],
        {},
    ),
    "other names": (
        [{"query": "Say a.", "response": "a"}, {"query": "Say b.", "response": "b"}],
        {"dataset_columns": '{"instruction": "query", "output": "response"}'},
    ),
    "tools": ([{"messages": [*CALLED, *chat(("assistant", "12"))][-5:], "tools": [WEATHER]}], {}),
}


@pytest.mark.parametrize("case", ALIKE)
def test_train_evaluate_and_score_count_the_same_tokens(model, tmp_path, monkeypatch, case):
    for name in ("correlations", "losses"):  # drawn and looked at in tests of their own
        monkeypatch.setattr(f"uncertune.scoring.figures.{name}", lambda *given: None)
    rows, fields = ALIKE[case]
    if case == "tools":
        folder = save_tiny(tmp_path / "base", marked=True, max_position_embeddings=2048)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TOOL_TEMPLATE
        tokenizer.save_pretrained(folder)
        model = str(folder)
    data = tmp_path / "data"
    write(data / "train.jsonl", rows)
    write(data / "test.jsonl", rows)
    options = [word for name, value in fields.items() for word in (f"--{name}", value)]
    more = {} if rows[0].keys() & {"text", "completion"} else {"assistant_only_loss": True}
    assert (
        train(model, data, tmp_path / "run", eval_strategy="steps", eval_steps=2, learning_rate=0, **more, **fields)
        == 0
    )
    wanted = last_evaluation(tmp_path / "run")["eval_loss"]
    out = ["--output_dir", str(tmp_path / "evaluation")]
    assert main(["evaluate", model, "--tasks", f"tokens:{data}@test", *out, *options]) == 0
    assert result_of(tmp_path / "evaluation", Path(model).name)["loss"] == pytest.approx(wanted, rel=1e-5)
    scored = [
        "--samples",
        "2",
        "--bootstrap",
        "50",
        "--dataset_split",
        "test",
        "--output_dir",
        str(tmp_path / "scores"),
    ]
    assert main(["score", "--model", model, "--data", str(data), *scored, *options]) == 0
    import pyarrow.parquet as pq

    losses = pq.read_table(tmp_path / "scores" / "tokens.parquet")["loss"].to_numpy()
    assert float(losses.mean()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_mask_of_a_step_does_not_depend_on_the_cut(tmp_path, kind):
    """Router noise counts as dropout."""
    noise = {"router_jitter_noise": 0.3} if kind == "mixtral" else {}
    model = str(save_tiny(tmp_path / "base", kind, marked=True, **noise))
    data = write(tmp_path / "rows.jsonl", ROWS)
    masks = []
    for size, steps in ((8, 1), (2, 4)):
        out, cut = tmp_path / str(size), {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        assert train(model, data, out, objective="masked_mle", max_steps=1, lora_target_modules=".*q_proj", **cut) == 0
        masks.append(sorted((row.document, row.selected.tolist()) for row in read_selection(out)))
        assert len(masks[-1]) == 8
    assert masks[0] == masks[1]


def test_the_evaluation_of_a_whole_model_computes_no_gradient(model, tmp_path, monkeypatch):
    from uncertune.fused.chunked import Gradients
    from uncertune.training.trainer import UncertuneTrainer

    evaluating, add, measure = [False], Gradients.add, UncertuneTrainer._evaluation_loss
    computed = {True: 0, False: 0}

    def adding(self, *arguments):
        computed[evaluating[0]] += 1
        return add(self, *arguments)

    def measuring(self, *arguments):
        evaluating[0] = True
        try:
            return measure(self, *arguments)
        finally:
            evaluating[0] = False

    monkeypatch.setattr(Gradients, "add", adding)
    monkeypatch.setattr(UncertuneTrainer, "_evaluation_loss", measuring)
    data = write(tmp_path / "rows.jsonl", ROWS)
    fields = {"objective": "masked_mle", "eval_strategy": "steps", "eval_steps": 1, "test_split_size": 0.4}
    assert train(model, data, tmp_path / "run", lora=False, **fields) == 0
    assert computed[False] >= 2
    assert computed[True] == 0


# ---- what a run learned with is what it is used with


def test_a_run_is_evaluated_merged_and_asked_with_what_it_was_trained_with(model, tmp_path):
    """Its own template and end-of-sequence token; the merged folder needs plain transformers alone."""
    template = tmp_path / "own.jinja"
    template.write_text(MARKED_TEMPLATE.replace("You are a helpful AI assistant.", "Answer in one word."))
    data = tmp_path / "data"
    for split in ("train", "test"):
        write(data / f"{split}.jsonl", ROWS)
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.01, "assistant_only_loss": True}
    run = str(tmp_path / "run")
    assert train(model, data, run, chat_template_path=template, eos_token="e", **evaluated) == 0
    wanted = last_evaluation(run)["eval_loss"]
    merged = str(tmp_path / "merged")
    assert main(["merge", run, "--output_dir", merged, "--dtype", "float32"]) == 0
    for one in (run, merged):
        out = tmp_path / "out" / Path(one).name
        assert main(["evaluate", one, "--tasks", f"tokens:{data}@test", "--output_dir", str(out)]) == 0
        assert result_of(out, Path(one).name)["loss"] == pytest.approx(wanted, rel=1e-5)
    asked = ["--prompts", "word_problems", "--limit", "2", "--max_new_tokens", "12"]
    assert main(["generate", run, *asked, "--output_dir", str(tmp_path / "answers")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "answers" / "run.jsonl").read_text().splitlines()]
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    assert tokenizer.eos_token_id == lm.config.eos_token_id == tokenizer.convert_tokens_to_ids("e")
    for line in lines:
        ids = tokenizer.apply_chat_template(line["messages"], add_generation_prompt=True, return_tensors="pt")
        ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        said = lm.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=ends)[0, ids["input_ids"].shape[1] :]
        kept = said[:-1] if int(said[-1]) in ends else said
        assert line["answer"] == tokenizer.decode(kept, skip_special_tokens=True).strip()


def test_evaluation_is_part_of_a_run_that_keeps_its_best_model(model, tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", ROWS)
    fields = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    fields |= {"test_split_size": 0.4, "load_best_model_at_end": True}
    assert train(model, data, tmp_path / "best", **fields) == 0
    assert train(model, data, tmp_path / "best", **{**fields, "eval_steps": 2, "save_steps": 2}) == 2
    assert "holds another run, which differs in eval_steps" in last_line(capsys)
    fields["load_best_model_at_end"] = False
    assert train(model, data, tmp_path / "last", **fields) == 0
    assert train(model, data, tmp_path / "last", **{**fields, "eval_steps": 2}) == 0
    assert "complete; --overwrite trains it again" in capsys.readouterr().err


# ---- one line, before a folder is made

REFUSED = {
    "fp16 on a CPU": ({"fp16": True}, "fp16"),
    "a batch larger than the data": (
        {"dataloader_drop_last": True, "per_device_train_batch_size": 16},
        "dataloader_drop_last",
    ),
    "a stream by length": (
        {"dataset_streaming": True, "train_sampling_strategy": "group_by_length"},
        "train_sampling_strategy='group_by_length' has no effect on a stream",
    ),
    "an old name": ({"group_by_length": True}, "it is now train_sampling_strategy: group_by_length"),
    "another old name": ({"warmup_ratio": 0.1}, "it is now warmup_steps"),
    "cut documents under selection": (
        {"objective": "masked_mle", "packing": True, "packing_strategy": "bfd_split", "max_length": 32},
        "packing_strategy='bfd_split' cuts documents in the middle",
    ),
    "a metric that is not measured": (
        {
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "test_split_size": 0.4,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_bleu",
        },
        "metric_for_best_model='eval_bleu' is not measured: choose from eval_loss",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_line(model, tmp_path, capsys, case):
    fields, line = REFUSED[case]
    assert train(model, write(tmp_path / "rows.jsonl", ROWS), tmp_path / "run", **fields) == 2
    assert line in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_packing_that_leaks_between_documents_is_one_line(tmp_path, capsys):
    from transformers import OPTConfig

    folder = save_tiny(tmp_path / "base", marked=True)
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=259, word_embed_proj_dim=32, pad_token_id=258, bos_token_id=256, eos_token_id=257, **sizes
    )
    leaking = AutoModelForCausalLM.from_config(config)
    for parameter in leaking.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    leaking.save_pretrained(folder)
    data, packed = write(tmp_path / "rows.jsonl", ROWS), {"packing": True, "max_length": 256}
    assert train(folder, data, tmp_path / "run", **packed) == 2
    assert "OPTForCausalLM lets a document attend to the one packed before it" in last_line(capsys)
    assert not (tmp_path / "run").exists()


BAD = {
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, *chat(("assistant", "b"))]},
        "image_url",
    ),
    "null": ({"messages": [{"role": "user", "content": None}, *chat(("assistant", "b"))]}, "has no 'content'"),
    "half of a surrogate pair": (conversation("a\ud800", "b"), "holds half of a surrogate pair"),
    "a system turn": (
        {"messages": chat(("system", "s"), ("user", "a"), ("assistant", "b"))},
        "System role not supported",
    ),
}


@pytest.mark.parametrize("command", ["train", "evaluate", "score", "generate"])
@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_is_named_by_every_command(tmp_path, capsys, case, command):
    row, line = BAD[case]
    folder = save_tiny(tmp_path / "base", marked=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    model, data, out = str(folder), write(tmp_path / "rows.jsonl", [ROWS[0], row]), str(tmp_path / "out")
    words = {
        "evaluate": ["evaluate", model, "--tasks", f"tokens:{data}"],
        "score": ["score", "--model", model, "--data", data, "--samples", "2"],
        "generate": ["generate", model, "--prompts", data, "--max_new_tokens", "2"],
    }
    found = train(model, data, out) if command == "train" else main([*words[command], "--output_dir", out])
    said = last_line(capsys)
    assert found == 2, said
    assert line in said
    assert "row 1" in said or (command == "generate" and "prompt" in said)


@pytest.mark.parametrize("command", ["train", "evaluate", "score"])
def test_blank_answers_and_unused_columns_are_counted_by_every_command(model, tmp_path, capsys, command):
    rows = [{**conversation("Hi", " "), "id": 1}, {**conversation("Hi", "Yo", "?", ""), "id": 2}]
    data, out = write(tmp_path / "rows.jsonl", rows), str(tmp_path / "out")
    words = {
        "evaluate": ["evaluate", model, "--tasks", f"tokens:{data}"],
        "score": ["score", "--model", model, "--data", data, "--samples", "2"],
    }
    found = train(model, data, out) if command == "train" else main([*words[command], "--output_dir", out])
    said = capsys.readouterr().err
    assert found == 0, said
    assert "1 of 2 rows in which the assistant says nothing" in said
    assert "1 blank assistant turns with what they answer" in said
    assert "column 'id'" in said
