"""The study on the language: its losses are those of the objectives' room, model by model."""

import math

import pytest
import torch

from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.studies import post_training
from uncertune.studies.language import LENGTH, Language, Transformer
from uncertune.studies.post_training import Arm, Setting, World, arms, measures, objective_loss, selected
from uncertune.studies.stacked import Stacked


@pytest.fixture(scope="module")
def world():
    setting = Setting(2, 0, pretraining_steps=20, texts=8, batch=4, epochs=1, test_texts=8, samples=3)
    return World.pretrained(setting, lambda *_: None)


def test_pretraining_learns():
    setting = Setting(2, 0, texts=8, test_texts=16)
    language = Language.draw(2, torch.Generator().manual_seed(0))
    raw = World(setting, language, Stacked(Transformer, [0, 1]))
    raw.base.base.eval()
    trained = World.pretrained(Setting(2, 0, pretraining_steps=100, texts=8, test_texts=16), lambda *_: None)
    assert (measures(trained, trained.base)["kl_out"] < 0.7 * measures(raw, raw.base)["kl_out"]).all()


@pytest.mark.parametrize("arm", arms(), ids=lambda arm: arm.name)
def test_the_loss_of_an_arm_is_that_of_each_model_alone(world, arm):
    world.references()
    texts = world.data[:, :4]
    logits = world.base(texts[..., :-1]).detach()
    mask = selected(world, world.base, arm, texts, logits, 0) if "masked" in arm.objective else None
    total = 0.0
    for model in range(2):
        given = dict(arm.options)
        if mask is not None:
            given["selected"] = mask[model].flatten()
            if arm.level == "token":
                assert int(mask[model].sum()) == math.ceil(arm.fraction * 4 * LENGTH)
            else:
                assert set(mask[model].sum(-1).tolist()) <= {0, LENGTH}
        if "distill" in arm.objective:
            given["teacher"] = world.teacher(texts[..., :-1])[model].softmax(-1).flatten(0, 1)
        if arm.objective == "oracle":
            given["oracle"] = world.shifted.oracle(texts)[model].float().flatten(0, 1)
        targets = OBJECTIVES[arm.objective](texts[model, :, 1:].flatten(), **given)
        total += float(weighted_nll(logits[model].flatten(0, 1), targets).mean())
    assert float(objective_loss(world, world.base, arm, texts, 0)) == pytest.approx(total, rel=1e-5)


def test_bald_selects_the_same_twice(world):
    texts = world.data[:, :4]
    logits = world.base(texts[..., :-1]).detach()
    masks = [selected(world, world.base, Arm("masked_mle", metric="bald"), texts, logits, 7) for _ in range(2)]
    assert torch.equal(*masks)
    other = selected(world, world.base, Arm("masked_mle", metric="bald"), texts, logits, 8)
    assert not torch.equal(masks[0], other)


def test_aligned_policy_gradient_is_the_oracle(world):
    texts = world.data[:, :4]
    losses = [
        float(objective_loss(world, world.base, arm, texts, 0))
        for arm in (Arm("policy_gradient", options={"reward": "aligned"}), Arm("oracle"))
    ]
    assert losses[0] == losses[1]


def test_an_arm_leaves_the_pretrained_models_alone(world):
    before = {name: value.detach().clone() for name, value in world.base.parameters.items()}
    world.trained(post_training.BOTH)
    assert all(torch.equal(before[name], value) for name, value in world.base.parameters.items())
    assert not any(value.grad is not None for value in world.base.parameters.values())
