"""A judge that runs here: its probabilities are those of plain code, and of the same model behind a server."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.judging import served, write_answers
from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.judging.judge import Question, text_of
from uncertune.judging.local import LocalJudge
from uncertune.models import resolve_model

QUESTIONS = [
    Question([{"role": "user", "content": "What is 2 + 2?"}], "It is 4.", "Fish " * 20),
    Question([{"role": "user", "content": "Name a colour."}], "Blue, like the sky on a clear day.", "Seven"),
    Question([{"role": "user", "content": "Say hello."}], "Hello!", "No."),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("judge") / "tiny", max_position_embeddings=4096))


class Plain:
    """The model by itself: one prompt, no padding, the whole vocabulary."""

    def __init__(self, path):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path)

    @torch.no_grad()
    def next_token(self, messages):
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids
        return self.model(ids).logits[0, -1].double().softmax(-1)

    def preference(self, question):
        probabilities = self.next_token([{"role": "user", "content": text_of(question)}])
        spelled = [[self.tokenizer(text, add_special_tokens=False).input_ids for text in (x, " " + x)] for x in "AB"]
        a, b = (sum(float(probabilities[ids[0]]) for ids in one if len(ids) == 1) for one in spelled)
        return a / (a + b), a + b

    def completion(self, body, headers, top):
        """What a server says of one token, with the likeliest ``top`` of them."""
        probabilities, ids = self.next_token(body["messages"]).topk(top)
        tokens = [
            {"token": self.tokenizer.decode([token]), "logprob": math.log(share)}
            for share, token in zip(probabilities.tolist(), ids.tolist(), strict=True)
        ]
        place = {**tokens[0], "top_logprobs": tokens}
        choice = {"message": {"content": tokens[0]["token"]}, "logprobs": {"content": [place]}}
        return 200, {"choices": [choice]}, {}


def check(path, tmp_path, top):
    """The judge here, plain code, and ``uncertune compare`` with the same model behind a server."""
    plain, judge = Plain(path), LocalJudge(path, batch_size=2, dtype="float32")
    here = dict(judge.ask(QUESTIONS))
    for number, question in enumerate(QUESTIONS):
        first, mass = plain.preference(question)
        assert here[number].first == pytest.approx(first, abs=1e-5)
        assert here[number].mass == pytest.approx(mass, rel=1e-3)
    files = [
        write_answers(tmp_path / f"{name}.jsonl", {q.messages[0]["content"]: getattr(q, name) for q in QUESTIONS})
        for name in ("second", "first")
    ]
    found = []
    with served(lambda body, headers: plain.completion(body, headers, top)) as (url, log):
        for out, words in (("server", ["--judge", "tiny", "--judge_url", url]), ("here", ["--judge", path])):
            assert main(["compare", *files, *words, "--output_dir", str(tmp_path / out)]) == 0
            lines = (tmp_path / out / "judgements" / "first.jsonl").read_text().splitlines()
            found.append({(one["id"], one["order"]): one for one in map(json.loads, lines)})
    assert len(log) == 6
    assert list(found[0]) == list(found[1])
    return [(one, found[1][key]) for key, one in found[0].items()]


def test_the_judge_here_equals_plain_code_and_the_same_model_behind_a_server(tiny, tmp_path):
    for served_one, here in check(tiny, tmp_path, top=259):
        assert served_one["preference"] == pytest.approx(here["preference"], abs=1e-5)
        assert served_one["mass"] == pytest.approx(here["mass"], rel=1e-3)


@pytest.mark.slow
def test_a_real_model_judges_here_and_behind_a_server(tmp_path):
    judged = check(resolve_model("smollm2-135m"), tmp_path, top=20)
    read = [(one, here) for one, here in judged if one["outcome"] == "judged"]
    assert read, "both letters are among the twenty likeliest tokens at least once"
    for one, here in judged:
        assert one["outcome"] in ("judged", "unparsable")
        assert here["outcome"] == "judged"
    for one, here in read:
        assert one["preference"] == pytest.approx(here["preference"], abs=0.02), "the rarer spellings are cut off"


def test_what_the_judge_cannot_read_is_counted(tmp_path, capsys):
    judge = str(save_tiny(tmp_path / "judge", max_position_embeddings=1024))
    asked = {f"Question {number}?": "word " * (3 + 60 * (number == 0)) for number in range(4)}
    files = [write_answers(tmp_path / f"{name}.jsonl", asked) for name in ("one", "two")]
    assert main(["compare", *files, "--judge", judge, "--output_dir", str(tmp_path / "out")]) == 0
    verdict = json.loads((tmp_path / "out" / "verdicts.json").read_text())["models"]["two"]
    assert verdict["outcomes"] == {"judged": 6, "too_long": 2}
    assert "2 too_long" in capsys.readouterr().err


def test_what_is_known_is_not_asked_again(tiny, tmp_path, monkeypatch):
    files = [write_answers(tmp_path / f"{name}.jsonl", {"Hi?": name, "Ho?": name}) for name in ("one", "two")]
    command = ["compare", *files, "--judge", tiny, "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    monkeypatch.setattr(LocalJudge, "ask", None)
    assert main(command) == 0


MISTAKES = {
    "name": (["--judge", "nowhere/at all"], "nowhere/at all"),
    "template": (["--judge", "{untold}"], "has no chat template"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, tmp_path, capsys):
    words, says = MISTAKES[case]
    untold = save_tiny(tmp_path / "untold")
    (untold / "chat_template.jinja").unlink()
    files = [write_answers(tmp_path / f"{name}.jsonl", {"Hi?": name, "Ho?": name}) for name in ("one", "two")]
    words = [word.format(untold=untold) for word in words]
    assert main(["compare", *files, *words, "--output_dir", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "uncertune: error:" in line]
    assert len(lines) == 1
    assert says in lines[0]
