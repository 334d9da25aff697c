"""Policy gradient from checked answers: a small model learns from whether its own answers are right.

    python examples/word_problem_rewards.py --output_dir runs/rewards

First the base model is shown some worked solutions (MLE), so that it answers in a form that can be checked. From then
on it sees no solution. In each round it

1. answers problems it has not seen, several times each, at temperature 1;
2. has the answers checked: reward 1 for the right number, else 0;
3. turns rewards into advantages, each against the other answers to the same problem (GRPO), and writes a data set of
   answers, advantages and the probabilities they were sampled with;
4. trains on it with `uncertune train` and `objective: policy_gradient`: off-policy, with PPO's clip.

The mean reward of a round is that of the policy before the round's training, on problems new to it. Greedy answers to
held-out problems are checked at the start and at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from uncertune.cli import main as uncertune
from uncertune.data.synthetic import WordProblem, check_answer, word_problems
from uncertune.evaluation.measures import generate
from uncertune.models import resolve_model
from uncertune.objectives import group_advantages
from uncertune.training.rollouts import Answer, policy_rows, sample_answers

Prompts = Sequence[list[dict[str, str]]]


@dataclass(frozen=True)
class Options:
    """What can be told on the command line."""

    output_dir: str = "runs/rewards"
    model: str = "smollm2-135m"
    level: int = 1
    warmup: int = 64
    rounds: int = 3
    problems: int = 64
    samples: int = 8
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-4
    beta: float = 0.0
    max_new_tokens: int = 40
    test_problems: int = 128
    seed: int = 0


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Run it all; one record a round, the last one without training after it."""
    options = _options(arguments)
    output, began = Path(options.output_dir), time.perf_counter()
    problems = word_problems(options.seed, options.level)
    policy = start = warm_up(options, list(islice(problems, options.warmup)), output / "start")
    test = list(islice(word_problems(options.seed, options.level, split="test"), options.test_problems))
    first = exact_match(policy, test, options)
    print(f"start: exact match {first:.1%} of {len(test)} held-out problems", flush=True)
    records = []
    for number in range(1, options.rounds + 2):
        asked = list(islice(problems, options.problems))

        def reward(answer: Answer, asked: list[WordProblem] = asked) -> float:
            return float(answer.finished and check_answer(answer.text, asked[answer.prompt].answer))

        prompts = [one.messages()[:1] for one in asked]
        last = number > options.rounds
        folder = None if last else output / f"round-{number}"
        record, policy = learn(policy, prompts, reward, folder, options, seed=options.seed + number, reference=start)
        records.append(record)
        spent = time.perf_counter() - began
        name = "end" if last else f"round {number}"
        print(f"{name}: mean reward {record['reward']:.3f} ± {record['error']:.3f}, {spent:.0f} s", flush=True)
    final = exact_match(policy, test, options)
    print(f"end: exact match {final:.1%} of {len(test)} held-out problems (start: {first:.1%})")
    return records


def learn(
    policy: str,
    prompts: Prompts,
    reward: Callable[[Answer], float],
    folder: Path | None,
    options: Options,
    *,
    seed: int = 0,
    reference: str | None = None,
) -> tuple[dict[str, float], str]:
    """One round: the mean reward of ``policy`` with its standard error over prompts, and the policy trained on it."""
    tokenizer, model = AutoTokenizer.from_pretrained(policy), _load(policy)
    lengths = {"max_new_tokens": options.max_new_tokens, "samples": options.samples}
    answers = sample_answers(model, tokenizer, prompts, seed=seed, **lengths)
    rewards = torch.tensor([reward(answer) for answer in answers])
    means = rewards.view(len(prompts), -1).mean(1)
    record = {"reward": float(means.mean()), "error": float(means.std() / len(prompts) ** 0.5)}
    if folder is None:
        return record, policy
    advantages = group_advantages(rewards, [answer.prompt for answer in answers])
    # answers to a problem that are all right, or all wrong, teach nothing
    kept = [(answer, float(a)) for answer, a in zip(answers, advantages, strict=True) if a != 0]
    rows = policy_rows(model, [one for one, _ in kept], [a for _, a in kept], pad=tokenizer.pad_token_id)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    del model
    fields: dict[str, Any] = {"objective": "policy_gradient", "num_train_epochs": options.epochs}
    if options.beta:
        fields |= {"beta": options.beta, "teacher": reference}
    return record, train(policy, str(data), folder, options, **fields)


def warm_up(options: Options, problems: list[WordProblem], folder: Path) -> str:
    """The base model after one epoch of MLE on worked solutions, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "solutions.jsonl"
    lines = [json.dumps({"prompt": p.messages()[:1], "completion": p.messages()[1:]}) for p in problems]
    data.write_text("\n".join(lines), encoding="utf-8")
    return train(resolve_model(options.model), str(data), folder, options, per_device_train_batch_size=8)


def train(policy: str, data: str, folder: Path, options: Options, **fields: Any) -> str:
    """`uncertune train` with LoRA, and the adapter merged into the policy: the folder of a model."""
    fields = {
        "model_name_or_path": policy,
        "dataset_name": data,
        "output_dir": folder / "run",
        "use_peft": True,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "lora_target_modules": "all-linear",
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": options.batch_size,
        "num_train_epochs": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": options.seed,
        **fields,
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    if uncertune(["train", *words]) != 0:
        raise SystemExit(1)
    merged = folder / "policy"
    PeftModel.from_pretrained(_load(policy), str(folder / "run")).merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(policy).save_pretrained(merged)
    return str(merged)


def exact_match(policy: str, problems: list[WordProblem], options: Options) -> float:
    """The share of greedy answers that are right."""
    prompts = [one.messages()[:1] for one in problems]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    found = generate(_load(policy), tokenizer, prompts, max_new_tokens=options.max_new_tokens, batch_size=64)
    right = [check_answer(text, one.answer) for text, one in zip(found, problems, strict=True)]
    return sum(right) / len(right)


def _load(policy: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype="float32").eval()
    return model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")


def _options(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Policy gradient from checked answers to word problems.")
    for name, default in vars(Options()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
