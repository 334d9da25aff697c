"""What a command shows: one row of a table per logged step, no bars in files, and nothing but results if quiet."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import yaml

from helpers.run_files import run_file
from uncertune.cli.terminal import Showing, separated
from uncertune.errors import UserError
from uncertune.training.console import CELLS, fitting, number


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A file of ``uncertune train``: two stages of four steps with evaluations."""
    folder = tmp_path_factory.mktemp("terminal")
    run_file(
        folder,
        rows=10,
        test_split_size=0.2,
        objective="masked_mle_distill",
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        num_train_epochs=1,
        overwrite=True,
    )
    return folder


def screen(command, columns=80):
    """The lines that stay on a terminal: of every line, the text after its last carriage return."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=os.environ)
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0, shown.decode()
    return [line.rstrip("\r").rsplit("\r")[-1].rstrip() for line in shown.decode().split("\n")]


def command(run, name, *more):
    words = ["train", "--config", str(run / "run.yaml"), "--output_dir", str(run / name), *more]
    return [sys.executable, "-m", "uncertune.cli", *words]


def test_a_file_gets_plain_lines(run):
    done = subprocess.run(command(run, "file"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    assert "\r" not in done.stdout
    assert "{" not in done.stdout
    lines = done.stdout.splitlines()
    assert all(line.strip() for line in lines)
    assert lines.count("no accelerator found: training on the CPU (use_cpu=True)") <= 1
    assert lines.count("loading the weights of model") == 2
    for step in range(1, 5):
        rows = [line for line in lines if line.strip().startswith(f"{step}/4  ") and "evaluation" not in line]
        assert len(rows) == 2, f"step {step}: one row in each stage"
        assert not re.search("['\":]", rows[0].rsplit("  ", 1)[0])
    heads = [line for line in lines if line.startswith("step  ")]
    assert len(heads) == 2
    assert "threshold" in heads[1]
    assert {len(line) for line in lines if re.match(r"step | \d/4 +[\d.]+ ", line)} == {len(head) for head in heads}
    assert len([line for line in lines if re.match(r" [24]/4  evaluation: loss \d", line)]) == 4
    best = [line for line in lines if line.startswith("evaluation: best loss")]
    assert len(best) == 2
    assert len([line for line in lines if re.match(r"done: 4 steps, [\d,]+ tokens in \d+:\d\d", line)]) == 2
    masked = [yaml.safe_load((run / "file" / one / "config.yaml").read_text()) for one in ("", "stage1")]
    assert [one["assistant_only_loss"] for one in masked] == [True, True]
    assert lines[-2] == f"page:   {run / 'file' / 'report.html'}"


def test_a_terminal_gets_one_line_a_step(run):
    kept = screen(command(run, "screen"))
    for step in range(1, 5):
        assert len([line for line in kept if line.strip().startswith(f"{step}/4  ") and "evaluation" not in line]) == 2
    assert not [line for line in kept if "it/s" in line or "%|" in line]
    assert all(len(line) <= 80 for line in kept if re.match(r"step| \d/4", line))


def test_a_sweep_and_the_demo_fit_a_terminal(run, tmp_path):
    """In one process, so that libraries are imported once: no line wider than the terminal, no bar that stays."""
    fields = yaml.safe_load((run / "run.yaml").read_text())
    for name in ("output_dir", "objective", "overwrite", "test_split_size", "eval_strategy", "eval_steps", "teacher"):
        fields.pop(name, None)
    arms = {"objective": "masked_mle_distill"}
    fields["sweep"] = {"arms": arms, "seeds": [0], "held_out": 2, "documents": 2, "measure_every": "end"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(fields))
    sweep = ["sweep", "--config", str(tmp_path / "sweep.yaml"), "--output_dir", str(tmp_path / "sweep")]
    sizes = {"train_problems": 2, "batch_size": 2, "test_problems": 1, "general_prompts": 1, "max_new_tokens": 2}
    demo = ["demo", "--model", str(run / "model"), "--output_dir", "demo"]
    demo += [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    program = f"import os; from uncertune.cli import main; main({sweep}); os.chdir({str(tmp_path)!r}); main({demo})"
    kept = screen([sys.executable, "-c", program])
    own = [line for line in kept if not line.startswith(("table: ", "page: "))]
    assert [line for line in own if len(line) > 80] == []
    assert [line for line in kept if re.search(r"it/s|%\||\{|[Ww]arn", line)] == []
    assert "masked_mle_distill-loss-0.25-s0 is done: 2 of 2 runs done" in kept
    for heading in (r"Arm  .*Seeds", r"Model  .*text loss ↓"):
        assert [line for line in kept if re.match(heading, line)], heading
    for name in ("the base model", "MLE", "masked MLE + distillation", "MLE + anchor"):
        assert f"== measuring {name}" in kept


def test_quiet_prints_results_only(run):
    done = subprocess.run(command(run, "quiet", "--quiet"), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == f"run:    {run / 'quiet'}"
    wrong = subprocess.run(command(run, "x", "--quiet", "--lora_r", "a"), capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("uncertune: error: lora_r")
    assert len(wrong.stderr.splitlines()) == 1


def test_flags_of_every_command():
    words, showing = separated(["train", "--quiet", "--log-level", "info", "--lr", "1", "--debug"])
    assert words == ["train", "--lr", "1"]
    assert showing == Showing(debug=True, quiet=True, log_level="info")
    assert separated(["train", "--debug", "underflow_overflow"])[0] == ["train", "--debug", "underflow_overflow"]
    with pytest.raises(UserError, match="log_level must be one of debug, info"):
        separated(["score", "--log_level", "loud"])


def test_columns_that_fit():
    everything = {cell.key: 0.0 for cell in CELLS}
    for width in (40, 80, 120, 300):
        cells = fitting(everything, width, 9)
        assert sum(2 + max(cell.width, 9 if cell.key == "progress" else 0) for cell in cells) <= width
        assert [cell.key for cell in cells][:1] == ["progress"]
    assert [cell.key for cell in fitting({"progress": "", "loss": 1.0}, 80, 9)] == ["progress", "loss"]
    assert len(fitting(everything, 300, 9)) == len(CELLS)


def test_numbers_are_short():
    assert [number(one) for one in (0.0, 1.23456, 12345.6, 1e-5, float("nan"), None)] == [
        *("0.0000", "1.2346", "1.2e+04", "1.0e-05"),
        *("–", "–"),
    ]


def test_an_evaluation_in_a_file_has_no_bars(run):
    words = ["evaluate", str(run / "model"), "--tasks", f"tokens:{run / 'rows.jsonl'}", "--limit", "4"]
    words += ["--output_dir", str(run / "evaluation")]
    command = [sys.executable, "-m", "uncertune.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "loading the weights of model"
    assert lines[1].startswith("== model: tokens:")
