"""Folders as ``uncertune compare`` leaves them, with known numbers and text that means harm."""

import json
from pathlib import Path

import numpy as np

from helpers.report_pages import hostile_text

MODELS = ("mle", "masked_mle", "masked_mle_distill")
SKILL = {"gsm8k": (0.40, 0.55, 0.58), "ifeval": (0.50, 0.38, 0.52)}
LOSS = (1.90, 2.05, 1.86)
OUTCOMES = ("judged", "judged", "judged", "judged", "judged", "unparsable", "timeout", "http_429")


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_result(folder: Path, label: str, task: str, samples, metrics, better) -> None:
    stem = task.replace(":", "-")
    result = {"task": task, "model": f"org/{label}", "label": label, "metrics": metrics, "stderr": {}}
    result |= {"higher_is_better": better, "documents": len(samples), "limit": None, "settings": {}, "weights": {}}
    write_lines(folder / label / f"{stem}.samples.jsonl", samples)
    (folder / label / f"{stem}.json").write_text(json.dumps(result))


def shares(task: str, metric: str, skill: float, documents: int, seed: int):
    """Answers of 0 and 1 that hang together between models through the document's own difficulty."""
    difficulty = np.random.default_rng(7).random(documents)
    noise = np.random.default_rng(seed).normal(0, 0.15, documents)
    samples = [
        {
            "doc_id": number,
            "doc_hash": f"{task} {number}",
            "prompt": f"Question {number}: how many?",
            "target": "3",
            "answer": f"I think it is {3 if right else 4}.",
            "scores": {metric: float(right)},
        }
        for number, right in enumerate(difficulty + noise < skill)
    ]
    return samples, {metric: float(np.mean([one["scores"][metric] for one in samples]))}


def losses(mean: float, documents: int, seed: int):
    tokens = np.random.default_rng(7).integers(20, 200, documents)
    level = np.random.default_rng(8).normal(mean, 0.5, documents) + np.random.default_rng(seed).normal(
        0, 0.05, documents
    )
    samples = [
        {
            "doc_id": number,
            "prompt": "",
            "answer": "text",
            "scores": {"loss": float(a * b), "accuracy": float(round(0.4 * b)), "tokens": float(b)},
        }
        for number, (a, b) in enumerate(zip(level, tokens, strict=True))
    ]
    total = sum(one["scores"]["tokens"] for one in samples)
    metrics = {name: sum(one["scores"][name] for one in samples) / total for name in ("loss", "accuracy")}
    return samples, {**metrics, "ece": 0.05, "tokens": total}


def comparison_folder(folder: Path, *, prompts: int = 23, documents: int = 120) -> Path:
    """Three models on three tasks, and answers of two of them judged against the first."""
    evaluation, rows = folder / "evaluation", []
    for place, label in enumerate(MODELS):
        for task, metric in (("gsm8k", "exact_match,strict-match"), ("ifeval", "prompt_level_strict_acc")):
            samples, metrics = shares(task, metric, SKILL[task][place], documents, 10 + place)
            write_result(evaluation, label, task, samples, metrics, {metric: True})
            rows.append({"task": task, "label": label})
        samples, metrics = losses(LOSS[place], documents, 20 + place)
        better = {"loss": False, "accuracy": True, "ece": False}
        write_result(evaluation, label, "tokens:wikitext2", samples, metrics, better)
        rows.append({"task": "tokens:wikitext2", "label": label})
    (evaluation / "results.json").write_text(json.dumps({"results": rows}))
    for label in MODELS:
        write_lines(folder / "answers" / f"{label}.jsonl", [answer(number, label) for number in range(prompts)])
    verdicts = {}
    for label, value in zip(MODELS[1:], (0.46, 0.61), strict=True):
        lines = [judgement(number, order) for number in range(prompts) for order in (0, 1)]
        write_lines(folder / "judgements" / f"{label}.jsonl", lines)
        outcomes = {name: sum(line["outcome"] == name for line in lines) for name in dict.fromkeys(OUTCOMES)}
        rate = {"value": value, "low": value - 0.09, "high": value + 0.09}
        verdicts[label] = {"pairs": prompts, "outcomes": outcomes, "warning": None, "length_effect": None}
        verdicts[label] |= {"raw": rate, "order_averaged": rate, "adjusted": rate}
        verdicts[label] |= {"position_bias": {"value": -0.8, "low": None, "high": None}}
    verdicts["masked_mle"]["warning"] = "8 of 46 judgements are missing from the rates " + hostile_text()
    found = {"baseline": "mle", "judge": "judge " + hostile_text(), "models": verdicts}
    (folder / "verdicts.json").write_text(json.dumps(found))
    return folder


def answer(number: int, label: str) -> dict:
    text = hostile_text() if number % 3 == 0 else f"{label} says\nsomething about {number}."
    messages = [{"role": "user", "content": f"Tell me about {number}. {hostile_text() if number == 1 else ''}"}]
    return {
        "id": f"p{number}",
        "messages": messages,
        "answer": text,
        "model": f"org/{label}",
        "tokens": 256,
        "ended": number % 5 != 0,
    }


def judgement(number: int, order: int) -> dict:
    outcome = OUTCOMES[(2 * number + order) % len(OUTCOMES)]
    preference = (number * 7 + order * 3) % 11 / 10 if outcome == "judged" else None
    return {
        "id": f"p{number}",
        "order": ("model_first", "baseline_first")[order],
        "outcome": outcome,
        "preference": preference,
        "reply": hostile_text() if outcome == "unparsable" else "",
        "judge": "judge",
    }
