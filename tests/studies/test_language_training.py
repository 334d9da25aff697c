"""The study on the language: its losses are those of the objectives' room, model by model."""

import math

import numpy as np
import pytest
import torch

from uncertune.objectives import OBJECTIVES, token_weighting, weighted_nll
from uncertune.studies.language import family as family_module
from uncertune.studies.language.arms import BOTH, MASKED, MLE, ORACLE, REWARDED, Arm, table
from uncertune.studies.language.family import FAMILY
from uncertune.studies.language.grammar import LENGTH, VOCABULARY, WORDS, Language
from uncertune.studies.language.losses import (
    noise_weights,
    objective_loss,
    rewarded,
    right_word,
    selected,
    token_losses,
    token_scores,
)
from uncertune.studies.language.model import Transformer
from uncertune.studies.language.path import lost_at
from uncertune.studies.language.training import best_teacher, post_train, pretrained, teacher, trained
from uncertune.studies.language.truth import measures
from uncertune.studies.language.world import Setting, World
from uncertune.studies.stacked import Stacked

SMALL = {"texts": 8, "batch": 4, "epochs": 1, "test_texts": 8, "samples": 3, "noise": 0.1}


@pytest.fixture(scope="module")
def world():
    world = pretrained(Setting(2, 0, pretraining_steps=20, **SMALL), lambda *_: None)
    teacher(world)
    world.rho_reference = post_train(world, MLE, world.holdout)
    return world


def test_pretraining_learns():
    setting = Setting(2, 0, texts=8, test_texts=16, pretraining_steps=100)
    raw = World(setting, Language.draw(2, torch.Generator().manual_seed(0)), Stacked(Transformer, [0, 1]))
    raw.base.base.eval()
    learned = pretrained(setting, lambda *_: None)
    assert (measures(learned, learned.base)["kl_out"] < 0.7 * measures(raw, raw.base)["kl_out"]).all()


def test_the_table_has_every_objective_metric_level_and_fraction():
    arms = table()
    assert {arm.objective for arm in arms} == set(OBJECTIVES)
    assert len({arm.name for arm in arms}) == len(arms)
    for objective in ("masked_mle", "masked_mle_distill"):
        mine = [arm for arm in arms if arm.objective == objective and arm.weights is None]
        assert {arm.fraction for arm in mine if arm.metric == "loss"} >= {0.05, 0.25, 1.0}
        assert {(arm.metric, arm.level) for arm in mine if arm.fraction == 0.25} == {
            (metric, level)
            for metric in ("loss", "entropy", "rho", "random", "bald")
            for level in ("token", "document")
        }
    assert {arm.weights for arm in arms} == {None, "1/variance", "clean"}
    assert {arm.options.get("truncation") for arm in arms} == {None, "plain", "renormalized", "tail"}


@pytest.mark.parametrize("arm", table(), ids=lambda arm: arm.name)
def test_the_loss_of_an_arm_is_that_of_each_model_alone(world, arm):
    texts = world.data[:, :4]
    logits = world.base(texts[..., :-1]).detach()
    mask = selected(world, world.base, arm, texts, logits, 0) if "masked" in arm.objective else None
    total = 0.0
    for model in range(2):
        labels = texts[model, :, 1:]
        given = dict(arm.options)
        if mask is not None:
            given["selected"] = mask[model].flatten()
            if arm.level == "token":
                assert int(mask[model].sum()) == math.ceil(arm.fraction * 4 * LENGTH)
            else:
                assert sorted(mask[model].sum(-1).tolist()) == [0, 0, 0, LENGTH]
        if "distill" in arm.objective:
            given["teacher"] = world.members[0](texts[..., :-1])[model].detach().softmax(-1).flatten(0, 1)
        if arm.objective == "oracle":
            given["oracle"] = world.shifted.oracle(texts)[model].float().flatten(0, 1)
        if arm.reward:
            every, advantages = rewarded(world, texts, logits, arm.reward, 0)
            labels, given["advantages"] = every[model], advantages[model].flatten(0, 1)
        targets = OBJECTIVES[arm.objective](labels.flatten(), **given)
        if arm.weights:
            targets = targets.scaled(noise_weights(world, texts, arm.weights)[model].flatten())
        total += float(weighted_nll(logits[model].flatten(0, 1), targets).mean())
    assert objective_loss(world, world.base, arm, texts, 0).item() == pytest.approx(total, rel=1e-5)


