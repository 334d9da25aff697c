"""Side columns: values of the data for each token, besides its label.

They are checked row by row and aligned with the labels, and become keywords of the objective.
A value is one number for the whole row, or a list as long as the labels, of numbers or of lists (over the vocabulary).
An entry whose label is −100 has no meaning and may be null.

Shape legend: ``T`` response tokens of a micro-batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from uncertune.errors import UserError
from uncertune.fused import TokenStats, linear_token_stats
from uncertune.objectives import (
    IGNORED,
    MAX_DENSE_VOCABULARY,
    OBJECTIVES,
    FactoredTeacher,
    TeacherLike,
    clip_binds,
    clipped_advantage,
)
from uncertune.training.batch import SIDE_COLUMNS, Tokens
from uncertune.training.config import CLIP_FIELDS, UncertuneConfig

WHOLE_ROW = ("token_weight", "advantages")
"""Columns whose value may be one number for the whole row."""
OVER_VOCABULARY = ("advantages", "oracle")
"""Columns whose entries may be lists: over the whole vocabulary, or with ``<name>_ids`` over some of its tokens."""
LOWEST = {"token_weight": 0.0, "oracle": 0.0}
LARGEST = 1e30  # far below float32's largest number, with which a loss would overflow
SUM_TOLERANCE = 1e-2  # of an oracle's probabilities, which may be rounded
HIGHEST = {"old_log_probs": 1e-3}  # the logarithm of a probability, up to rounding


def check_names(args: UncertuneConfig, columns: Sequence[str], *, training: bool, streaming: bool = False) -> None:
    """Refuse missing columns, and columns that the objective cannot use; evaluation data may lack columns."""
    uses = OBJECTIVES[args.objective].uses
    for name in OVER_VOCABULARY:
        if training and name in uses and name not in columns:
            raise UserError(f"objective={args.objective!r} needs a column {name!r} in the data; it has {list(columns)}")
        if name not in uses and name in columns:
            raise UserError(f"column {name!r} of the data is not used by objective={args.objective!r}: remove it")
        if f"{name}_ids" in columns and name not in columns:
            raise UserError(f"column '{name}_ids' of the data needs a column {name!r} beside it")
    if "old_log_probs" in columns:
        if "advantages" not in uses:
            raise UserError(
                f"column 'old_log_probs' of the data is not used by objective={args.objective!r}: remove it"
            )
        if "advantages_ids" in columns:
            raise UserError(
                "column 'old_log_probs' gives the sampled token's importance ratio, which is undefined for advantages "
                "over the vocabulary ('advantages_ids'): remove one of them"
            )
    elif training:
        for name in CLIP_FIELDS:
            if getattr(args, name) != getattr(UncertuneConfig, name):
                raise UserError(
                    f"{name}={getattr(args, name)!r} clips the importance ratio, for which the data needs a column "
                    "'old_log_probs' beside 'advantages'"
                )
    if streaming and any(name in columns for name in SIDE_COLUMNS):
        raise UserError("side columns are not supported with dataset_streaming: load the data without streaming")


def lay_out(row: dict[str, Any], index: int, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The side columns of one row, one entry per token; null entries outside the response become 0 or empty lists.

    Raises UserError that names the column, the row and the token.
    """
    labels = row["labels"]
    out: dict[str, list[Any]] = {}
    for name in columns:
        if name.endswith("_ids"):
            continue
        where = f"column {name!r} of row {index}"
        value, ids = row[name], row.get(f"{name}_ids") if f"{name}_ids" in columns else None
        if name in WHOLE_ROW and f"{name}_ids" not in columns and _is_number(value):
            value = [value] * len(labels)
        if not isinstance(value, list) or len(value) != len(labels):
            wanted = "a number or a list" if name in WHOLE_ROW and f"{name}_ids" not in columns else "a list"
            size = len(value) if isinstance(value, list) else value
            raise UserError(f"{where} must be {wanted} like the labels ({len(labels)} long): got {size}")
        nested = any(isinstance(entry, list) for entry in value)
        _check_form(name, nested, f"{name}_ids" in columns, where, "old_log_probs" in columns)
        if f"{name}_ids" in columns:
            out[f"{name}_ids"] = _token_ids(ids, value, labels, f"column '{name}_ids' of row {index}")
        empty = _empty(name, nested, value, f"{name}_ids" in columns, where)
        out[name] = [
            _entry(name, nested, entry, label, empty, f"{where}, token {place}")
            for place, (entry, label) in enumerate(zip(value, labels, strict=True))
        ]
        if name == "oracle":
            _check_distributions(out, labels, where)
    return out


