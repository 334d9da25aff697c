"""A table of the most uncertain tokens of a text, with the words before them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from uncertune.report import Column, Table, Value

SHOWN = 10
FEW_DOCUMENTS = 30
_CONTEXT = 12
_COLUMNS = (
    Column("token", "token", None, 0),
    Column("epistemic", "epistemic", None, 3),
    Column("aleatoric", "aleatoric", None, 3),
    Column("loss", "loss", None, 3),
    Column("probability", "probability", None, 3),
)


def uncertain_table(
    quantities: Mapping[str, Sequence[float]],
    places: Sequence[tuple[int, int]],
    ids: Mapping[int, list[int]],
    tokenizer: Any,
) -> Table:
    """The ten tokens of highest epistemic uncertainty, highest first.

    ``quantities``: epistemic, aleatoric and loss of every token, in nats; ``places``: its document and its position
    there; ``ids``: the tokens of each document. The probability is the model's of the token, exp(−loss).
    """
    epistemic = quantities["epistemic"]
    order = sorted(range(len(places)), key=lambda index: -float(epistemic[index]))[:SHOWN]
    rows: list[dict[str, Value]] = []
    for index in order:
        document, position = places[index]
        before = tokenizer.decode(ids[document][max(0, position - _CONTEXT) : position])
        rows.append(
            {
                "place": f"{document}: …{json.dumps(before, ensure_ascii=False)[1:-1]}",
                "token": _line(tokenizer.decode([ids[document][position]])),
                **{name: float(quantities[name][index]) for name in ("epistemic", "aleatoric", "loss")},
                "probability": math.exp(-float(quantities["loss"][index])),
            }
        )
    caption = (
        f"The {len(rows)} of n = {len(places)} tokens on which dropout samples disagree most (epistemic uncertainty); "
        "aleatoric is what the samples agree to be open. In nats; the probability is the model's without dropout."
    )
    return Table("The most uncertain tokens", caption, _COLUMNS, tuple(rows), "place", None)


def few_documents(count: int) -> str:
    """A warning for captions of intervals over few documents; empty otherwise."""
    return f" {count} documents are few: the intervals are rough." if count < FEW_DOCUMENTS else ""


def _line(text: str) -> str:
    """A token on one line, with its spaces (·) and line breaks visible."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace(" ", "·")
