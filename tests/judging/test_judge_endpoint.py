"""A judge behind an endpoint: preferences, every failure a counted outcome, the cache, the key."""

import base64
import json
import math
import socket
import threading
import time

import pytest

from helpers.judging import KEY, said, served, shown, write_answers
from uncertune.cli import main
from uncertune.judging import endpoint
from uncertune.judging.judge import Question, read_reply, text_of
from uncertune.judging.secret import WITHHELD, withhold
from uncertune.runs import notes


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def prefer_longer(body, headers):
    """70 % for the longer answer, whatever its place."""
    _, first, second = shown(body)
    a = 0.7 if len(first) > len(second) else 0.3
    return said("A" if a > 0.5 else "B", {"A": math.log(a * 0.9), " B": math.log((1 - a) * 0.9), "C": math.log(0.1)})


ASKED = {f"Question {number}?": f"An answer of {'many ' * number}words" for number in range(6)}
SHORT = dict.fromkeys(ASKED, "Short")


@pytest.fixture
def files(tmp_path):
    return write_answers(tmp_path / "short.jsonl", SHORT), write_answers(tmp_path / "long.jsonl", ASKED)


def run(files, url, out, *words):
    return main(["compare", *files, "--judge", "m", "--judge_url", url, "--output_dir", str(out), *words])


def judged(out, label="long"):
    lines = [json.loads(line) for line in (out / "judgements" / f"{label}.jsonl").read_text().splitlines()]
    return lines, json.loads((out / "verdicts.json").read_text())["models"][label]


def test_both_orders_are_asked_and_the_probabilities_count(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notes, "NOTE_SECONDS", 0.0)
    with served(prefer_longer) as (url, log):
        assert run(files, url, tmp_path / "out") == 0
    shown = capsys.readouterr().err
    assert "\r" not in shown, "a bar in a file"
    assert "judgements (long): 11 of 12 judgements, 0:00 left\n" in shown
    lines, verdict = judged(tmp_path / "out")
    assert len(log) == len(lines) == 12
    assert {(one["id"], one["order"]) for one in lines} == {
        (name, order) for name in {one["id"] for one in lines} for order in ("model_first", "baseline_first")
    }
    assert [one["preference"] for one in lines] == pytest.approx([0.7] * 12)
    assert [one["mass"] for one in lines] == pytest.approx([0.9] * 12)
    assert verdict["outcomes"] == {"judged": 12}
    assert verdict["raw"]["value"] == pytest.approx(0.7)
    assert {tuple(sorted((body["temperature"], body["top_logprobs"]))) for body in log} == {(0, 20)}


FAILURES = {
    "http_429": lambda body, headers: (429, {"error": "slow down"}, {"retry-after": "0"}),
    "http_500": lambda body, headers: (500, b"<html>oops</html>", {}),
    "http_400": lambda body, headers: (400, {"error": "context length exceeded"}, {}),
    "refused": lambda body, headers: said("I'm sorry, but I cannot compare these.", {"A": -5.0, "B": -6.0}),
    "unparsable": lambda body, headers: said("Both are fine, A as well as B"),
    "timeout": lambda body, headers: (time.sleep(4), said("A"))[1],
}
MORE = {
    "html": ("bad_reply", lambda body, headers: (200, b"<html>Bad gateway</html>", {})),
    "empty": ("bad_reply", lambda body, headers: (200, b"", {})),
    "broken_json": ("bad_reply", lambda body, headers: (200, b'{"choices": [{"mess', {})),
    "no_choices": ("bad_reply", lambda body, headers: (200, {"choices": []}, {})),
    "deep": ("bad_reply", lambda body, headers: (200, b"[" * 100_000, {})),
    "endless": ("bad_reply", lambda body, headers: (200, b" " * (5 * 2**20), {})),
    "null_content": ("unparsable", lambda body, headers: said(None)),
    "filtered": (
        "refused",
        lambda body, headers: (
            200,
            {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]},
            {},
        ),
    ),
    "broken": ("disconnected", lambda body, headers: (200, b"{", {"content-length": "99"})),
}


