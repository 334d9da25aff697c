"""The paper's method in a training loop of your own: plain PyTorch, no Trainer.

A small recurrent model of bytes learns word problems three ways from the same start. Run it: `python examples/loop.py`.
"""

import copy
from itertools import islice

import torch
from torch import nn

from uncertune.data.synthetic import word_problems
from uncertune.fused import linear_token_stats, linear_weighted_nll
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head
from uncertune.selection import select

WIDTH, VOCABULARY, IGNORED = 64, 256, -100


class Model(nn.Module):
    """Bytes in, last hidden states out; the head stays outside, so that no logits are ever stored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(VOCABULARY, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(self.embed(ids))[0]


def rows(split: str, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and labels of each problem: only the solution carries loss."""
    out = []
    for problem in islice(word_problems(seed=0, level=1, split=split), count):
        prompt, answer = problem.question.encode() + b"\n", problem.solution.encode() + b"\0"
        ids = torch.tensor(list(prompt + answer))
        out.append((ids, torch.cat([torch.full((len(prompt),), IGNORED), ids[len(prompt) :]])))
    return out


def batch(chosen: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    pad = nn.utils.rnn.pad_sequence
    ids, labels = zip(*chosen, strict=True)
    return pad(list(ids), True), pad(list(labels), True, IGNORED)


def train(start: Model, data: list, objective: str, teacher: Model | None = None, fraction: float = 0.5) -> Model:
    """One epoch of an objective of ``OBJECTIVES`` from a copy of ``start``."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for first in range(0, len(data), 16):
        ids, labels = batch(data[first : first + 16])
        mask = labels[:, 1:] != IGNORED
        hidden, label = model(ids)[:, :-1][mask], labels[:, 1:][mask]
        given = {}
        if "selected" in OBJECTIVES[objective].needs:  # the hardest tokens of the batch, by the model's own loss
            given["selected"] = select(linear_token_stats(hidden, model.head.weight, label).loss, fraction)
        if teacher is not None:
            with torch.no_grad():
                given["teacher"] = FactoredTeacher(teacher(ids)[:, :-1][mask], Head(teacher.head.weight))
        targets = OBJECTIVES[objective](label, **given)
        loss = linear_weighted_nll(hidden, model.head.weight, targets).sum() / len(label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def held_out_loss(model: Model, data: list) -> float:
    """Cross-entropy of the solutions in nats per token."""
    ids, labels = batch(data)
    mask = labels[:, 1:] != IGNORED
    return float(linear_token_stats(model(ids)[:, :-1][mask], model.head.weight, labels[:, 1:][mask]).loss.mean())


def main(problems: int = 256) -> dict[str, float]:
    torch.manual_seed(0)
    data, test, start = rows("train", problems), rows("test", 32), Model()
    mle = train(start, data, "mle")  # stage 1: the teacher of stage 2
    arms = {"untrained": start, "mle": mle, "masked_mle": train(start, data, "masked_mle")}
    arms["masked_mle_distill"] = train(start, data, "masked_mle_distill", teacher=mle)
    found = {name: held_out_loss(model, test) for name, model in arms.items()}
    for name, loss in found.items():
        print(f"{name:<20} {loss:.3f} nats per token of held-out solutions")
    return found


if __name__ == "__main__":
    main()