def test_everything_selected_is_mle(world):
    expected = objective_loss(world, world.base, MLE, world.data[:, :4], 0).item()
    for objective in ("masked_mle", "masked_mle_distill"):
        arm = Arm(objective, fraction=1.0)
        assert objective_loss(world, world.base, arm, world.data[:, :4], 0).item() == pytest.approx(expected, rel=1e-6)


def test_the_expected_policy_gradient_is_the_gradient_of_the_expected_reward(world):
    """∇ −E_p[r] by autograd, against the loss with w = p · (r − E_p[r])."""
    texts = world.data[:, :4]
    for arm, paid in ((REWARDED[1], right_word), (REWARDED[2], lambda oracle: oracle)):
        models = world.base.copy()
        objective_loss(world, models, arm, texts, 0).backward()
        found = models.parameters["head.weight"].grad
        models = world.base.copy()
        probs = models(texts[..., :-1]).softmax(-1)
        reward = (probs * paid(world.shifted.oracle(texts).float())).sum(-1)
        (-reward.flatten(1).mean(1).sum()).backward()
        assert torch.allclose(found, models.parameters["head.weight"].grad, atol=1e-6)


def test_sampled_rewards_are_those_of_the_drawn_word(world):
    texts = world.data[:, :4]
    logits = world.base(texts[..., :-1]).detach()
    labels, advantages = rewarded(world, texts, logits, "sampled", 3)
    probs, right = logits.softmax(-1), right_word(world.shifted.oracle(texts).float())
    better = right - (probs * right).sum(-1, keepdim=True)
    assert torch.equal(advantages, better.gather(-1, labels[..., None])[..., 0])
    assert not torch.equal(labels, rewarded(world, texts, logits, "sampled", 4)[0])


def test_noise_weights_by_enumeration(world):
    """Of one context: the variance of a one-hot label drawn with noise, and Bayes' rule for "not replaced"."""
    texts, share = world.data[:, :4], world.setting.noise
    oracle = world.shifted.oracle(texts)[1, 2, 5]
    label = int(texts[1, 2, 6])
    uniform = torch.tensor([0.0] * (VOCABULARY - WORDS) + [1 / WORDS] * WORDS, dtype=torch.float64)
    noisy = (1 - share) * oracle + share * uniform
    one_hot = torch.eye(VOCABULARY, dtype=torch.float64)
    variance = float((noisy * (one_hot - noisy).square().sum(-1)).sum())
    clean = float((1 - share) * oracle[label] / noisy[label])
    for form, expected in (("1/variance", 1 / max(variance, 0.05)), ("clean", clean)):
        weights = noise_weights(world, texts, form)
        assert torch.allclose(weights.flatten(1).mean(1), torch.ones(2, dtype=torch.float64))
        other = noise_weights(world, texts, form)[1, 0, 0]
        again = _weight_by_hand(world, texts, form)
        assert float(weights[1, 2, 5] / other) == pytest.approx(expected / again)


def _weight_by_hand(world, texts, form):
    """Of model 1, text 0, word 0, before division by the mean."""
    share = world.setting.noise
    oracle = world.shifted.oracle(texts)[1, 0, 0]
    noisy = [(1 - share) * float(p) + (share / WORDS if x >= VOCABULARY - WORDS else 0) for x, p in enumerate(oracle)]
    if form == "clean":
        label = int(texts[1, 0, 1])
        return (1 - share) * float(oracle[label]) / noisy[label]
    return 1 / max(0.05, 1 - sum(p * p for p in noisy))


def test_true_scores_do_not_see_the_word(world):
    texts = world.data[:, :4]
    logits = world.base(texts[..., :-1]).detach()
    given = (world, world.base, Arm("masked_mle", metric="expected loss"))
    expected = token_scores(*given, texts, logits, 0)
    excess = token_scores(world, world.base, Arm("masked_mle", metric="excess loss"), texts, logits, 0)
    oracle, log_probs = world.shifted.oracle(texts)[1, 2, 5].tolist(), logits[1, 2, 5].double().log_softmax(-1).tolist()
    by_hand = sum(-p * q for p, q in zip(oracle, log_probs, strict=True))
    assert float(expected[1, 2, 5]) == pytest.approx(by_hand)
    assert float(excess[1, 2, 5]) == pytest.approx(by_hand + sum(p * math.log(p) for p in oracle if p))
    other = texts.clone()
    other[1, 2, 6] = other[1, 2, 6] % WORDS + 1  # another word, the same context
    assert torch.equal(token_scores(*given, other, logits, 0)[1, 2, 5], expected[1, 2, 5])