@pytest.mark.parametrize("case", [*FAILURES, *MORE])
def test_every_failure_is_a_counted_outcome(case, files, tmp_path, capsys):
    limit = "1.5" if case == "timeout" else "60"
    outcome, failure = MORE[case] if case in MORE else (case, FAILURES[case])

    def reply(body, headers):
        if "Question 0?" in shown(body)[0]:
            return failure(body, headers)
        return prefer_longer(body, headers)

    with served(reply) as (url, log):
        assert run(files, url, tmp_path / "out", "--judge_timeout", limit, "--judge_retries", "1") == 0
    lines, verdict = judged(tmp_path / "out")
    assert verdict["outcomes"] == {"judged": 10, outcome: 2}
    assert f"2 of 12 judgements are missing from the rates: 2 {outcome}" in verdict["warning"]
    assert verdict["warning"] in capsys.readouterr().err
    assert [one["preference"] is None for one in lines] == [True, True] + [False] * 10
    tries = sum("Question 0?" in shown(body)[0] for body in log)
    assert tries == (4 if outcome in ("timeout", "http_429", "http_500", "disconnected", "bad_reply") else 2)


def test_nothing_but_failures_is_reported_too(files, tmp_path):
    with served(FAILURES["http_500"]) as (url, _):
        assert run(files, url, tmp_path / "out", "--judge_retries", "0") == 0
    _, verdict = judged(tmp_path / "out")
    assert verdict["outcomes"] == {"http_500": 12}
    assert verdict["raw"] is verdict["adjusted"] is None


def test_a_failure_that_passes_is_no_failure(files, tmp_path):
    seen = {}

    def reply(body, headers):
        tries = seen[key] = seen.get(key := shown(body), 0) + 1
        return (503, {}, {}) if tries < 3 else prefer_longer(body, headers)

    with served(reply) as (url, log):
        assert run(files, url, tmp_path / "out") == 0
    assert len(log) == 36
    assert judged(tmp_path / "out")[1]["outcomes"] == {"judged": 12}


def test_a_rerun_asks_only_what_failed(files, tmp_path):
    broken = threading.Event()
    broken.set()

    def reply(body, headers):
        if broken.is_set() and "Question 0?" in shown(body)[0]:
            return 500, {}, {}
        return said("B") if "Question 1?" in shown(body)[0] else prefer_longer(body, headers)

    with served(reply) as (url, log):
        assert run(files, url, tmp_path / "out", "--judge_retries", "0") == 0
        broken.clear()
        log.clear()
        assert run(files, url, tmp_path / "out") == 0
        assert len(log) == 2
        first = (tmp_path / "out" / "verdicts.json").read_bytes()
        log.clear()
        assert run(files, url, tmp_path / "out") == 0
        assert run(files, url, tmp_path / "out", "--baseline", "long") == 0
        assert log == [], "the same two answers in the same order, whoever is the baseline"
        assert run(files, url, tmp_path / "out") == 0
        assert (tmp_path / "out" / "verdicts.json").read_bytes() == first
        assert main(["compare", *files, "--judge", "n", "--judge_url", url, "--output_dir", str(tmp_path / "out")]) == 0
        assert len(log) == 12, "another judge"


def test_a_judge_that_goes_away_ends_in_one_line_and_what_it_said_is_kept(files, tmp_path, capsys):
    def reply(body, headers):
        if len(log) > 5:
            return 401, {"error": f"bad key {KEY}"}, {}
        return prefer_longer(body, headers)

    with served(reply) as (url, log):
        assert run(files, url, tmp_path / "out", "--judge_concurrency", "1") == 2
        assert "it asks for a key: give --judge_key" in capsys.readouterr().err
    kept = (tmp_path / "out" / "judgements.cache.jsonl").read_bytes()
    assert kept.count(b"\n") == 5
    assert run(files, url, tmp_path / "out", "--judge_retries", "0") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [f"{url} cannot be reached" in line for line in lines if "error" in line] == [True]
    assert (tmp_path / "out" / "judgements.cache.jsonl").read_bytes() == kept