def check_laid_out(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Raise UserError unless prepared rows have side columns in the form of ``lay_out``."""
    for index, row in enumerate(rows):
        for name, value in lay_out(row, index, columns).items():
            if value != row[name]:
                raise UserError(
                    f"column {name!r} of row {index} must be a list like the labels, without null, since the data is "
                    "used unchanged (skip_prepare_dataset)"
                )


def check_vocabulary(rows: Any, vocabulary: int) -> None:
    """Raise UserError for a column with an unknown token, or of another width than the model's vocabulary."""
    names = list(getattr(rows, "column_names", None) or ())
    for name in OVER_VOCABULARY:
        if name not in names:
            continue
        column, sparse = f"{name}_ids" if f"{name}_ids" in names else name, f"{name}_ids" in names
        for index, row in enumerate(rows.select_columns([column])):
            for place, entry in enumerate(row[column] if isinstance(row[column], list) else ()):
                if not isinstance(entry, list) or not entry:
                    continue
                where = f"column {column!r} of row {index}, token {place}"
                if sparse and max(entry) >= vocabulary:
                    raise UserError(f"{where}: the model has no token {max(entry)}, its vocabulary is {vocabulary}")
                if not sparse and len(entry) != vocabulary:
                    raise UserError(
                        f"{where} has {len(entry)} entries, the model's vocabulary {vocabulary}: give one for each of "
                        f"its tokens, or some and their ids in '{name}_ids'"
                    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_form(name: str, nested: bool, sparse: bool, where: str, ratio: bool) -> None:
    if nested and name not in OVER_VOCABULARY:
        raise UserError(f"{where} must hold numbers, one per token, not lists")
    if not nested and (name == "oracle" or sparse):
        lists = f"and '{name}_ids' as long" if sparse else f"over the vocabulary, or some of it and '{name}_ids'"
        raise UserError(f"{where} must hold lists, one per token, {lists}")
    if nested and ratio and name == "advantages":
        raise UserError(
            f"{where} holds lists over the vocabulary, for which the importance ratio of the sampled token "
            "('old_log_probs') is undefined: remove that column, or give advantages per token"
        )


def _empty(name: str, nested: bool, value: list[Any], sparse: bool, where: str) -> Any:
    """The entry of a token whose label is −100 and that has no value."""
    if not nested:
        return 0.0
    if sparse:
        return []
    width = next(len(entry) for entry in value if entry)
    if width > MAX_DENSE_VOCABULARY:
        raise UserError(
            f"{where} is dense over {width} tokens; at most {MAX_DENSE_VOCABULARY} are accepted: give the tokens that "
            f"matter and their ids in '{name}_ids'"
        )
    return [0.0] * width


def _entry(name: str, nested: bool, entry: Any, label: int, empty: Any, where: str) -> Any:
    """One token's value, checked."""
    if entry is None or entry == []:
        if label == IGNORED:
            return empty
        if entry is None or empty:
            raise UserError(f"{where} has no value, but its label is a response token")
    if isinstance(entry, list) != nested:
        raise UserError(f"{where} must be {'a list' if nested else 'a number'}, as the row's others are: got {entry!r}")
    if nested and empty and len(entry) != len(empty):
        raise UserError(f"{where} has {len(entry)} entries, the row's others {len(empty)}")
    for number in entry if nested else (entry,):
        if not _is_number(number) or not math.isfinite(number):
            raise UserError(f"{where}: {number!r} is not a finite number")
        if number < LOWEST.get(name, -math.inf):
            raise UserError(f"{where}: {number!r} must be at least {LOWEST[name]:g}")
        if abs(number) > LARGEST:
            raise UserError(f"{where}: {number!r} is too large for float32: give at most {LARGEST:g}")
        if number > HIGHEST.get(name, math.inf):
            raise UserError(f"{where}: {number!r} must be at most 0, the logarithm of a probability")
    return entry


def _check_distributions(columns: Mapping[str, list[Any]], labels: Sequence[int], where: str) -> None:
    """Raise UserError for a response token whose oracle is no distribution: it repeats ids or does not sum to one."""
    ids = columns.get("oracle_ids") or [[]] * len(labels)
    for place, (label, probabilities, some) in enumerate(zip(labels, columns["oracle"], ids, strict=True)):
        if label == IGNORED or place == 0:  # nothing predicts the first token
            continue
        if len(set(some)) < len(some):
            twice = next(one for one in some if some.count(one) > 1)
            raise UserError(f"{where}, token {place}: 'oracle_ids' names token {twice} twice: add its probabilities up")
        if abs((total := math.fsum(probabilities)) - 1) > SUM_TOLERANCE:
            raise UserError(f"{where}, token {place}: probabilities must sum to 1, these sum to {total:g}")


def _token_ids(ids: Any, value: list[Any], labels: Sequence[int], where: str) -> list[list[int]]:
    """The ids of a sparse column, as many as the values of each token."""
    if not isinstance(ids, list) or len(ids) != len(labels):
        size = len(ids) if isinstance(ids, list) else ids
        raise UserError(f"{where} must be a list like the labels ({len(labels)} long): got {size}")
    ids = [entry or [] for entry in ids]
    for place, (some, values) in enumerate(zip(ids, value, strict=True)):
        if not isinstance(some, list) or len(some) != len(values or ()):
            raise UserError(f"{where}, token {place}: {some!r} must be as many ids as there are values")
    for one in itertools.chain.from_iterable(ids):
        if not isinstance(one, int) or isinstance(one, bool) or one < 0:
            raise UserError(f"{where}: {one!r} is not a token id")
    return ids


OLD = "old_log_probs"


def has_ratio(tokens: Tokens) -> bool:
    """Whether the data has the probability with which each token was sampled."""
    return OLD in tokens.side


def has_columns(args: UncertuneConfig, columns: Container[str]) -> bool:
    """Whether the data has the columns that the objective needs; evaluation data may lack them."""
    needs = OBJECTIVES[args.objective].needs
    return all(name in columns for name in OVER_VOCABULARY if name in needs)


def side_information(args: UncertuneConfig, tokens: Tokens, stats: TokenStats | None) -> dict[str, Any]:
    """The objective's keywords that come from side columns.

    ``stats`` are the student's for the same hidden states: with ``old_log_probs`` an advantage A becomes
    ``clipped_advantage``, r · A or 0, with r = p(y) / p_old(y), a constant in the gradient.
    """
    given: dict[str, Any] = {}
    for name in ("advantages", "oracle"):
        if name in OBJECTIVES[args.objective].uses:
            ids = tokens.side.get(f"{name}_ids")
            given[name] = tokens.side[name] if ids is None else (ids, tokens.side[name])
    if has_ratio(tokens):
        assert stats is not None
        ratio_T = _log_ratio(tokens, stats)
        given["advantages"] = clipped_advantage(given["advantages"], ratio_T, args.epsilon, args.epsilon_high)
    return given


def measures(
    args: UncertuneConfig, tokens: Tokens, stats: TokenStats, teacher: TeacherLike | None
) -> dict[str, Tensor]:
    """Sums over the tokens, on the device, of the metrics of a policy gradient step.

    ``importance_ratio``; ``clipped_fraction``, of tokens whose gradient the clip has removed; ``kl``, from the model to
    the teacher, estimated on the sampled tokens as exp(d) − d − 1 with d = log p_ref(y) − log p(y), as GRPO reports it.
    """
    out: dict[str, Tensor] = {}
    if "advantages" not in OBJECTIVES[args.objective].uses:
        return out
    if has_ratio(tokens):
        ratio_T = _log_ratio(tokens, stats).exp()
        binds_T = clip_binds(tokens.side["advantages"], ratio_T, args.epsilon, args.epsilon_high)
        out = {"importance_ratio": ratio_T.sum(), "clipped_fraction": binds_T.sum()}
    if isinstance(teacher, FactoredTeacher):
        reference = linear_token_stats(teacher.hidden, teacher.head, tokens.labels)
        difference_T = stats.loss.detach() - reference.loss
        out["kl"] = (difference_T.exp() - difference_T - 1).sum()
    return out


def _log_ratio(tokens: Tokens, stats: TokenStats) -> Tensor:
    """log p(y) − log p_old(y), (T,)."""
    return (-stats.loss - tokens.side[OLD].to(stats.loss.dtype)).detach()
