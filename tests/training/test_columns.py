"""Side columns: what is refused, in one line with row and field, and how they reach the loss in every form of batch."""

import json

import pytest
import torch
from datasets import Dataset

from helpers.harness import VOCABULARY, rows, run, settings
from helpers.refusals import refused
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.cli import main
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.selection import exact_count, select
from uncertune.training.side_columns import lay_out

POLICY, ORACLE = {"objective": "policy_gradient"}, {"objective": "oracle"}
NAN = float("nan")


def with_columns(**columns):
    """Four rows of which the second has these values."""
    data = []
    for number, row in enumerate(rows(4)):
        length = len(row["labels"])
        good = {name: fill(value, length) for name, value in columns.items()}
        bad = {name: value(length) if callable(value) else value for name, value in columns.items()}
        data.append({**row, **(bad if number == 1 else good)})
    return data


def fill(value, length):
    """A value like the ones that a column of the tests holds, without its mistake."""
    sample = value(length) if callable(value) else value
    if isinstance(sample, float):
        return sample
    first = next(one for one in sample if one is not None)
    if isinstance(first, str):
        return [first] * length
    if isinstance(first, list):
        whole = all(isinstance(one, int) for one in first)
        return [[1, 2, 3] if whole and first else THREE for _ in range(length)]
    return [0.0] * length


def at(place, wrong, otherwise):
    """A list like the labels (14 long in row 1; tokens from 4 on are response) with something wrong at one place."""
    return lambda length: [wrong if index == place else otherwise for index in range(length)]


