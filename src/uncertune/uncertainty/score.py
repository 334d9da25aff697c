"""The uncertainty of the response tokens of a batch; each row is scored independently of the others.

Shape legend: ``B`` rows, ``L`` columns, ``N`` response tokens of the batch, ``T`` those of one row, ``S`` samples,
``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.fused import linear_token_stats
from uncertune.models import attached_head, causal_lm, verify_head
from uncertune.objectives import Head
from uncertune.uncertainty.bald import Accumulator, Decomposition, Logits, Plan
from uncertune.uncertainty.check import verify_dropout
from uncertune.uncertainty.documents import Document, split_rows
from uncertune.uncertainty.dropout import evaluating, sample_seed
from uncertune.uncertainty.ensemble import Ensemble, Opened, dropout_ensemble

Progress = Callable[[int, int], None]
HeadFn = Callable[[Tensor, Head, Tensor | None], None]


@dataclass(frozen=True)
class TokenUncertainty:
    """Per response token, in the order of the rows, (N,) float64 in nats: ``total = aleatoric + epistemic``.

    ``loss`` = −log p(label) and ``entropy`` are those of one plain pass without dropout. ``position`` (N, 2) int64 is
    (row, column) of the predicted token in ``input_ids``.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    loss: Tensor
    entropy: Tensor
    position: Tensor


@torch.no_grad()
def token_uncertainty(
    model: nn.Module,
    input_ids: Tensor,
    labels: Tensor,
    *,
    attention_mask: Tensor | None = None,
    samples: int = 100,
    rate: float = 0.1,
    seed: int = 0,
    places: str | Iterable[str] | None = None,
    ensemble: Ensemble | None = None,
    memory: int = 2**30,
    pass_tokens: int = 4096,
    verify: bool = True,
    progress: Progress | None = None,
) -> TokenUncertainty:
    """Total, aleatoric and epistemic uncertainty of every response token (SPEC S17 to S19).

    ``input_ids`` and ``labels`` are (B, L), labels −100 outside the response, and logits of column t predict the label
    of column t + 1: the first token of a row never counts. ``attention_mask`` (B, L) marks padding, which is removed;
    without it every column is a token.

    ``samples`` passes with dropout of ``rate`` at ``places`` (see ``mc_dropout``), or the members of ``ensemble``
    instead. A row's random numbers depend on ``seed``, its token ids and ``samples`` alone, so other rows and padding
    have no effect. Up to ``pass_tokens`` tokens run as one batch of copies.

    ``memory``: bytes for stored hidden states or sums over the vocabulary, whichever takes fewer passes
    (``bald.Plan``). ``verify``: first check on a few tokens that the model's head is supported and that dropout has an
    effect at each place. ``progress(done, of)`` is called with counts of samples after each pass.

    The model is left unchanged. Raises UserError for inputs that do not fit together, a model or place that cannot be
    sampled, and non-finite values.
    """
    if ensemble is not None and (samples, rate, seed, places) != (100, 0.1, 0, None):
        raise UserError("ensemble: it defines samples, rate, seed and places: leave those out")
    documents = split_rows(input_ids, labels, attention_mask, _device(model))
    if ensemble is None:
        places = places if places is None or isinstance(places, str) else tuple(places)
        ensemble = dropout_ensemble(model, samples, rate, seed, places)
        if verify and documents and rate > 0:
            verify_dropout(model, max(documents, key=len).ids, places)
    if verify and documents:
        verify_head(model)
    pieces = [piece for document in documents for piece in _plain_pass(model, document, ensemble, memory)]
    _Sampling(ensemble, pass_tokens, progress, sum(ensemble.samples for _ in pieces)).run(pieces, memory)
    return _gather(pieces, labels.device)


@dataclass
class _Piece:
    """Tokens ``predicts`` (T,) of one document that are processed together."""

    document: Document
    part: slice
    loss: Tensor
    entropy: Tensor
    accumulator: Accumulator
    held_bytes: int
    vocabulary: int
    result: Decomposition | None = None

    @property
    def mask(self) -> Tensor:
        """(L − 1,) bool: the columns that predict a token of this piece."""
        mask = torch.zeros(len(self.document) - 1, dtype=torch.bool, device=self.document.ids.device)
        mask[self.document.predicts[self.part]] = True
        return mask


