"""The page of a run: what differs from the defaults, held-out curves, stage 1, links; several runs on one page."""

import dataclasses
import re
import subprocess
import sys

import pytest
from trl import ModelConfig

from helpers.run_files import run_file
from uncertune.cli import main
from uncertune.report.page import Curves
from uncertune.runs.files import plain
from uncertune.training.config import UncertuneConfig
from uncertune.training.page import changed_settings, curve_sections, token_section


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two stages with an evaluation after each epoch."""
    folder = tmp_path_factory.mktemp("run")
    path = run_file(
        folder,
        rows=12,
        test_split_size=0.25,
        assistant_only_loss=True,
        objective="masked_mle_distill",
        eval_strategy="epoch",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.003,
        use_cpu=True,
        bf16=False,
        report_to="none",
        output_dir=str(folder / "out"),
    )
    assert main(["train", "--config", str(path)]) == 0
    return folder / "out"


def facts(html, title):
    """Names and values of a section of facts."""
    (section,) = re.findall(rf"<h2[^>]*>{title}</h2>(.*?)</section>", html, re.DOTALL)
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", section))


def test_the_page_of_a_run(run):
    html = (run / "report.html").read_text()
    changed = facts(html, "What differs from the defaults")
    assert list(changed)[:3] == ["model_name_or_path", "dataset_name", "objective"]
    assert changed["num_train_epochs"] == "2"
    assert changed["learning_rate"] == "0.003"
    assert changed["assistant_only_loss"] == "true"
    assert "weight_decay" not in changed
    assert facts(html, "All settings")["weight_decay"] == "0"
    for name in ("this run, held out", "stage 1", "stage 1, held out"):
        assert f"<bdi>{name}</bdi>" in html
    for address in ("tokens.html", "README.md", "stage1/report.html"):
        assert f'href="{address}"' in html
        assert (run / address).is_file()
    assert f"uncertune train --config {run / 'config.yaml'}" in html
    assert "carry no loss" not in html


def test_no_default_differs_from_the_defaults():
    fields = [one for kind in (ModelConfig, UncertuneConfig) for one in dataclasses.fields(kind)]
    missing = dataclasses.MISSING
    defaults = {
        one.name: plain(one.default if one.default_factory is missing else one.default_factory()) for one in fields
    }
    assert dict(changed_settings(defaults).items).keys() <= {"objective"}


def test_the_page_is_written_without_torch(run, tmp_path):
    code = "import sys; from uncertune.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "report", str(run), "--output_dir", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "report.html" in done.stdout


def test_evaluations_are_dots_on_the_plot_of_their_metric():
    rows = [{"kind": "step", "step": step, "loss": 2.0 / step} for step in (1, 2)]
    rows += [{"kind": "eval", "step": 2, "eval_loss": 1.5}, {"kind": "eval", "step": 4, "eval_loss": None}]
    (section,) = curve_sections({"mine": rows})
    assert isinstance(section, Curves)
    step, held_out = section.series
    assert (step.name, step.x, step.y, step.dots) == ("mine", (1, 2), (2.0, 1.0), False)
    assert (held_out.name, held_out.x, held_out.y, held_out.dots) == ("mine, held out", (2,), (1.5,), True)


def test_a_token_section_names_the_token_page_only_where_it_is(run):
    probe = run / "probe.jsonl"
    assert "tokens.html" not in token_section(probe, "mle").caption
    assert "tokens.html" in token_section(probe, "mle", tokens_page=True).caption


def test_fields_of_no_configuration_are_shown_if_they_are_set():
    items = dict(changed_settings({"max_train_samples": 8, "dataset_config": None, "lora_r": 16, "seed": 3}).items)
    assert items == {"max_train_samples": "8", "seed": "3"}


def test_several_runs_share_one_page(run, tmp_path):
    assert main(["report", str(run), str(run / "stage1"), "--output_dir", str(tmp_path)]) == 0
    html = (tmp_path / "runs.html").read_text()
    for name in ("out", "stage1", "out, held out", "stage1, held out"):
        assert f"<bdi>{name}</bdi>" in html
    table = html[html.index("What differs between the runs") :]
    assert "masked_mle_distill" in table
    assert "report.html" in html


def test_only_runs_share_a_page(run, tmp_path, capsys):
    assert main(["report", str(run), str(tmp_path), "--output_dir", str(tmp_path / "pages")]) == 2
    assert "is not a run's folder" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()