def test_an_interruption_keeps_what_was_judged(files, tmp_path, monkeypatch):
    from uncertune.judging.judgements import Cache

    add = Cache.add

    def stops(self, *args):
        add(self, *args)
        if len(self._known) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Cache, "add", stops)
    with served(prefer_longer) as (url, log):
        assert run(files, url, tmp_path / "out", "--judge_concurrency", "1") == 130
        monkeypatch.setattr(Cache, "add", add)
        cache = tmp_path / "out" / "judgements.cache.jsonl"
        cache.write_text(cache.read_text() + '{"key": "12')  # and a crash within a line
        log.clear()
        assert run(files, url, tmp_path / "out") == 0
        assert len({shown(body) for body in log}) == 8, "beside, perhaps, the request that was under way"
    assert judged(tmp_path / "out")[1]["outcomes"] == {"judged": 12}


def test_the_key_is_sent_and_shows_nowhere(files, tmp_path, monkeypatch, capsys):
    sent = []

    def reply(body, headers):
        sent.append(headers["authorization"])
        number = len(sent)
        if number == 1:
            return 500, {"error": f"internal: {headers['authorization']}"}, {}
        return said(f"A\n{KEY}") if number % 2 else prefer_longer(body, headers)

    monkeypatch.setenv("MY_KEY", KEY)
    with served(reply) as (url, _):
        words = ["--judge_key", "MY_KEY", "--judge_retries", "0"]
        assert run(files, url, tmp_path / "out", *words) == 0
        assert set(sent) == {f"Bearer {KEY}"}

        def refuses(body, headers):
            return 401, {"error": f"Incorrect API key provided: {KEY}"}, {}

    with served(refuses) as (url, _):
        assert run(files, url, tmp_path / "other", *words) == 2
    printed = capsys.readouterr()
    assert "the key in MY_KEY is not accepted" in printed.err
    assert KEY not in printed.err + printed.out
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(everything) > 6
    assert not [path for path in everything if KEY.encode() in path.read_bytes()]


ECHOES = {
    "json escapes": lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
    "percent": lambda key: "".join(f"%{ord(letter):02X}" for letter in key),
    "twice percent": lambda key: "".join(f"%25{ord(letter):02X}" for letter in key),
    "entities": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "base64": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 within": lambda key: base64.b64encode(f"xx{key}".encode()).decode().rstrip("="),
    "url base64": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "hex": lambda key: key.encode().hex(),
    "hex with colons": lambda key: key.encode().hex(":"),
    "reversed": lambda key: key[::-1],
    "upper case": lambda key: key.upper(),
    "spaced": lambda key: " ".join(key),
    "zero width": lambda key: "\u200b".join(key),
    "in part": lambda key: f"{key[:12]}****{key[-3:]}",
}


@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_that_comes_back_in_another_encoding_shows_nowhere(echo):
    said = f"Incorrect key: {ECHOES[echo](KEY)} given"
    assert withhold(said, KEY) == WITHHELD
    assert withhold(said, "another-key-altogether") == said
    assert withhold("A is better, and a long sentence says why: sk-a", KEY).startswith("A is")


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    assert run(files, "http://127.0.0.1:9/v1", tmp_path / "out", "--judge_key", "MY_KEY") == 2
    said = capsys.readouterr().err
    assert "characters that a key cannot have" in said
    assert KEY not in said


