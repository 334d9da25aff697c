"""The benchmark commands on small problems: everyone who can run is there and right, and the rest is named."""

import csv
import importlib.util

import pytest
import torch

from benchmarks import head, measure, step
from benchmarks.contestants import CROSS_ENTROPY, DISTILLATION, FAMILY, MASKED, Contestant, Problem


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.skipif(importlib.util.find_spec("cut_cross_entropy") is not None, reason="CCE is installed")
def test_a_peer_that_is_not_installed_says_how_to_install_it():
    cce = next(contestant for contestant in CROSS_ENTROPY if contestant.name == "CCE")
    problem = Problem.make(8, 16, 64, None, torch.bfloat16, "cpu", False)
    assert "pip install --no-deps cut-cross-entropy" in cce.why_not(problem)


def test_a_wrong_gradient_is_not_timed(capsys):
    """A contestant that forgets the mean over tokens would win any race."""
    cheat = Contestant("cheat", lambda p: p.hidden.sum() * 0)
    problem = Problem.make(8, 16, 64, None, torch.bfloat16, "cpu", False)
    assert head.run_race(problem, [cheat], 1, "cpu") == []
    assert "skipped: cheat: its gradient in hidden is 100.0% off in norm" in capsys.readouterr().out


def test_memory_that_the_allocator_holds_and_nobody_uses_is_free(monkeypatch):
    for name, value in {"mem_get_info": (10, 100), "memory_reserved": 60, "memory_allocated": 20}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert measure.available_bytes("cuda") == 50


def test_the_state_of_an_optimizer_counts():
    weight = torch.zeros(2**18, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    assert step.state_mebibytes(optimizer) == 0
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert step.state_mebibytes(optimizer) == pytest.approx(2, rel=1e-3)  # two moments of 1 MiB


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_ours_are_right(softcap, train_head):
    problem = Problem.make(8, 16, 64, softcap, torch.bfloat16, "cpu", train_head)
    for contestant in CROSS_ENTROPY + MASKED + DISTILLATION + FAMILY:
        if contestant.ours:
            assert head.wrong(contestant, problem) is None


def test_the_problem_is_as_hard_as_real_text():
    """Too hard labels would cost ours more, too easy ones less, than they do in training."""
    problem = Problem.make(512, 576, 8192, None, torch.float32, "cpu", False)
    logits = problem.hidden.detach() @ problem.head.T
    gap = logits.amax(-1) - logits.gather(-1, problem.labels[:, None])[:, 0]
    assert 0.04 < (gap > 4).float().mean() < 0.2
    assert (gap > 8).float().mean() < 0.05


def test_medians_take_turns():
    calls = []
    measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "cpu")
    assert "".join(calls) == "aabb" + "abab"


@pytest.mark.parametrize(
    ("main", "argv", "says"),
    [
        (head.main, ["--shapes", "gpt5"], "--shapes gpt5: choose from"),
        (head.main, ["--tokens", "0"], "--tokens 0: give numbers"),
        (head.main, ["--repeats", "0"], "--repeats 0: give at least 1"),
        (step.main, ["--arms", "dpo"], "--arms dpo: choose from"),
        (step.main, ["--batch_size", "16", "--accumulation", "3"], "--accumulation 3: give numbers that divide"),
    ],
)
def test_bad_arguments_are_one_line(main, argv, says, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_steps_of_every_arm(tmp_path):
    argv = ["--batch_size", "2", "--rounds", "1", "--steps", "1", "--output_dir", str(tmp_path)]
    step.main(argv)
    rows = read(tmp_path / "step-cpu.csv")
    assert [row["contestant"] for row in rows] == ["TRL sft"] + [f"uncertune {arm}" for arm in list(step.ARMS)[1:]]
    assert all(float(row["ms"]) > 0 and float(row["peak_MiB"]) > 500 for row in rows)
