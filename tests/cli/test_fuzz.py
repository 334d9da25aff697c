"""Hostile configurations of every command: status 0 or 2, one last line, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import random

import pytest
import yaml

from helpers.hostile_data import fresh_seed
from uncertune.cli import main, sweep, train
from uncertune.cli.main import COMMANDS, command_of
from uncertune.cli.sweep import SweepOptions
from uncertune.settings import Spec, specs_of
from uncertune.sweep.plan import plan
from uncertune.training import fields
from uncertune.training.arguments import arguments_of

COUNT = 1200
VALUES = [
    *(None, True, False, 0, 1, -1, 2, -7, 0.5, -0.5, 1.5, 1e23, 1e-300, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**63, -(2**63) - 1, 10**30, "", " ", "x", "none", "null", "auto", "1e-4", "nan", "inf", "-1", "1e23"),
    *("a\0b", "../..", "/dev/null", "~", "é", "\u202e", "\x1b[31m", "{", "[1, 2", '{"a": 1}', "a,b", "a,a", ","),
    "9" * 5000,
    *([], [1], ["a"], [None], [[1]], {}, {"a": 1}, {"a": {"b": [1, {"c": None}]}}, {1: 2}, ["a", 1, None], [0.1, "x"]),
]  # fmt: skip
RAW = [
    *("a: [", "- a", "a: 1\na: 2", "objective: mle\nobjective: distill", "seed: 2024-99-99", "seed: 2024-01-01"),
    *("seed: 12:30:45", "? [a, b]\n: 1", "&a [*a]", "seed: " + "9" * 5000, "a: " + "[" * 10_000),
    "a: " + "{a: " * 10_000,
    "a: &x0 [1]\n" + "\n".join(f"b{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 9)),
    *("!!python/object/apply:os.system ['true']", "\t", "\x00", "seed: !!float x", "seed: !!int x", "<<: 1", "~: 1"),
    *("1: 2", "true: 1", "seed: *nowhere", "%YAML 9.9\n---\na: 1", "a: 1\n---\nb: 2", "objective: \udc80", ""),
]  # fmt: skip
MEANINGFUL = ("", "seed: 12:30:45")  # no option at all, and YAML's number to the base 60


def specs_for(name: str) -> dict[str, Spec]:
    if name == "train":
        return dict(fields.specs())
    if name == "sweep":
        return {**fields.specs(), **specs_of(SweepOptions)}
    return command_of(name).specs


CONVERTED = list(COMMANDS)


@pytest.fixture
def only_parsed(monkeypatch, tmp_path):
    """Every command checks what it is given and does nothing."""
    monkeypatch.chdir(tmp_path)
    for name in CONVERTED:
        if name not in ("train", "sweep"):
            object.__setattr__(command_of(name), "call", lambda given: 0)
    monkeypatch.setattr(train, "call", lambda settings, over: 0 if arguments_of(settings, over) else 1)
    monkeypatch.setattr(sweep, "call", lambda given: 0 if plan(**given) else 1)


@pytest.fixture(autouse=True)
def restored():
    """The commands as they were, since a frozen dataclass is changed in place."""
    before = {name: command_of(name).call for name in CONVERTED if name not in ("train", "sweep")}
    yield
    for name, call in before.items():
        object.__setattr__(command_of(name), "call", call)


def case(draw: random.Random) -> tuple[str, str, list[str]]:
    """A command, the text of its file, and flags over it."""
    name = draw.choice(CONVERTED)
    specs = specs_for(name)
    if draw.random() < 0.15:
        text = draw.choice(RAW)
    else:
        chosen = draw.sample(list(specs), min(len(specs), draw.choice((1, 1, 2, 3))))
        settings = {one: draw.choice(VALUES) for one in chosen}
        if draw.random() < 0.05:
            settings[draw.choice(["selection_fracton", "", "é", "config"])] = draw.choice(VALUES)
        if name == "sweep" and draw.random() < 0.9:
            own = {one: settings.pop(one) for one in list(settings) if one in specs_of(SweepOptions)}
            settings["sweep"] = {
                "output_dir": "out",
                "arms": draw.choice([{"objective": "masked_mle"}, *VALUES]),
                **own,
            }
        text = yaml.safe_dump(settings, allow_unicode=False) if draw.random() < 0.9 else repr(settings)
    flags = []
    for spec in draw.sample(list(specs.values()), draw.choice((0, 0, 1))):
        value = draw.choice([one for one in VALUES if isinstance(one, str | int | float)])
        flags += [f"--{spec.name}={value}"] if draw.random() < 0.5 else [f"--{spec.name}", str(value)[:100]]
    for spec in specs.values():
        if spec.required and draw.random() < 0.7:
            flags += ["x"] if spec.positional else [f"--{spec.name}", "x"]
    return name, text, flags


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of fields that TRL will remove
@pytest.mark.parametrize("seed", [0, pytest.param(None, marks=pytest.mark.slow)], ids=["fixed", "fresh"])
def test_a_hostile_configuration_is_refused_in_one_line_or_means_something(only_parsed, tmp_path, capsys, seed):
    seed = fresh_seed() if seed is None else seed
    draw, seen = random.Random(seed), {0: 0, 2: 0}
    for number in range(COUNT):
        name, text, flags = case(draw)
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        words = [name, "--config", str(path), *flags]
        status = main(words)
        err = capsys.readouterr().err
        what = f"case {number} of UNCERTUNE_FUZZ_SEED={seed}: {words}\n{text[:300]}\n{err[-2000:]}"
        assert status in (0, 2), what
        seen[status] += 1
        assert "Traceback" not in err, what
        if status == 2:
            assert err.splitlines()[-1].startswith("uncertune: error: "), what
            assert err.count("uncertune: error: ") == 1, what
            assert err.isprintable() or all(c.isprintable() or c == "\n" for c in err), what
        assert [one.name for one in tmp_path.iterdir()] == ["run.yaml"], what
    print(f"UNCERTUNE_FUZZ_SEED={seed}: {seen}")
    assert seen[0] > COUNT // 40, seen
    assert seen[2] > COUNT // 3, seen


@pytest.mark.parametrize("text", RAW, ids=range(len(RAW)))
def test_every_unusable_file_is_one_line(only_parsed, tmp_path, capsys, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert main(["demo", "--config", str(path)]) == (0 if text in MEANINGFUL else 2)
    lines = capsys.readouterr().err.splitlines()
    if text not in MEANINGFUL:
        assert len(lines) == 1
        assert lines[0].startswith("uncertune: error: ")
        assert len(lines[0]) < 700


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device", "out/a.bin"), 2, "out/a.bin: No space left on device"),
        (PermissionError(13, "Permission denied", "out"), 2, "out: Permission denied"),
        (RuntimeError("unable to open <a>: Too many open files (24)"), 2, "(24): raise the limit on open files"),
        (RuntimeError("one\ntwo \x1b[31m"), 1, "RuntimeError: one two \\x1b[31m; the traceback is in "),
    ],
    ids=["no space", "no permission", "no handle", "unforeseen"],
)
def test_what_nobody_foresaw_is_one_line_too(only_parsed, capsys, error, status, said):
    def fail(given):
        raise error

    object.__setattr__(command_of("demo"), "call", fail)
    assert main(["demo"]) == status
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert said in err
    if status == 1:
        file = err.rsplit(" ", 1)[1].strip()
        with open(file, encoding="utf-8") as written:
            assert "Traceback (most recent call last)" in written.read()
        os.unlink(file)
        assert main(["demo", "--debug"]) == 1
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_json_of_a_flag(only_parsed, capsys):
    assert main(["train", "--output_dir", "x", "--model_init_kwargs", json.dumps({"a": 1})]) == 0
    assert main(["train", "--output_dir", "x", "--model_init_kwargs", "{a"]) == 2
    assert "model_init_kwargs: '{a' is not JSON" in capsys.readouterr().err
