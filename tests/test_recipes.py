"""Every recipe is what ``tools.recipes`` makes, resolves with the paper's settings (SPEC S13), and trains.

A model of the same architecture, two layers wide, with the chat template of the recipe's own, takes two steps.
"""

import json
import re
from pathlib import Path

import pytest
import trl
import yaml

import uncertune
from helpers.tiny import save_tiny
from tools.recipes import DATA, MODELS, OBJECTIVES, recipes
from uncertune.cli import main, sweep, train
from uncertune.runs import read_metrics
from uncertune.sweep.plan import plan
from uncertune.training.arguments import arguments_of

FOLDER = Path(uncertune.__file__).parent / "recipes"
RUNS = sorted((FOLDER / "paper").glob("*.yaml"))
RELATIVES = sorted((FOLDER / "family").glob("*.yaml"))
SWEEPS = sorted((FOLDER / "sweeps").glob("*.yaml"))
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TINY = {"gemma-2b": ("gemma", "gemma"), "gemma-2-2b": ("gemma2", "gemma"), "llama-3.2-1b": ("llama", "llama3_2")}


def test_the_files_are_what_the_tool_makes():
    made = recipes()
    assert {Path(name).name for name in made if name.startswith("paper/")} == {path.name for path in RUNS}
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run python -m tools.recipes"


@pytest.mark.parametrize("recipe", RUNS + RELATIVES + SWEEPS, ids=lambda path: path.stem)
def test_its_command_is_the_one_that_runs_it(recipe):
    command = re.search(r"^# Run: +(.*)$", recipe.read_text(), re.MULTILINE).group(1).split()
    assert command[:2] == ["uncertune", "sweep" if recipe.parent.name == "sweeps" else "train"]
    assert (FOLDER / f"{command[command.index('--config') + 1]}.yaml").samefile(recipe)


@pytest.mark.parametrize("recipe", RELATIVES, ids=lambda path: path.stem)
def test_a_later_objective_resolves(recipe, tmp_path):
    given = arguments_of(*train.parse(["--config", str(recipe), "--output_dir", str(tmp_path)]))
    training, name = given.training, recipe.stem.split("_")[-1]
    assert training.token_weighting == {"dft": "dft", "asft": "dft", "eaft": "eaft"}.get(name, "none")
    assert training.uses_anchor == (name in ("asft", "sft-kl"))
    assert training.teacher_members == (4 if name == "members" else 1)
    _check_settings(given)


@pytest.mark.parametrize("recipe", RUNS, ids=lambda path: path.stem)
def test_a_run_resolves_to_the_papers_settings(recipe, tmp_path):
    given = arguments_of(*train.parse(["--config", str(recipe), "--output_dir", str(tmp_path)]))
    model_name, data, objective = recipe.stem.split("_")
    training, model = given.training, given.model
    assert model.model_name_or_path.lower().endswith("/" + model_name)
    assert given.data.dataset_name == data
    assert training.objective == objective.replace("-", "_")
    assert training.teacher == ("auto" if "distill" in objective else None)
    assert (training.selection_metric, training.selection_fraction) == ("loss", 0.25)
    _check_settings(given)


@pytest.mark.parametrize("recipe", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_resolves_and_none_of_its_arms_is_refused(recipe, tmp_path, capsys):
    found = plan(**sweep.parse(["--config", str(recipe), "--output_dir", str(tmp_path)]))
    assert "refused" not in capsys.readouterr().err
    names = [arm.name for arm in found.arms]
    assert names[0] == "mle"
    assert len(names) == len(set(names)) > 1
    if recipe.name.startswith("fig"):
        _check_settings(found.common)
    if recipe.name.startswith("fig3"):
        assert len(names) == 9
    if recipe.name.startswith("fig5-6"):
        assert {arm.objective for arm in found.arms} == set(OBJECTIVES)


def _check_settings(given):
    training, model = given.training, given.model
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 32
    assert (training.num_train_epochs, training.learning_rate) == (1, 1e-4)
    assert str(training.lr_scheduler_type.value) == "cosine"
    assert (model.use_peft, model.lora_r, model.lora_alpha, model.lora_target_modules) == (True, 32, 64, "all-linear")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A row a data set, in its own format, so often that two steps have their rows."""
    alpaca = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
    gsm8k = {"question": "What is 2 + 2?", "answer": "It is 4.\n#### 4"}
    turns = [("human", "Hi."), ("gpt", "Hello."), ("human", "Bye."), ("gpt", "Goodbye.")]
    sharegpt = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    folder = tmp_path_factory.mktemp("rows")
    for name, row in {"alpaca": alpaca, "gsm8k": gsm8k, "sharegpt": sharegpt}.items():
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    return folder


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_two_steps_on_a_tiny_model_of_the_same_architecture(model, objective, rows, tmp_path):
    kind, template = TINY[model.name]
    data = DATA[list(OBJECTIVES).index(objective) % len(DATA)].name
    settings = yaml.safe_load(
        (FOLDER / "paper" / f"{model.name}_{data}_{objective.replace('_', '-')}.yaml").read_text()
    )
    smaller = {
        "model_name_or_path": str(save_tiny(tmp_path / "model", kind, max_position_embeddings=2048)),
        "chat_template_path": str(TEMPLATES / f"{template}.jinja"),
        "dataset_name": str(rows / f"{data}.jsonl"),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "lora_r": 2,
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**settings, **smaller}))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "out")]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl", "step")] == [1, 2]
    assert (tmp_path / "out" / "stage1").is_dir() == ("distill" in objective)
