"""Policy gradient through the trainer: a step's gradient is that of the clipped surrogate written out (SPEC S6)."""

import pytest
import torch
from datasets import Dataset

from helpers.harness import VOCABULARY, relative_difference, rows, run, settings
from helpers.refusals import refused
from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.objectives import group_advantages
from uncertune.training.rollouts import Answer, policy_rows, sample_answers, token_log_probs

POLICY = {"objective": "policy_gradient"}


def sampled(count=8, *, drift=0.3, per_row=False):
    """Rows with advantages and the log-probabilities that the tiny model gave, moved by ``drift``."""
    data = rows(count, side="advantages")
    generator = torch.Generator().manual_seed(7)
    old = token_log_probs(tiny_model("llama", VOCABULARY), list(data), pad=2)
    out = []
    for number, (row, log_probs) in enumerate(zip(data, old, strict=True)):
        noise = (drift * torch.randn(len(log_probs), generator=generator)).tolist()
        moved = [None if p is None else min(p + n, 0.0) for p, n in zip(log_probs, noise, strict=True)]
        advantages = (-1.0) ** number * (1 + number) if per_row else row["advantages"]
        out.append({**row, "advantages": advantages, "old_log_probs": moved})
    return Dataset.from_list(out)


def surrogate(data, *, reference=None, low=0.2, high=0.2, beta=0.0):
    """Gradient of −Σ min(r A, clip(r) A) / N + β Σ KL(p_ref ‖ p) / N from plain logits, and what the clip did."""
    model = tiny_model("llama", VOCABULARY, torch.float64)
    total, tokens, clipped, ratios = 0.0, 0, 0, 0.0
    for row in data:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        keep = labels != -100
        log_p = model(input_ids=ids, use_cache=False).logits[0, :-1][keep].log_softmax(-1)
        value = row["advantages"]
        given = value if isinstance(value, list) else [value] * len(row["labels"])
        advantages = torch.tensor(given[1:], dtype=torch.float64)[keep]
        old = torch.tensor([0.0 if p is None else p for p in row["old_log_probs"][1:]], dtype=torch.float64)[keep]
        ratio = (log_p.gather(-1, labels[keep][:, None])[:, 0] - old).exp()
        loss = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
        total, tokens = total - loss.sum(), tokens + int(keep.sum())
        clipped += int((loss != ratio * advantages).sum())
        ratios += float(ratio.detach().sum())
        if reference is not None:
            with torch.no_grad():
                p_ref = reference(input_ids=ids, use_cache=False).logits[0, :-1][keep].softmax(-1)
            total = total - beta * (p_ref * log_p).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(total / tokens, parameters)
    return dict(zip(names, gradient, strict=True)), clipped / tokens, ratios / tokens


@pytest.mark.parametrize("per_row", [False, True], ids=["per token", "per row"])
@pytest.mark.parametrize("clip", [{}, {"epsilon": 0.1, "epsilon_high": 0.4}], ids=["default", "high"])
def test_a_step_is_one_of_the_clipped_surrogate(tmp_path, per_row, clip):
    data = sampled(per_row=per_row)
    step = run(tmp_path, data=data, lora=False, per_device_train_batch_size=8, **POLICY, **clip)
    low = clip.get("epsilon", 0.2)
    expected, clipped, ratio = surrogate(data, low=low, high=clip.get("epsilon_high", low))
    assert 0.1 < clipped < 0.9
    assert relative_difference(step.gradient, expected) < 1e-6  # side columns are float32
    assert step.metrics[-1]["clipped_fraction"] == pytest.approx(clipped)
    assert step.metrics[-1]["importance_ratio"] == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("cut", [(8, 1), (2, 4)])
def test_the_divergence_from_the_reference_is_added(tmp_path, cut):
    data, reference = sampled(), tiny_model("llama", VOCABULARY, torch.float64, seed=5)
    reference.save_pretrained(tmp_path / "reference")
    size, accumulation = cut
    cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    step = run(
        tmp_path / "run", data=data, lora=False, anchor=str(tmp_path / "reference"), anchor_weight=0.3, **cut, **POLICY
    )
    expected, clipped, _ = surrogate(data, reference=reference, beta=0.3)
    assert relative_difference(step.gradient, expected) < 1e-6
    without, *_ = surrogate(data)
    assert relative_difference(step.gradient, without) > 0.05
    assert step.metrics[-1]["clipped_fraction"] == pytest.approx(clipped)
    assert step.metrics[-1]["kl"] > 0


def test_where_the_policy_has_not_moved_the_ratio_is_one(tmp_path):
    data = sampled(drift=0.0)
    cut = {"per_device_train_batch_size": 8, "lora": False, **POLICY}
    first = run(tmp_path / "old", data=data, **cut)
    assert first.metrics[0]["importance_ratio"] == pytest.approx(1, abs=1e-5)
    assert first.metrics[0]["clipped_fraction"] == 0
    plain = run(tmp_path / "none", data=data.remove_columns("old_log_probs"), **cut)
    assert relative_difference(first.gradient, plain.gradient) < 1e-5
    assert "importance_ratio" not in plain.metrics[0]


def test_the_ratio_follows_the_policy(tmp_path):
    """Later steps on the same rows are off-policy, and in the end the clip binds."""
    cut = {"per_device_train_batch_size": 8, "lora": False, "max_steps": 6, "num_train_epochs": 6}
    step = run(tmp_path, data=sampled(drift=0.0, per_row=True), **cut, **POLICY)
    assert step.metrics[0]["clipped_fraction"] == 0
    assert step.metrics[-1]["clipped_fraction"] > 0.1


