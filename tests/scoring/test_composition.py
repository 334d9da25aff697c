"""Kinds of tokens, and their shares among the hardest (claim C4)."""

import numpy as np
import pyarrow as pa
import pytest

from uncertune.scoring.composition import KINDS, composition, hardest, kind_of, kinds_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("+", "structure"),
        ("\n", "structure"),
        ("", "structure"),
        (" (", "structure"),
        ("\ufffd", "structure"),
        ("7", "number"),
        (" 12", "number"),
        ("x2", "number"),
        ("½", "number"),
        ("٣", "number"),
        (" apples", "word"),
        ("é", "word"),
        ("水", "word"),
    ],
)
def test_the_kind_of_a_token(text, kind):
    assert kind_of(text) == kind


def test_marks_of_the_template_are_structure():
    table = pa.table({"text": ["<|im_end|>", "im"], "token": [2, 9]})
    assert kinds_of(table, {2}) == ["structure", "word"]


def test_shares_and_their_change():
    kinds = ["structure", "structure", "number", "word"] * 2
    document = np.repeat([0, 1], 4)
    table = pa.table({"loss": [4.0, 3.0, 1.0, 2.0] * 2})
    before = hardest(table, "loss", 0.5)
    assert before.tolist() == [True, True, False, False] * 2
    now = ~before
    shares = composition(kinds, document, now, draws=20, seed=0)
    assert [shares[kind].value for kind in KINDS] == [0.0, 0.5, 0.5]
    change = composition(kinds, document, now, before, draws=20, seed=0)
    assert [change[kind].value for kind in KINDS] == [-1.0, 0.5, 0.5]
    assert change["structure"].low == change["structure"].high == -1.0  # both documents say the same


def test_intervals_are_over_documents():
    kinds = ["number"] * 30 + ["word"] * 10
    document = np.repeat([0, 1, 2, 3], 10)
    found = composition(kinds, document, np.ones(40, dtype=bool), draws=2000, seed=0)["number"]
    assert (found.value, found.low, found.high) == (0.75, 0.25, 1.0)  # four documents, not forty tokens
