"""The small transformer that learns the language. Shape legend: ``B`` texts, ``T`` words, ``V`` vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uncertune.studies.language.grammar import LENGTH, VOCABULARY


class Transformer(nn.Module):
    """A decoder of one layer: (B, T) tokens → (B, T, V) logits. Dropout at attention, residual and mlp."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 96, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Parameter(0.5 * torch.randn(VOCABULARY, width))
        self.place = nn.Parameter(0.5 * torch.randn(LENGTH, width))
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.attention_dropout = nn.Dropout(dropout)
        self.residual_dropout = nn.Dropout(dropout)
        self.mlp_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        one_hot = (tokens[..., None] == torch.arange(VOCABULARY)).to(self.embed.dtype)
        x = self.residual_dropout(one_hot @ self.embed + self.place[: tokens.shape[-1]])
        x = x + self.residual_dropout(self.attention_out(self._attend(self.attention_norm(x))))
        inner = self.mlp_dropout(torch.nn.functional.gelu(self.mlp_in(self.mlp_norm(x))))
        x = x + self.residual_dropout(self.mlp_out(inner))
        return self.head(self.norm(x))

    def _attend(self, x: Tensor) -> Tensor:
        texts, length, width = x.shape
        parts = self.qkv(x).view(texts, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = self.attention_dropout(scores.masked_fill(later, float("-inf")).softmax(-1))
        return (weights @ value).transpose(1, 2).reshape(texts, length, width)
