"""The store of a cache: checked, whole or absent, shared; and the filling that puts it there."""

import json
import threading

import pytest
import torch

from uncertune.errors import UserError
from uncertune.objectives import FactoredTeacher, Head
from uncertune.teachers import cache
from uncertune.teachers.cache import Document, bytes_per_token, check_space, columns_of, fill, head_digest
from uncertune.teachers.shards import MANIFEST, Shards

ABOUT = {"kind": "loss"}
PRINTS = {"teacher": "aa", "tokenizer": "bb", "data": "cc", "template": "dd", "precision": "float32"}
PER_TOKEN = 4


def documents(count=40):
    return [Document(f"{7919 * n + 1:016x}", length=10 + n % 7, tokens=3 + n % 5) for n in range(count)]


def value(document):
    """What a document's tokens are known by: its key and their place."""
    return torch.arange(document.tokens, dtype=torch.float32) + int(document.key, 16) % 1000


def compute(batch):
    return {"loss": torch.cat([value(one) for one in batch])}


def filled(folder, plan, function=compute, **more):
    shards = Shards(folder, ABOUT, PRINTS)
    fill(
        shards,
        plan,
        function,
        per_token=PER_TOKEN,
        batch_size=4,
        gather=lambda value: [value],
        progress=lambda tokens: None,
        **more,
    )
    return shards


def assert_right(shards, plan):
    shuffled = plan[::-1]
    got = shards.read([one.key for one in shuffled])["loss"]
    assert torch.equal(got, torch.cat([value(one) for one in shuffled]))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.safetensors")}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(cache, "SHARD_TOKENS", 60)


def test_what_was_written_is_read_in_any_order(tmp_path):
    plan = documents()
    assert_right(filled(tmp_path, plan), plan)
    again = Shards(tmp_path, ABOUT, PRINTS)
    assert_right(again, plan)
    assert len(again) == len(plan)
    assert len(contents(tmp_path)) > 5
    assert not list(tmp_path.glob(".shard*"))  # no claims or temporary files stay


def test_what_is_there_is_not_computed_again(tmp_path):
    filled(tmp_path, documents(40))
    asked = []
    shards = filled(tmp_path, documents(43), lambda batch: asked.append(batch) or compute(batch))
    assert [one.key for batch in asked for one in batch] == [
        one.key for one in sorted(documents(43)[40:], key=lambda one: -one.length)
    ]
    assert_right(shards, documents(43))


# ---- damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "flipped byte": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_found_and_it_alone_made_again(tmp_path, damage):
    plan = documents()
    filled(tmp_path, plan)
    before = contents(tmp_path)
    bad = sorted(before)[2]
    damage(tmp_path / bad)
    opened = Shards(tmp_path, ABOUT, PRINTS)
    assert list(opened.damaged) == [bad]
    lost = {one.key for one in plan if one.key not in opened}
    assert 0 < len(lost) < len(plan) / 3
    asked = []
    shards = filled(tmp_path, plan, lambda batch: asked.extend(batch) or compute(batch))
    assert {one.key for one in asked} == lost
    assert_right(shards, plan)
    assert contents(tmp_path) == before
    assert not Shards(tmp_path, ABOUT, PRINTS).damaged


def test_a_file_the_manifest_does_not_name_does_not_count(tmp_path):
    """A kill between the shard and the manifest."""
    plan = documents()
    filled(tmp_path, plan)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    lost = manifest["files"].pop(sorted(manifest["files"])[0])
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / ".shard-0.safetensors.tmp").write_bytes(b"half")
    assert lost
    assert 0 < len(Shards(tmp_path, ABOUT, PRINTS)) < len(plan)
    assert_right(filled(tmp_path, plan), plan)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', ""])
def test_a_broken_manifest_is_said_in_one_line(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match="not the manifest of a cache"):
        Shards(tmp_path, ABOUT, PRINTS)


# ---- whose cache it is