def test_bald_selects_the_same_twice(world):
    texts = world.data[:, :4]
    logits = world.base(texts[..., :-1]).detach()
    masks = [selected(world, world.base, Arm("masked_mle", metric="bald"), texts, logits, 7) for _ in range(2)]
    assert torch.equal(*masks)
    other = selected(world, world.base, Arm("masked_mle", metric="bald"), texts, logits, 8)
    assert not torch.equal(masks[0], other)


def test_aligned_policy_gradient_is_the_oracle(world):
    losses = [objective_loss(world, world.base, arm, world.data[:, :4], 0).item() for arm in (REWARDED[0], ORACLE)]
    assert losses[0] == losses[1]


def test_post_training_learns_and_leaves_the_pretrained_models_alone(world):
    before = {name: value.detach().clone() for name, value in world.base.parameters.items()}
    seen = []
    models = trained(world, BOTH, seen.append)
    assert len(seen) == world.setting.epochs
    assert all(torch.equal(before[name], value) for name, value in world.base.parameters.items())
    assert not any(torch.equal(before[name], value) for name, value in models.parameters.items())
    assert not any(value.grad is not None for value in world.base.parameters.values())
    assert measures(world, models)["kl_in"].mean() < measures(world, world.base)["kl_in"].mean()


def test_the_reference_is_mle_and_a_copy_of_it_is_given(world):
    mle = trained(world, MLE)
    assert torch.equal(mle.parameters["embed"], world.members[0].parameters["embed"])
    assert mle.parameters["embed"] is not world.members[0].parameters["embed"]
    longer = world.changed(epochs=2)
    assert longer.members == []
    assert torch.equal(longer.data, world.data)


def test_measures_of_the_truth_itself(world):
    """A model that says the oracle's distribution: no divergence, calibrated, always right."""

    class Oracle:
        def __call__(self, inputs):
            language, texts = (
                (world.shifted, world.test_in)
                if inputs.shape == world.test_in[..., :-1].shape and (torch.equal(inputs, world.test_in[..., :-1]))
                else (world.language, world.test_out)
            )
            return language.oracle(texts).clamp(min=1e-300).log()

    found = measures(world, Oracle())
    for where in ("in", "out"):
        assert abs(found[f"kl_{where}"]).max() < 1e-9
        assert abs(found[f"calibration_{where}"]).max() < 1e-12
        assert found[f"right_{where}"].min() == 1
        kinds = [found[f"kl_{kind}_{where}"] for kind in ("template", "content", "fact")]
        assert abs(sum(kinds)).max() < 1e-9
    plain = measures(world, world.base)
    kinds = [plain[f"kl_{kind}_in"] for kind in ("template", "content", "fact")]
    assert plain["kl_in"] == pytest.approx(sum(kinds) / 3)
    assert (plain["reward_in"] < 1).all()


def test_lost_at_reads_between_epochs():
    kl_in = torch.tensor([[4.0, 2.0, 1.0], [1.0, 0.5, 0.7]]).numpy()
    kl_out = torch.tensor([[0.0, 1.0, 3.0], [0.2, 0.4, 0.9]]).numpy()
    assert lost_at(kl_in, kl_out, torch.tensor([1.5, 1.0]).numpy()) == pytest.approx([2.0, 0.2])


def test_masks_differ_from_model_to_model(world):
    texts = world.data[:, :4]
    mask = selected(world, world.base, MASKED, texts, world.base(texts[..., :-1]).detach(), 0)
    assert not torch.equal(mask[0], mask[1])


# ---- the family


