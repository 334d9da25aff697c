"""Every recipe resolves to a configuration, with the paper's settings (SPEC S13)."""

from pathlib import Path

import pytest

import uncertune
from uncertune.training.arguments import parse

RECIPES = sorted((Path(uncertune.__file__).parent / "recipes").glob("*.yaml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_resolves(recipe, tmp_path):
    given = parse(["--config", str(recipe), "--output_dir", str(tmp_path)])
    training, model = given.training, given.model
    assert given.data.dataset_name in recipe.stem
    assert (training.objective, training.teacher, training.selection_fraction) == ("masked_mle_distill", "auto", 0.25)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 32
    assert (training.num_train_epochs, training.learning_rate) == (1, 1e-4)
    assert str(training.lr_scheduler_type.value) == "cosine"
    assert (model.use_peft, model.lora_r, model.lora_alpha, model.lora_target_modules) == (True, 32, 64, "all-linear")