@pytest.mark.parametrize("name", [*PRINTS, "kind"])
def test_another_fingerprint_is_refused_by_its_name(tmp_path, name):
    filled(tmp_path, documents())
    about, prints = dict(ABOUT), dict(PRINTS)
    (about if name in about else prints)[name] = "zz"
    with pytest.raises(UserError, match="teacher_cache_dir") as caught:
        Shards(tmp_path, about, prints)
    message = str(caught.value)
    assert f"another {name} (" in message
    assert "zz here" in message
    assert not any(f"{other} (" in message for other in PRINTS if other != name)


# ---- together


def test_concurrent_runs_share_the_work(tmp_path):
    plan, asked, lock = documents(120), [], threading.Lock()

    def counted(batch):
        with lock:
            asked.extend(one.key for one in batch)
        return compute(batch)

    runs = [threading.Thread(target=filled, args=(tmp_path, plan, counted)) for _ in range(3)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert sorted(asked) == sorted(one.key for one in plan)  # each once
    assert_right(Shards(tmp_path, ABOUT, PRINTS), plan)


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_interrupted_it_goes_on_to_the_same_bytes(tmp_path, stop):
    plan, calls = documents(), []
    filled(tmp_path / "whole", plan)

    def interrupted(batch):
        calls.append(batch)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return compute(batch)

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "cut", plan, interrupted)
    assert len(Shards(tmp_path / "cut", ABOUT, PRINTS)) < len(plan)
    filled(tmp_path / "cut", plan)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_ranks_compute_equally_often(tmp_path):
    """A sharded model needs all ranks in each of its forward passes."""
    plan, counts = documents(90), [0, 0]
    barrier = threading.Barrier(2, timeout=20)
    shared = [None, None]

    def rank(number):
        def gather(mine):
            shared[number] = mine
            barrier.wait()
            out = list(shared)
            barrier.wait()
            return out

        def count(batch):
            counts[number] += 1
            return compute(batch)

        shards = Shards(tmp_path, ABOUT, PRINTS)
        fill(shards, plan, count, per_token=PER_TOKEN, batch_size=4, gather=gather, progress=lambda tokens: None)

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert counts[0] == counts[1]
    assert counts[0] < 30  # alone it would be about 32
    assert_right(Shards(tmp_path, ABOUT, PRINTS), plan)


# ---- room


@pytest.mark.parametrize(("kind", "width"), [("hidden", 16), ("topk", 5), ("loss", 0)])
def test_the_bytes_of_a_token_are_those_of_its_columns(kind, width):
    rows, labels = FactoredTeacher(torch.randn(3, 16), Head(torch.randn(20, 16))), torch.tensor([0, 7, 19])
    columns = columns_of(kind, rows, labels, 5)
    assert sum(one.nbytes for one in columns.values()) == 3 * bytes_per_token(kind, width)


def test_what_changes_the_logits_changes_the_digest_of_a_head():
    weight = torch.randn(20, 16)
    heads = [Head(weight), Head(weight + 1), Head(weight, torch.ones(20)), Head(weight, softcap=30.0)]
    assert len({head_digest(head) for head in (*heads, Head(weight, scale=0.5))}) == 5
    assert head_digest(Head(weight.clone())) == head_digest(heads[0])


def test_a_shard_has_at_most_so_many_input_tokens(monkeypatch):
    monkeypatch.setattr(cache, "SHARD_TOKENS", 10)
    plan = [Document(str(place), length, 1) for place, length in enumerate((4, 6, 4, 12, 1))]
    assert [[one.length for one in group] for group in cache._groups(plan, 1)] == [[4, 6], [4], [12], [1]]


def test_what_does_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    plan = documents()
    tokens = sum(one.tokens for one in plan)
    line = check_space(tmp_path / "not" / "there", plan, 1000)
    assert f"{tokens:,} tokens of 1,000 bytes" in line
    assert len(f"hidden cache: {line}") <= 80
    assert f"{tokens} kB to write" in line
    usage = type("Usage", (), {"free": tokens * 1000 - 1})()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"teacher_cache_dir .* to write, .* free: choose another"):
        check_space(tmp_path, plan, 1000)
    usage.free += 1
    check_space(tmp_path, plan, 1000)


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"teacher_cache_dir.* cannot be written"):
        filled(tmp_path / "file" / "cache", documents())
