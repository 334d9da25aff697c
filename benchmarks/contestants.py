"""What runs in ``benchmarks.head``: forward and backward of an output head, ours and every peer's.

Shape legend: ``T`` tokens, ``D`` hidden size, ``V`` vocabulary.

Peers are called as their users call them. A contestant returns its loss; its gradients are left in ``Problem``.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from uncertune.fused import linear_weighted_nll, score_tokens
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head, anchored, token_weighting
from uncertune.selection import select

FRACTION = 0.25
CHUNK = 256


@dataclass
class Problem:
    """A head and the tokens it is asked about; ``hidden`` needs a gradient, ``head`` where it is trained."""

    hidden: Tensor
    head: Tensor
    labels: Tensor
    teacher: Tensor
    softcap: float | None

    @classmethod
    def make(
        cls,
        tokens: int,
        width: int,
        vocabulary: int,
        softcap: float | None,
        dtype: torch.dtype,
        device: str,
        train: bool,
    ) -> Problem:
        """Random, as hard as real text: the label is the most likely token of most positions, 4 nats below it at about
        one in ten, 8 nats at one in a hundred (SmolLM2-135M on Alpaca: 11 % and 2 %)."""
        drawn = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        head = torch.randn(vocabulary, width, **drawn) * (2.5 / width**0.5)
        labels = torch.randint(vocabulary, (tokens,), **drawn)
        hidden = torch.randn(tokens, width, **drawn) + head[labels] * (0.9 + 2.7 * torch.rand(tokens, 1, **drawn))
        teacher = hidden + 0.05 * torch.randn(tokens, width, **drawn)
        made = [tensor.to(dtype) for tensor in (hidden, head, teacher)]
        return cls(made[0].requires_grad_(), made[1].requires_grad_(train), labels, made[2], softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """As a model computes them: in its own precision."""
        z = hidden @ self.head.T
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    @functools.cached_property
    def selected(self) -> Tensor:
        """The hardest quarter: given to the peers, found by ours."""
        return select(score_tokens(self.hidden, self.head, self.labels, softcap=self.softcap).stats.loss, FRACTION)

    def clear(self) -> None:
        self.hidden.grad = self.head.grad = None


@dataclass(frozen=True)
class Contestant:
    """``run`` computes the loss; ``why_not`` says in words why it cannot run on a problem, or None; ``dense``: it
    builds all logits."""

    name: str
    run: Callable[[Problem], Tensor]
    why_not: Callable[[Problem], str | None] = lambda _: None
    dense: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("uncertune")


def _package(name: str, install: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"{name} is not installed: pip install --no-deps {install}"


def _needs_cuda(package: str, install: str) -> Callable[[Problem], str | None]:
    return lambda p: _package(package, install) or (None if p.hidden.is_cuda else "its kernels need a GPU")


# ---- plain cross-entropy


def transformers_logits(p: Problem) -> Tensor:
    from transformers.loss.loss_utils import ForCausalLMLoss

    return ForCausalLMLoss(p.logits(p.hidden), None, p.head.shape[0], shift_labels=p.labels)


@functools.cache
def _compiled_cross_entropy() -> Callable[..., Tensor]:
    def cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
        z = hidden @ head.T
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        return functional.cross_entropy(z.float(), labels)

    return torch.compile(cross_entropy, dynamic=True)


def compiled_logits(p: Problem) -> Tensor:
    """Plain logits under torch.compile, which is also what CCE runs without a GPU."""
    return _compiled_cross_entropy()(p.hidden, p.head, p.labels, p.softcap)


def trl_head(p: Problem) -> Tensor:
    """With the outputs that SFTTrainer asks for."""
    return trl_losses(p).mean()


def trl_losses(p: Problem) -> Tensor:
    """The loss of each token, (T,), by TRL's fused head."""
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("log_probs", "entropy", "is_top1")
    log_probs, *_ = ChunkedLogProbFunction.apply(p.hidden, p.head, None, p.labels, 1.0, 32768, p.softcap, 1.0, outputs)
    return -log_probs


def torch_lce(p: Problem, rows: int | None = None) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    if rows is not None:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
    return functional.linear_cross_entropy(p.hidden, p.head, p.labels, options=options)


def _no_softcap(p: Problem) -> str | None:
    if not hasattr(functional, "linear_cross_entropy"):
        return f"torch {torch.__version__} does not have it"
    return "it knows no soft-cap" if p.softcap else None