def _plain_pass(model: nn.Module, document: Document, ensemble: Ensemble, memory: int) -> Iterator[_Piece]:
    """Loss and entropy of a document's tokens without dropout, and the pieces into which it is split for sampling."""
    whole = torch.zeros(len(document) - 1, dtype=torch.bool, device=document.ids.device)
    whole[document.predicts] = True
    found: list[tuple[Tensor, Tensor, Plan, int]] = []

    def measure(hidden: Tensor, head: Head, _aux_loss: Tensor | None) -> None:
        stats = linear_token_stats(hidden, head, document.labels.to(hidden.device))
        (tokens, width), vocabulary = hidden.shape, head.vocabulary
        size = hidden.element_size()
        plan = Plan.of(tokens, ensemble.samples, width, vocabulary, size, memory, ensemble.shared_head)
        found.append((stats.loss, stats.entropy, plan, vocabulary))

    with attached_head(model), evaluating(model):
        _forward(model, document.ids[None], whole[None], measure)
    loss, entropy, plan, vocabulary = found[0]
    for part in plan.pieces(len(document.predicts)):
        held = plan.token_bytes * (part.stop - part.start)
        yield _Piece(document, part, loss[part], entropy[part], plan.accumulator(), held, vocabulary)


@dataclass
class _Sampling:
    """Runs every member over every piece, and counts samples for ``progress``."""

    ensemble: Ensemble
    pass_tokens: int
    progress: Progress | None
    total: int
    done: int = 0
    _cast: tuple[Head, Logits] | None = None

    def run(self, pieces: list[_Piece], memory: int) -> None:
        for group in _groups(pieces, memory):
            for member in self.ensemble.members:
                with member.open() as opened:
                    for piece in group:
                        self._sample(opened, piece, member.samples)
                self._cast = None  # release a loaded checkpoint before the next is loaded
            for piece in group:
                piece.result = piece.accumulator.finish()
                del piece.accumulator

    def _sample(self, opened: Opened, piece: _Piece, samples: int) -> None:
        """All samples of one member for one piece, as batches of copies of the row; the batch size depends on the row's
        length and ``samples`` only."""
        model, reseed = opened
        ids, mask = piece.document.ids[None], piece.mask[None]
        stack = max(1, min(samples, self.pass_tokens // len(piece.document)))
        for first in range(0, samples, stack):
            rows = min(stack, samples - first)

            def add(hidden: Tensor, head: Head, _aux_loss: Tensor | None, rows: int = rows) -> None:
                if head.vocabulary != piece.vocabulary:
                    raise UserError(f"ensemble: vocabularies differ ({piece.vocabulary} and {head.vocabulary})")
                logits = self._prepared(head, hidden)
                for hidden_TD in hidden.view(rows, -1, hidden.shape[-1]).unbind(0):
                    piece.accumulator.add(hidden_TD, logits)

            if reseed is not None:
                reseed(sample_seed(self.ensemble.seed, piece.document.ids, first))
            _forward(model, ids.expand(rows, -1), mask.expand(rows, -1), add)
            self.done += rows
            if self.progress is not None:
                self.progress(self.done, self.total)

    def _prepared(self, head: Head, hidden: Tensor) -> Logits:
        """The head in the hidden states' dtype, cast again only if the tensor changes."""
        if self._cast is None or self._cast[0].weight is not head.weight or self._cast[0].bias is not head.bias:
            self._cast = head, Logits.of(head, like=hidden)
        return self._cast[1]


def _forward(model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, head_fn: HeadFn) -> None:
    def called(hidden: Tensor, head: Head, aux_loss: Tensor | None) -> dict[str, Tensor]:
        head_fn(hidden, head, aux_loss)
        return {}  # wrappers of the model may inspect its output

    model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), head_fn=called, response_mask=mask_BL)


def _groups(pieces: list[_Piece], memory: int) -> Iterator[list[_Piece]]:
    """Consecutive documents that fit into ``memory`` bytes together, so that members are opened less often."""
    group: list[_Piece] = []
    for piece in pieces:
        if group and sum(other.held_bytes for other in group) + piece.held_bytes > memory:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _gather(pieces: list[_Piece], device: torch.device) -> TokenUncertainty:
    def column(values: list[Tensor]) -> Tensor:
        joined = torch.cat(values) if values else torch.empty(0)
        return joined.to("cpu").to(device, torch.float64) if device.type != "mps" else joined.to("cpu", torch.float64)

    results = [piece.result for piece in pieces if piece.result is not None]
    total, aleatoric, epistemic = (
        column([getattr(result, name) for result in results]) for name in ("total", "aleatoric", "epistemic")
    )
    loss, entropy = column([piece.loss for piece in pieces]), column([piece.entropy for piece in pieces])
    if not torch.stack((total, loss, entropy)).isfinite().all():
        raise UserError("model: the uncertainty of a token is not finite: its logits overflow, or weights are damaged")
    positions = [piece.document.position[piece.part] for piece in pieces]
    position = torch.cat(positions) if positions else torch.empty((0, 2), dtype=torch.long)
    return TokenUncertainty(total, aleatoric, epistemic, loss, entropy, position.to(total.device))


def _device(model: nn.Module) -> torch.device | None:
    """The device for token ids; None if the embedding is offloaded and hooks move the inputs."""
    device = causal_lm(model).get_input_embeddings().weight.device
    return None if device.type == "meta" else device