def test_a_key_that_was_not_meant_for_it_is_not_sent_to_a_server_without_https(files, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with served(lambda body, headers: sent.append(headers["authorization"]) or prefer_longer(body, headers)) as (
        url,
        _,
    ):
        assert run(files, url, tmp_path / "out") == 0
    assert set(sent) == {None}


def test_after_many_failures_in_a_row_nothing_is_repeated(tmp_path):
    asked = {f"Question {number}?": "Yes" for number in range(15)}
    files = [write_answers(tmp_path / f"{name}.jsonl", dict.fromkeys(asked, name)) for name in ("short", "long")]
    with served(FAILURES["http_500"]) as (url, log):
        assert run(files, url, tmp_path / "out", "--judge_retries", "1", "--judge_concurrency", "1") == 0
    assert len(log) == 2 * endpoint.HOPELESS + (30 - endpoint.HOPELESS)
    assert judged(tmp_path / "out")[1]["outcomes"] == {"http_500": 30}


def test_a_field_that_a_server_does_not_take_is_left_out(files, tmp_path):
    def reply(body, headers):
        for name in ("logprobs", "temperature"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'"}}, {}
        if "max_tokens" in body:
            return 400, {"error": {"message": "'max_tokens' is not supported, use 'max_completion_tokens'"}}, {}
        _, first, second = shown(body)
        return said("**A**" if len(first) > len(second) else "Answer: B")

    with served(reply) as (url, log):
        assert run(files, url, tmp_path / "out", "--judge_concurrency", "1") == 0
    assert len(log) == 15
    assert set(log[-1]) == {"model", "messages", "max_completion_tokens"}
    lines, verdict = judged(tmp_path / "out")
    assert {one["preference"] for one in lines} == {1.0}
    assert "12 of 12 judgements came without probabilities" in verdict["warning"]


READ = {
    "A": 1.0,
    " B\n": 0.0,
    "**A**": 1.0,
    "My verdict: [[B]]": 0.0,
    "Answer A is better than Answer B.": 1.0,
    "B is clearly better, A is not": 0.0,
    "The better one is Answer B.": 0.0,
    "A good answer is short": None,
    "Answer A and Answer B are alike": None,
    "Neither": None,
    "<think>A or B? I'm sorry, B.</think>\n\nA": 1.0,
    "<think>Let me see, Answer B": None,
    "": None,
}


@pytest.mark.parametrize("text", READ)
def test_a_reply_of_text_is_read_only_where_it_is_plain(text):
    reply = read_reply(text)
    assert reply.first == READ[text]
    assert reply.outcome == ("unparsable" if READ[text] is None else "judged")


@pytest.mark.parametrize("value", [math.inf, math.nan, 900.0, 5.0, "x", None, True])
def test_a_value_that_is_not_a_log_probability_is_not_used(value, files, tmp_path):
    with served(lambda body, headers: said("A", {"A": value, "B": -1.0})) as (url, _):
        assert run(files, url, tmp_path / "out") == 0
    lines, verdict = judged(tmp_path / "out")
    assert {(one["preference"], one["mass"]) for one in lines if one["order"] == "model_first"} == {(1.0, None)}
    assert verdict["outcomes"] == {"judged": 12}


def test_an_impossible_letter_has_probability_nought(files, tmp_path):
    with served(lambda body, headers: said("A", {"A": math.log(0.9), "B": -math.inf})) as (url, _):
        assert run(files, url, tmp_path / "out") == 0
    assert [one["mass"] for one in judged(tmp_path / "out")[0]] == pytest.approx([0.9] * 12)


def test_surrogates_that_stand_alone_are_written_as_unknown_characters(files, tmp_path):
    reply = rb'{"choices": [{"message": {"content": "Both \ud800 are fine"}}]}'
    with served(lambda body, headers: (200, reply, {})) as (url, _):
        assert run(files, url, tmp_path / "out") == 0
    lines, verdict = judged(tmp_path / "out")
    assert verdict["outcomes"] == {"unparsable": 12}
    assert lines[0]["reply"] == "Both \ufffd are fine"


def test_a_server_that_sends_a_byte_at_a_time_meets_the_deadline():
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip(connection):
        with connection:
            for letter in b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b" " * 100_000:
                if stop.wait(0.05):
                    return
                try:
                    connection.sendall(bytes([letter]))
                except OSError:
                    return

    def serve():
        while not stop.is_set():
            try:
                threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        judge = endpoint.Endpoint("m", f"http://127.0.0.1:{server.getsockname()[1]}/v1", timeout=0.5, retries=0)
        started = time.monotonic()
        ((_, reply),) = judge.ask([Question([{"role": "user", "content": "?"}], "a", "b")])
        assert reply.outcome == "timeout"
        assert time.monotonic() - started < 3
    finally:
        stop.set()
        server.close()


def test_damaged_lines_of_the_cache_are_asked_again(files, tmp_path):
    with served(prefer_longer) as (url, log):
        assert run(files, url, tmp_path / "out") == 0
        cache = tmp_path / "out" / "judgements.cache.jsonl"
        lines = [json.loads(line) for line in cache.read_text().splitlines()]
        lines[0]["first"], lines[1]["first"] = math.nan, 900
        del lines[2]["outcome"]
        cache.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
        log.clear()
        assert run(files, url, tmp_path / "out") == 0
        assert len(log) == 3
    assert [one["preference"] for one in judged(tmp_path / "out")[0]] == pytest.approx([0.7] * 12)


def test_an_answer_that_holds_a_placeholder_stays_as_it_is():
    text = text_of(Question([{"role": "user", "content": "{first} or {second}?"}], "{second}", "{instruction}"))
    assert shown({"messages": [{"content": text}]}) == ("{first} or {second}?", "{second}", "{instruction}")


MISTAKES = {
    "key": (["--judge_url", "https://judge.invalid/v1"], "the environment variable OPENAI_API_KEY is not set"),
    "named": (["--judge_url", "http://127.0.0.1:9/v1", "--judge_key", "MY_KEY"], "variable that it names is not set"),
    "key for its name": (["--judge_url", "http://127.0.0.1:9/v1", "--judge_key", KEY], "not the key"),
    "key like a name": (
        ["--judge_url", "http://127.0.0.1:9/v1", "--judge_key", KEY.replace("-", "_")],
        "variable that it names is not set",
    ),
    "secret": (["--judge_url", f"http://me:{KEY}@127.0.0.1:9/v1"], "contains a user, a query or a fragment"),
    "query": (["--judge_url", f"http://127.0.0.1:9/v1?key={KEY}"], "contains a user, a query or a fragment"),
    "address": (["--judge_url", "localhost:8000"], "is not an address"),
    "port": (["--judge_url", "http://127.0.0.1:x"], "is not an address"),
    "large port": (["--judge_url", "http://127.0.0.1:99999/v1"], "is not an address"),
    "bracket": (["--judge_url", "http://[::1"], "is not an address"),
    "control": (["--judge_url", "http://127.0.0.1:9/v1\x1b[31m"], "is not an address"),
    "name": (["--judge_url", "http://ex ample/v1"], "is not an address"),
    "for ever": (["--judge_url", "http://127.0.0.1:9/v1", "--judge_timeout", "inf"], "judge_timeout must be"),
    "never": (["--judge_url", "http://127.0.0.1:9/v1", "--judge_timeout", "nan"], "judge_timeout must be"),
    "unreachable": (["--judge_url", "http://127.0.0.1:9/v1", "--judge_retries", "0"], "cannot be reached"),
    "timeout": (["--judge_url", "http://127.0.0.1:9/v1", "--judge_timeout", "0"], "judge_timeout must be"),
    "baseline": (["--judge_url", "http://127.0.0.1:9/v1", "--baseline", "mle"], "choose from short, long"),
    "tasks": (["--judge_url", "http://127.0.0.1:9/v1", "--tasks", "gsm8k"], "files of answers cannot be asked"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, files, tmp_path, capsys):
    words, says = MISTAKES[case]
    assert main(["compare", *files, "--judge", "m", *words, "--output_dir", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "uncertune: error:" in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert KEY not in lines[0]
    assert KEY.replace("-", "_") not in lines[0]
    assert lines[0].isprintable()
    assert not (tmp_path / "out" / "verdicts.json").exists()


def test_answers_to_other_prompts_are_refused_before_anything_is_asked(files, tmp_path, capsys):
    other = write_answers(tmp_path / "other.jsonl", {**dict(list(ASKED.items())[1:]), "Another?": "Yes"})
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * '{"instruction": "Hi", "output": "Ho"}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "Hi"}\n')
    with served(prefer_longer) as (url, log):
        assert run((*files, other), url, tmp_path / "out") == 2
        assert "1 of its 6 are missing, 1 others are present" in capsys.readouterr().err
        for wrong, says in (
            (twice, "row 1 answers a prompt that an earlier row"),
            (empty, "has no column answer"),
        ):
            assert run((files[0], str(wrong)), url, tmp_path / "out") == 2
            assert says in capsys.readouterr().err
        assert run(files, url, tmp_path / "out") == 0
        changed = write_answers(tmp_path / "long.jsonl", {**ASKED, "Question 0?": "Another"})
        before = (tmp_path / "out" / "verdicts.json").read_bytes()
        log.clear()
        assert run((files[0], changed), url, tmp_path / "out") == 2
        assert "holds other answers of 'long'" in capsys.readouterr().err
        assert (tmp_path / "out" / "verdicts.json").read_bytes() == before
        assert not log
        assert run((files[0], changed), url, tmp_path / "out", "--overwrite") == 0
        assert len(log) == 2