def checkpointed_chunks(p: Problem) -> Tensor:
    """Chunks of tokens, each recomputed in the backward."""

    def part(hidden: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(p.logits(hidden).float(), labels, reduction="sum")

    pairs = zip(p.hidden.split(CHUNK), p.labels.split(CHUNK), strict=True)
    return torch.stack([checkpoint(part, *pair, use_reentrant=False) for pair in pairs]).sum() / len(p.labels)


def cce(p: Problem) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(p.hidden, p.head, p.labels, softcap=p.softcap)


def liger(p: Problem) -> Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    out = LigerFusedLinearCrossEntropyFunction.apply(
        p.hidden, p.head, p.labels, None, None, -100, 0.0, 0.0, "mean", p.softcap
    )
    return out[0] if isinstance(out, tuple) else out


def ours_mle(p: Problem) -> Tensor:
    loss = linear_weighted_nll(
        p.hidden, p.head, OBJECTIVES["mle"](p.labels), softcap=p.softcap, factor=1 / len(p.labels)
    )
    return loss.mean()


CROSS_ENTROPY = [
    Contestant("transformers: plain logits", transformers_logits, dense=True),
    Contestant("plain logits, torch.compile", compiled_logits, dense=True),
    Contestant("TRL 1.16 head", trl_head),
    Contestant("torch linear_cross_entropy", torch_lce, _no_softcap),
    Contestant(f"torch linear_cross_entropy, {CHUNK} rows", functools.partial(torch_lce, rows=CHUNK), _no_softcap),
    Contestant("chunks, checkpointed", checkpointed_chunks),
    Contestant("CCE", cce, _needs_cuda("cut_cross_entropy", "cut-cross-entropy")),
    Contestant("Liger", liger, _needs_cuda("liger_kernel", "liger-kernel")),
    Contestant("uncertune mle", ours_mle),
]


# ---- masked MLE: ours alone can leave tokens out by what the head says of them; scoring is part of the time


def ours_masked(p: Problem) -> Tensor:
    options = {"softcap": p.softcap}
    scored = score_tokens(p.hidden, p.head, p.labels, **options)
    targets = OBJECTIVES["masked_mle"](p.labels, selected=select(scored.stats.loss, FRACTION))
    loss = linear_weighted_nll(p.hidden, p.head, targets, scored=scored, factor=1 / len(p.labels), **options)
    return loss.mean()


MASKED = [Contestant("uncertune masked_mle 25 %", ours_masked)]


# ---- cross-entropy on the selected quarter, full-vocabulary KL from the teacher on the rest


def _cross_entropies(z: Tensor, teacher_z: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    """Summed: −log p(label) where selected, −Σ p_ref log p elsewhere; peers need dense logits of both."""
    log_p = functional.log_softmax(z.float(), -1)
    hard = functional.nll_loss(log_p, labels, reduction="none")
    soft = functional.kl_div(
        log_p, functional.log_softmax(teacher_z.float(), -1), log_target=True, reduction="none"
    ).sum(-1)
    return torch.where(selected, hard, soft).sum()


def dense_distillation(p: Problem) -> Tensor:
    with torch.no_grad():
        teacher_z = p.logits(p.teacher)
    return _cross_entropies(p.logits(p.hidden), teacher_z, p.labels, p.selected) / len(p.labels)


@functools.cache
def _compiled_distillation() -> Callable[..., Tensor]:
    return torch.compile(_cross_entropies, dynamic=True)


def compiled_distillation(p: Problem) -> Tensor:
    with torch.no_grad():
        teacher_z = p.logits(p.teacher)
    return _compiled_distillation()(p.logits(p.hidden), teacher_z, p.labels, p.selected) / len(p.labels)


def checkpointed_distillation(p: Problem) -> Tensor:
    def part(hidden: Tensor, teacher: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_z = p.logits(teacher)
        return _cross_entropies(p.logits(hidden), teacher_z, labels, selected)

    parts = zip(*(t.split(CHUNK) for t in (p.hidden, p.teacher, p.labels, p.selected)), strict=True)
    return torch.stack([checkpoint(part, *one, use_reentrant=False) for one in parts]).sum() / len(p.labels)


def liger_distillation(p: Problem) -> Tensor:
    """Two kernels: fused cross-entropy of the selected tokens, fused divergence (β = 0: forward KL) of the others."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    chosen = p.selected
    hard = LigerFusedLinearCrossEntropyFunction.apply(p.hidden[chosen], p.head, p.labels[chosen])
    rest = ~chosen
    soft = LigerFusedLinearJSDFunction.apply(p.hidden[rest], p.head, p.teacher[rest], p.head, None, 0.0)
    hard = hard[0] if isinstance(hard, tuple) else hard
    return (hard * chosen.sum() + soft * rest.sum()) / len(p.labels)


def _no_cap(p: Problem) -> str | None:
    return _needs_cuda("liger_kernel", "liger-kernel")(p) or ("it knows no soft-cap" if p.softcap else None)


def ours_distillation(p: Problem) -> Tensor:
    """KL and cross-entropy against the teacher differ by the teacher's entropy, which has no gradient."""
    options = {"softcap": p.softcap}
    scored = score_tokens(p.hidden, p.head, p.labels, keep=True, **options)
    teacher = FactoredTeacher(p.teacher, Head(p.head, softcap=p.softcap))
    selected = select(scored.stats.loss, FRACTION)
    targets = OBJECTIVES["masked_mle_distill"](p.labels, selected=selected, teacher=teacher)
    loss = linear_weighted_nll(p.hidden, p.head, targets, scored=scored, factor=1 / len(p.labels), **options)
    return loss.mean()


DISTILLATION = [
    Contestant("dense CE + KL", dense_distillation, dense=True),
    Contestant("dense CE + KL, torch.compile", compiled_distillation, dense=True),
    Contestant("chunks, checkpointed, CE + KL", checkpointed_distillation),
    Contestant("Liger CE and JSD", liger_distillation, _no_cap),
    Contestant("uncertune masked_mle_distill 25 %", ours_distillation),
]


# ---- the family: token weightings, an anchor, a teacher of several members

FAMILY_MEMBERS = 4
ANCHOR_WEIGHT = 0.1


def _family(p: Problem, objective: str, weighting: str = "none", anchor: bool = False, members: int = 1) -> Tensor:
    scored, given = None, {"token_weighting": token_weighting(weighting)}
    teacher = FactoredTeacher(p.teacher, Head(p.head, softcap=p.softcap))
    if objective == "masked_mle_distill":
        scored = score_tokens(p.hidden, p.head, p.labels, keep=True, softcap=p.softcap)
        given |= {"selected": select(scored.stats.loss, FRACTION), "teacher": [teacher] * members}
    targets = OBJECTIVES[objective](p.labels, **given)
    targets = anchored(targets, p.labels, teacher, ANCHOR_WEIGHT) if anchor else targets
    factor = 1 / len(p.labels)
    return linear_weighted_nll(p.hidden, p.head, targets, scored=scored, factor=factor, softcap=p.softcap).mean()


def trl_dft(p: Problem) -> Tensor:
    """TRL's ``loss_type: dft``: its fused head, and the label's own probability as weight."""
    loss_T = trl_losses(p)
    return (loss_T * (-loss_T).exp().detach()).mean()


def dense_asft(p: Problem) -> Tensor:
    """ASFT as LLaMA-Factory computes it: whole logits of the model and of its base."""
    with torch.no_grad():
        base_log_p = functional.log_softmax(p.logits(p.teacher).float(), -1)
    log_p = functional.log_softmax(p.logits(p.hidden).float(), -1)
    label_T = log_p.gather(-1, p.labels[:, None])[:, 0]
    divergence_T = functional.kl_div(log_p, base_log_p, log_target=True, reduction="none").sum(-1)
    return (-label_T * label_T.exp().detach() + ANCHOR_WEIGHT * divergence_T).mean()


def family_by_hand(contestant: Contestant, p: Problem) -> Tensor:
    """What a contestant of ``FAMILY`` computes, from plain logits."""
    objective, weighting, anchor = FAMILY_LOSSES[contestant.name]
    z = p.logits(p.hidden)
    log_p, q = functional.log_softmax(z, -1), functional.softmax(p.logits(p.teacher), -1).detach()
    label_T, soft_T = log_p.gather(-1, p.labels[:, None])[:, 0], (q * log_p).sum(-1)
    weight_T = label_T.detach().exp() if weighting == "dft" else torch.ones_like(label_T)
    if weighting == "eaft":
        top_log_p = z.detach().topk(20, -1).values.log_softmax(-1)
        weight_T = -(top_log_p.exp() * top_log_p).sum(-1) / math.log(20)
    loss_T = -weight_T * label_T
    if objective == "masked_mle_distill":
        loss_T = torch.where(p.selected, loss_T, -soft_T)
    return (loss_T - ANCHOR_WEIGHT * soft_T * anchor).mean()


FAMILY_LOSSES = {
    "TRL dft": ("mle", "dft", False),
    "dense ASFT": ("mle", "dft", True),
    "uncertune dft": ("mle", "dft", False),
    "uncertune eaft": ("mle", "eaft", False),
    "uncertune mle + anchor": ("mle", "none", True),
    "uncertune asft": ("mle", "dft", True),
    "uncertune masked_mle_distill 25 % + anchor": ("masked_mle_distill", "none", True),
    f"uncertune masked_mle_distill 25 %, {FAMILY_MEMBERS} members": ("masked_mle_distill", "none", False),
}
FAMILY = [
    Contestant("TRL dft", trl_dft),
    Contestant("dense ASFT", dense_asft, dense=True),
    *(
        Contestant(
            name, functools.partial(_family, objective=loss[0], weighting=loss[1], anchor=loss[2], members=members)
        )
        for name, loss in FAMILY_LOSSES.items()
        if name.startswith("uncertune")
        for members in [FAMILY_MEMBERS if "members" in name else 1]
    ),
]