@pytest.mark.parametrize("arm", FAMILY, ids=lambda arm: arm.name)
def test_the_loss_of_a_family_arm_is_its_definition(world, arm):
    teacher(world, arm.members)
    best_teacher(world)
    texts = world.data[:, :4]
    inputs, labels = texts[..., :-1], texts[..., 1:].flatten()
    logits = world.base(inputs).detach()
    given = {"token_weighting": token_weighting(arm.weighting), "label_smoothing": arm.smoothing or None}
    given = given if "token_weighting" in OBJECTIVES[arm.objective].uses else {}
    if "masked" in arm.objective:
        given["selected"] = selected(world, world.base, arm, texts, logits, 0).flatten()
    if "distill" in arm.objective:
        given["teacher"] = torch.stack(
            [one(inputs).detach().softmax(-1).flatten(0, 2) for one in world.teachers(arm)]
        ).mean(0)
    z = logits.flatten(0, 2)
    loss = weighted_nll(z, OBJECTIVES[arm.objective](labels, **given))
    if arm.anchor:
        loss = loss - arm.anchor * (z.softmax(-1) * z.log_softmax(-1)).sum(-1)  # the model has not moved from its base
    expected = float(loss.view(len(texts), -1).mean(1).sum())
    assert objective_loss(world, world.base, arm, texts, 0).item() == pytest.approx(expected, rel=1e-5)


def test_members_differ(world):
    teacher(world, 2)
    first, second = world.members[:2]
    assert not torch.equal(first.parameters["embed"], second.parameters["embed"])


def test_the_best_teacher_is_each_seeds_epoch_of_the_lowest_held_out_loss(world):
    here = world.changed(epochs=6, rate=2e-2)
    seen = []

    def after(models):
        with torch.no_grad():
            losses = token_losses(models(here.holdout[..., :-1]), here.holdout[..., 1:]).flatten(1).mean(1)
        seen.append((losses, models.parameters["embed"].detach().clone()))

    trained(here, MLE, after)
    found = best_teacher(here).parameters["embed"]
    for seed in range(here.setting.seeds):
        epoch = int(torch.stack([losses[seed] for losses, _ in seen]).argmin())
        assert torch.equal(found[seed], seen[epoch][1][seed])


def test_the_points_of_a_curve():
    assert family_module.points(16) == [1, 2, 4, 8, 16]
    assert family_module.points(6) == [1, 2, 4, 6]
    assert family_module.points(1) == [1]


def test_an_arm_is_compared_at_its_end_at_its_best_and_at_equal_gain():
    mle = {"kl_in": np.array([[2.0, 1.0, 1.5]]), "kl_out": np.array([[0.0, 0.4, 0.9]])}
    one = {"kl_in": np.array([[2.0, 1.5, 0.8]]), "kl_out": np.array([[0.0, 0.1, 0.3]])}
    gains = {name: float(value[0]) for name, value in family_module.compared(one, mle).items()}
    assert gains == pytest.approx(
        # at its best MLE has 1.0 and 0.4; both first reach 1.0 where MLE has lost 0.4, the other 0.1 + 5/7 of 0.2
        {"in_end": 0.7, "out_end": 0.6, "in_best": 0.2, "out_best": 0.1, "out_equal": 0.4 - (0.1 + 0.2 * 5 / 7)}
    )


def test_the_family_in_both_settings(world, monkeypatch):
    arms = (MLE, Arm("mle", weighting="eaft", anchor=0.1), Arm("distill", members=2), Arm("distill", teacher="best"))
    monkeypatch.setattr(family_module, "FAMILY", arms)
    monkeypatch.setattr(family_module, "SETTINGS", {"base": {}, "overfitted": {"epochs": 3, "rate": 3e-3}})
    answer = family_module.family(world, lambda *_: None)
    assert [len(table.rows) for table in answer.tables] == [4, 4]
    assert {row["setting"] for row in answer.rows} == {"base", "overfitted"}
    assert {row["epoch"] for row in answer.rows if row["setting"] == "overfitted"} == {0, 1, 2, 3}
    assert all(row["kl_in"] > 0 for row in answer.rows)
    (_, mle), (_, other) = answer.tables[1].rows[:2]
    assert [one.value for one in mle[3:]] == [0.0] * 5
    assert other[3].value == pytest.approx(mle[0].value - other[0].value)
    assert other[5].value == pytest.approx(mle[2].value - other[2].value)
