"""``read_selection`` against masks written by hand, as a run writes them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uncertune.errors import UserError
from uncertune.runs import read_selection
from uncertune.runs.records import selection_schema

MASKS = [(1, "a", [True, False, True]), (1, "b", [False] * 9 + [True]), (2, "a", [False, True, False])]


@pytest.fixture
def run(tmp_path):
    rows = [
        {"step": step, "document": name, "tokens": len(mask), "selected": np.packbits(np.array(mask)).tobytes()}
        for step, name, mask in MASKS
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=selection_schema()), tmp_path / "selection.parquet")
    return tmp_path


def test_masks_come_in_order(run):
    assert [(one.step, one.document, one.selected.tolist()) for one in read_selection(run)] == MASKS
    assert all(one.selected.dtype == bool for one in read_selection(run))


def test_masks_of_a_step(run):
    assert [one.document for one in read_selection(str(run), step=1)] == ["a", "b"]
    assert list(read_selection(run, step=7)) == []


def test_a_run_without_masks_is_named(tmp_path):
    with pytest.raises(UserError, match="the run selects no tokens, or save_selection was false"):
        list(read_selection(tmp_path))