def test_evaluation_data_need_no_advantages(tmp_path):
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(tmp_path, per_device_eval_batch_size=4, **POLICY),
        train_dataset=sampled(),
        eval_dataset=rows(4),
        processing_class=tiny_tokenizer(),
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert "eval_objective" not in metrics
    assert "eval_objective" in trainer.evaluate(sampled(4))


# ---- refusals

OTHERS = [
    ({"epsilon": 0.1}, "epsilon", "mle"),
    ({"objective": "oracle", "epsilon_high": 0.3}, "epsilon_high", "oracle"),
    ({**POLICY, "epsilon": float("nan")}, "epsilon", "nan"),
    ({**POLICY, "teacher": "x"}, "teacher", "anchor"),
]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: str(case[0]))
def test_fields_refused(tmp_path, case):
    fields, *words = case
    refused(lambda: UncertuneConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **fields), *words)


def test_a_clip_without_a_ratio(tmp_path):
    plain = rows(4, side="advantages")
    refused(lambda: run(tmp_path, data=plain, epsilon=0.1, **POLICY), "epsilon", "old_log_probs")
    sparse = sampled(4).map(lambda row: {"advantages": [[a] for a in row["advantages"]]})
    refused(lambda: run(tmp_path, data=sparse, **POLICY), "old_log_probs", "advantages", "row 0")
    ids = sparse.map(lambda row: {"advantages_ids": [[token] for token in row["input_ids"]]})
    refused(lambda: run(tmp_path, data=ids, **POLICY), "old_log_probs", "advantages_ids")
    refused(
        lambda: run(tmp_path, data=sampled(4).remove_columns("advantages"), objective="mle"), "old_log_probs", "mle"
    )


# ---- rows from samples


def prompts(count=3):
    return [[{"role": "user", "content": "question " + "?" * number}] for number in range(count)]


def test_samples_and_their_probabilities(tmp_path):
    model, tokenizer = tiny_model("llama", VOCABULARY), tiny_tokenizer()
    drawing = {"samples": 4, "max_new_tokens": 6, "batch_size": 5}
    state = torch.get_rng_state()
    answers = sample_answers(model, tokenizer, prompts(), seed=3, **drawing)
    assert torch.equal(torch.get_rng_state(), state)
    assert [answer.prompt for answer in answers] == [0] * 4 + [1] * 4 + [2] * 4
    assert answers == sample_answers(model, tokenizer, prompts(), seed=3, **drawing)
    assert answers != sample_answers(model, tokenizer, prompts(), seed=4, **drawing)
    assert len({tuple(answer.ids) for answer in answers}) > 6
    for answer in answers:
        assert answer.finished == (answer.ids[-1] in (1, tokenizer.eos_token_id))
        assert len(answer.ids) == 6 or answer.finished
    table = policy_rows(model, answers, range(12), pad=tokenizer.pad_token_id, batch_size=5)
    for answer, row, advantage in zip(answers, table, range(12), strict=True):
        assert row["input_ids"] == answer.prompt_ids + answer.ids
        assert row["advantages"] == advantage
        start = len(answer.prompt_ids)
        assert row["labels"] == [-100] * start + answer.ids
        assert row["old_log_probs"][:start] == [None] * start
        with torch.no_grad():
            log_p = model(torch.tensor([row["input_ids"]])).logits[0, start - 1 : -1].log_softmax(-1)
        expected = log_p.gather(-1, torch.tensor(answer.ids)[:, None])[:, 0].tolist()
        assert row["old_log_probs"][start:] == pytest.approx(expected, abs=1e-5)


def test_samples_are_drawn_from_the_whole_distribution():
    """Frequencies of the first token against its probabilities, by a chi-squared far from the edge."""
    model, tokenizer = tiny_model("llama", VOCABULARY), tiny_tokenizer()
    answers = sample_answers(model, tokenizer, prompts(1), samples=2000, max_new_tokens=1, batch_size=1000)
    with torch.no_grad():
        p = model(torch.tensor([answers[0].prompt_ids])).logits[0, -1].double().softmax(-1)
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=VOCABULARY)
    common = p > 5 / 2000
    chi = ((counts - 2000 * p).square() / (2000 * p))[common].sum()
    freedom = int(common.sum())
    assert chi < freedom + 5 * (2 * freedom) ** 0.5
    assert counts[~common].sum() == pytest.approx(float(2000 * p[~common].sum()), abs=5 * 2000**0.5 / 4 + 5)


def test_a_policy_learns_what_is_rewarded(tmp_path):
    """Rounds of sampling, judging and training: answers come to hold more of what the reward asks for."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", VOCABULARY)

    def reward(answer: Answer) -> float:
        return float(answer.ids[0] < 128)

    means = []
    for number in range(3):
        answers = sample_answers(
            model, tokenizer, prompts(1), samples=128, max_new_tokens=1, batch_size=128, seed=number
        )
        rewards = [reward(answer) for answer in answers]
        means.append(sum(rewards) / len(rewards))
        if number == 2:
            break
        advantages = group_advantages(rewards, [answer.prompt for answer in answers])
        data = Dataset.from_list(policy_rows(model, answers, advantages.tolist(), pad=2))
        fields = {"per_device_train_batch_size": 128, "max_steps": 4, "lr_scheduler_type": "constant", "lora": False}
        step = run(tmp_path / str(number), data=data, model=model, dtype=torch.float32, **fields, **POLICY)
        model = step.trainer.model.eval()
        assert step.metrics[0]["clipped_fraction"] == 0
    assert means[2] > means[0] + 0.15, means  # 0.62 to 0.88 as measured; its standard error is 0.04