THREE = [0.2, 0.3, 0.5]
SPARSE = {"oracle_ids": at(0, [1, 2, 3], [1, 2, 3])}
MISTAKES = {
    "short list": (POLICY, {"advantages": [1.0, 2.0]}, ["'advantages'", "row 1", "14"]),
    "words": (POLICY, {"advantages": at(6, "high", "high")}, ["'advantages'", "row 0", "high"]),
    "not a number": (POLICY, {"advantages": at(6, NAN, 0.5)}, ["'advantages'", "row 1", "token 6", "nan"]),
    "infinite": (POLICY, {"advantages": at(6, float("inf"), 0.5)}, ["row 1", "token 6", "inf"]),
    "huge": (POLICY, {"advantages": at(6, 1e35, 0.5)}, ["row 1", "token 6", "too large for float32"]),
    "no value in the response": (POLICY, {"advantages": at(6, None, 0.5)}, ["row 1", "token 6", "no value"]),
    "ratio as one number": (
        POLICY,
        {"advantages": at(0, 1.0, 1.0), "old_log_probs": -1.0},
        ["'old_log_probs'", "row 0", "a list like the labels"],
    ),
    "ratio above one": (
        POLICY,
        {"advantages": at(0, 1.0, 1.0), "old_log_probs": at(5, 0.7, -1.0)},
        ["'old_log_probs'", "row 1", "token 5", "0.7", "at most 0"],
    ),
    "ratio over the vocabulary": (
        POLICY,
        {"advantages": at(0, 1.0, 1.0), "old_log_probs": at(5, [-1.0], [-1.0])},
        ["'old_log_probs'", "numbers"],
    ),
    "negative weight": ({}, {"token_weight": at(6, -1.0, 1.0)}, ["'token_weight'", "row 1", "token 6", "-1.0"]),
    "weight without a number": ({}, {"token_weight": at(6, NAN, 1.0)}, ["'token_weight'", "row 1", "token 6", "nan"]),
    "oracle of numbers": (ORACLE, {"oracle": at(0, 0.5, 0.5)}, ["'oracle'", "lists", "oracle_ids"]),
    "negative oracle": (ORACLE, {"oracle": at(6, [0.1, -0.2, 0.3], THREE), **SPARSE}, ["row 1", "token 6", "-0.2"]),
    "fewer ids than values": (
        ORACLE,
        {"oracle": at(0, THREE, THREE), "oracle_ids": at(6, [1, 2], [1, 2, 3])},
        ["'oracle_ids'", "row 1", "token 6", "as many"],
    ),
    "an id below 0": (
        ORACLE,
        {"oracle": at(0, THREE, THREE), "oracle_ids": at(6, [1, 2, -3], [1, 2, 3])},
        ["'oracle_ids'", "row 1", "-3", "not a token id"],
    ),
    "an id that is no token": (
        ORACLE,
        {"oracle": at(0, THREE, THREE), "oracle_ids": at(6, [1, 2, VOCABULARY], [1, 2, 3])},
        ["'oracle_ids'", "row 1", "token 6", str(VOCABULARY)],
    ),
    "fewer lists of ids than labels": (
        ORACLE,
        {"oracle": at(0, THREE, THREE), "oracle_ids": [[1, 2, 3]]},
        ["'oracle_ids'", "row 1", "14"],
    ),
    "narrow dense row": (ORACLE, {"oracle": at(6, [0.1, 0.2], THREE)}, ["'oracle'", "row 1", "token 6", "2", "3"]),
    "dense rows of another vocabulary": (ORACLE, {"oracle": at(0, THREE, THREE)}, ["'oracle'", "row 0", "3", "259"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_row_and_field(tmp_path, name):
    fields, columns, words = MISTAKES[name]
    refused(lambda: run(tmp_path, data=Dataset.from_list(with_columns(**columns)), **fields), *words)


def test_dense_rows_of_a_large_vocabulary():
    wide = {"labels": [-100, 5, 6], "oracle": [[0.0], [0.0] * 4097, [0.0] * 4097]}
    refused(
        lambda: lay_out({**wide, "oracle": wide["oracle"][1:] * 2, "labels": [1] * 4}, 7, ["oracle"]), "4097", "4096"
    )
    most = {"labels": [-100, 5], "advantages": [None, [0.0] * 4096]}
    assert [len(entry) for entry in lay_out(most, 0, ["advantages"])["advantages"]] == [4096, 4096]


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    save_tiny(tmp_path / "model", marked=True)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in with_columns(advantages=at(6, None, 0.5))))
    words = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(data), "--use_cpu", "true"]
    out = str(tmp_path / "out")
    assert main(["train", *words, "--output_dir", out, "--objective", "policy_gradient"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uncertune: error")]
    assert lines == [
        "uncertune: error: column 'advantages' of row 1, token 6 has no value, but its label is a response token"
    ]
    assert not (tmp_path / "out").exists()


def test_nothing_need_be_said_of_prompts():
    """Null outside the response is nothing: 0, no tokens, or a dense row of zeros."""
    labels = [-100, -100, 7, 8]
    row = {"labels": labels, "advantages": [None, None, 0.5, -0.5], "old_log_probs": [None, 0.0, -1.0, -2.0]}
    laid = lay_out(row, 0, ["advantages", "old_log_probs"])
    assert laid == {"advantages": [0.0, 0.0, 0.5, -0.5], "old_log_probs": [0.0, 0.0, -1.0, -2.0]}
    sparse = {"labels": labels, "oracle": [None, [], [0.5, 0.5], [1.0]], "oracle_ids": [None, [], [3, 4], [5]]}
    assert lay_out(sparse, 0, ["oracle", "oracle_ids"]) == {
        "oracle": [[], [], [0.5, 0.5], [1.0]],
        "oracle_ids": [[], [], [3, 4], [5]],
    }
    dense = {"labels": labels, "advantages": [None, [], [0.5, 0.5], [1.0, 0.0]]}
    assert lay_out(dense, 0, ["advantages"])["advantages"][:2] == [[0.0, 0.0]] * 2
    assert lay_out({"labels": labels, "advantages": 2, "token_weight": 0}, 0, ["advantages", "token_weight"]) == {
        "advantages": [2, 2, 2, 2],
        "token_weight": [0, 0, 0, 0],
    }


def test_data_that_are_used_as_they_are(tmp_path):
    asis = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    good = rows(4, side="advantages")
    run(tmp_path / "good", data=good, **POLICY, **asis)
    number = Dataset.from_list([{**row, "advantages": 1.0} for row in rows(4)])
    refused(lambda: run(tmp_path, data=number, **POLICY, **asis), "'advantages'", "row 0", "skip_prepare_dataset")
    short = Dataset.from_list([{**row, "advantages": [1.0]} for row in rows(4)])
    refused(lambda: run(tmp_path, data=short, **POLICY, **asis), "'advantages'", "row 0")


# ---- every column beside its token, from tokenising to the loss


def conversations():
    """Messages whose side columns name the token they belong to, as they must for the tiny tokenizer."""
    tokenizer, data = tiny_tokenizer(marked=True), []
    for number, text in enumerate(("yes", "no, never", "it depends on the day", "ok")):
        messages = [{"role": "user", "content": "why" * (number + 1)}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        tag = [float(1000 * number + place) for place in range(len(ids))]
        data.append(
            {
                "messages": messages,
                "token_weight": tag,
                "advantages": tag,
                "old_log_probs": [-one for one in tag],
            }
        )
    return Dataset.from_list(data)


@pytest.mark.parametrize("form", ["padded", "padding-free", "bfd", "truncated"])
def test_columns_of_messages_stay_beside_their_tokens(tmp_path, form):
    fields = {
        "padded": {},
        "padding-free": {"padding_free": True, "max_length": None},
        "bfd": {"packing": True, "max_length": 400},
        "truncated": {"max_length": 80},
    }[form]
    data = conversations()
    tokenizer = tiny_tokenizer(marked=True)
    whole = [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in data]
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(tmp_path, assistant_only_loss=True, per_device_train_batch_size=4, **POLICY, **fields),
        train_dataset=data,
        processing_class=tokenizer,
    )
    seen = set()
    for batch in trainer.get_train_dataloader():
        tokens = trainer._tokens(dict(batch))
        tag = tokens.side["advantages"].long()
        assert torch.equal(tokens.side["token_weight"].long(), tag)
        assert torch.equal(tokens.side["old_log_probs"].long(), -tag)
        row, place = (tag // 1000).tolist(), (tag % 1000).tolist()
        assert tokens.labels.tolist() == [whole[r][p] for r, p in zip(row, place, strict=True)]
        seen |= set(zip(row, place, strict=True))
    assert {row for row, _ in seen} >= {0, 1, 2} if form != "truncated" else seen
    if form != "truncated":
        assert sum(len(row["messages"][1]["content"]) + 1 for row in data) == len(seen)


# ---- token weights


def by_hand(data, teacher, weights, objective, level, **options):
    """The weighted loss over all response tokens, from plain logits."""
    student = tiny_model("llama", VOCABULARY, torch.float64)
    z, p_ref, labels, document, w, side, ids_of = [], [], [], [], [], [], []
    for number, row in enumerate(data):
        ids, target = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        keep = target != -100
        with torch.no_grad():
            z.append(student(input_ids=ids).logits[0, :-1][keep])
            p_ref.append(teacher(input_ids=ids).logits[0, :-1][keep].softmax(-1))
        labels.append(target[keep])
        document.append(torch.full_like(target[keep], number))
        w.append(torch.as_tensor(weights(number, len(row["labels"])), dtype=torch.float32)[1:][keep].double())
        for name in ("advantages", "oracle"):
            if name in row:
                side.append(torch.tensor(row[name])[1:][keep])
                ids_of.append(torch.tensor(row.get(f"{name}_ids", row["labels"]))[1:][keep])
    z, labels = torch.cat(z), torch.cat(labels)
    scores = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    needs, given = OBJECTIVES[objective].needs, dict(options)
    if "selected" in needs:
        given["selected"] = select(scores, 0.25, level=level, document=torch.cat(document))
    if "teacher" in needs:
        given["teacher"] = torch.cat(p_ref)
    if "advantages" in needs:
        given["advantages"] = torch.cat(side)
    if "oracle" in needs:
        given["oracle"] = torch.cat(ids_of), torch.cat(side)
    loss = weighted_nll(z, OBJECTIVES[objective](labels, **given)) * torch.cat(w)
    return float(loss.sum()), len(labels), given.get("selected")


@pytest.mark.parametrize("level", ["token", "document"], ids=["weights of tokens", "weights of documents"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_token_weights_multiply_every_objective(tmp_path, objective, level):
    """Teacher's part and tail included; what the sum is divided by stays the count of all response tokens."""
    side = {"policy_gradient": "advantages", "oracle": "oracle"}.get(objective)
    needs = OBJECTIVES[objective].needs
    data = list(rows(8, side=side))

    def weights(number, length):
        if level == "document":
            return [0.5 + number] * length
        return torch.rand(length, generator=torch.Generator().manual_seed(number)).tolist()

    weighted = [
        {**row, "token_weight": weights(n, len(row["labels"])) if level == "token" else 0.5 + n}
        for n, row in enumerate(data)
    ]
    teacher = tiny_model("llama", VOCABULARY, torch.float64, seed=5)
    options, fields = {}, {"selection_level": level} if "selected" in needs else {}
    if objective == "truncated_distill":
        options, fields = {"top_k": 5, "truncation": "tail"}, {"teacher_top_k": 5, "teacher_truncation": "tail"}
    step = run(
        tmp_path,
        data=Dataset.from_list(weighted),
        lora=False,
        objective=objective,
        teacher=teacher if "teacher" in needs else None,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **fields,
    )
    total, count, _ = by_hand(data, teacher, weights, objective, level, **options)
    assert step.loss == pytest.approx(total / count, rel=1e-5)


def test_token_weights_leave_the_selected_count_as_it_is(tmp_path):
    data = [{**row, "token_weight": 0.5 + n} for n, row in enumerate(rows(8))]
    fields = {"objective": "masked_mle", "normalize_by": "selected", "lora": False, "per_device_train_batch_size": 8}
    step = run(tmp_path, data=Dataset.from_list(data), **fields)
    teacher = tiny_model("llama", VOCABULARY, torch.float64)
    total, count, selected = by_hand(
        list(rows(8)), teacher, lambda n, length: [0.5 + n] * length, "masked_mle", "token"
    )
    assert int(selected.sum()) == exact_count(0.25, count)
    assert step.loss == pytest.approx(total / int(selected.sum()), rel=1e-6)
