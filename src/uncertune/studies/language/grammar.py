"""A language whose next-token distribution is known (SPEC S26).

A text is a task's token, then phrases of three words of these kinds:

* *template*: almost always the task's word, whatever the words before (structure);
* *content*: drawn from a distribution, narrow to nearly uniform, that depends on the word before (random);
* *fact*: a word that depends on the content word before and the task (knowledge; nearly deterministic).

So p(x | context) is a table over the task, the kind and the word before. Half of the facts are the same in every task.
In a *shifted* language some rows are resampled, which is what post-training has to teach.

Shape legend: ``S`` languages (one per seed), ``A`` tasks, ``3`` kinds, ``V`` vocabulary, ``B`` texts,
``T`` words of a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TASKS = 6
WORDS = 18
VOCABULARY = TASKS + WORDS
KINDS = ("template", "content", "fact")
PHRASES = 8
LENGTH = len(KINDS) * PHRASES
_FLOOR = 1e-4  # least probability of a word


@dataclass(frozen=True)
class Language:
    """``table`` (S, A, 3, V, V) float64: the distribution of the next token by task, kind and token before."""

    table: Tensor

    @classmethod
    def draw(cls, languages: int, generator: torch.Generator) -> Language:
        """Independent languages, one per seed."""
        rows = torch.stack([_rows(languages, TASKS, kind, generator) for kind in range(3)], 2)
        shared = torch.rand(languages, 1, 1, VOCABULARY, 1, generator=generator) < 0.5
        facts = rows[:, :, 2:]
        rows = torch.cat([rows[:, :, :2], torch.where(shared, facts[:, :1], facts)], 2)
        return cls(rows)

    def shifted(self, tasks: int, share: float, generator: torch.Generator) -> Language:
        """The language with ``share`` of the rows of each kind resampled in the first ``tasks`` tasks."""
        fresh = torch.stack([_rows(len(self.table), TASKS, kind, generator) for kind in range(3)], 2)
        changed = torch.rand(*self.table.shape[:4], 1, generator=generator) < share
        changed[:, :, 0] = (
            torch.rand(*self.table.shape[:2], 1, 1, generator=generator) < share
        )  # templates have one row
        changed[:, tasks:] = False
        return Language(torch.where(changed, fresh, self.table))

    def certain(self, tasks: int, share: float) -> Language:
        """The language with ``share`` of each row's probability moved to its most probable word in the first ``tasks``
        tasks; with 1 they are deterministic."""
        top = torch.zeros_like(self.table).scatter_(-1, self.table.argmax(-1, keepdim=True), 1.0)
        sharp = (1 - share) * self.table + share * top
        return Language(torch.cat([sharp[:, :tasks], self.table[:, tasks:]], 1))

    def oracle(self, texts_SBT: Tensor) -> Tensor:
        """(S, B, T, V): the true distribution of each word after the task's token, which is ``texts[..., 0]``."""
        seeds, task, kind, before = self._index(texts_SBT)
        return self.table[seeds, task, kind, before]

    def _index(self, texts_SBT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seeds = torch.arange(len(texts_SBT))[:, None, None]
        kind = torch.arange(texts_SBT.shape[2] - 1) % len(KINDS)
        return seeds, texts_SBT[:, :, :1], kind, texts_SBT[:, :, :-1]

    def sample(self, tasks: list[int], texts: int, generator: torch.Generator, noise: float = 0.0) -> Tensor:
        """(S, B, 1 + T) texts, with tasks in turn; a share ``noise`` of words is replaced by uniformly drawn words."""
        seeds = len(self.table)
        drawn = torch.tensor(tasks)[torch.arange(texts) % len(tasks)].expand(seeds, texts)
        before, out = drawn, [drawn]
        index = torch.arange(seeds)[:, None]
        for place in range(LENGTH):
            probs = self.table[index, drawn, place % len(KINDS), before]
            before = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(seeds, texts)
            if noise:
                wrong = torch.rand(seeds, texts, generator=generator) < noise
                any_word = torch.randint(TASKS, VOCABULARY, (seeds, texts), generator=generator)
                before = torch.where(wrong, any_word, before)
            out.append(before)
        return torch.stack(out, -1)


def _rows(languages: int, tasks: int, kind: int, generator: torch.Generator) -> Tensor:
    """(S, A, V, V) distributions over the words, for every token before."""
    shape = (languages, tasks, VOCABULARY, WORDS)
    if kind == 0:  # one word per task, with probability 0.9 or more
        favourite = torch.randint(WORDS, (languages, tasks, 1, 1), generator=generator).expand(*shape[:3], 1)
        probs = torch.full(shape, 0.1 / WORDS, dtype=torch.float64).scatter_add_(
            3, favourite, torch.full((*shape[:3], 1), 0.9, dtype=torch.float64)
        )
    elif kind == 1:  # from narrow to nearly uniform: a softmax of normal values, sharper or flatter
        scale = 3 * torch.rand(*shape[:3], 1, generator=generator, dtype=torch.float64)
        probs = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)
    else:  # one word for each word before, with probability 0.97
        fact = torch.randint(WORDS, (*shape[:3], 1), generator=generator)
        probs = torch.full(shape, 0.03 / WORDS, dtype=torch.float64).scatter_add_(
            3, fact, torch.full(fact.shape, 0.97, dtype=torch.float64)
        )
    probs = probs.clamp(min=_FLOOR)
    probs = probs / probs.sum(-1, keepdim=True)
    return torch.cat([torch.zeros(*shape[:3], TASKS, dtype=torch.float64), probs], -1)


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    return torch.special.entr(probs).sum(-1)


def divergence(true: Tensor, log_probs: Tensor) -> Tensor:
    """KL(true ‖ model) in nats over the last dimension, exactly; ``log_probs`` are the model's."""
    return (torch.xlogy(true, true) - true * log_probs).sum(-1)
