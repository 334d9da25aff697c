"""The radix selection against a stable sort of all scores in data order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uncertune.selection.radix import DIGIT_BITS, top_masks


def by_sorting(ranks, count):
    """Masks and lowest score by one stable descending sort over part, rank, position."""
    order = [
        (part, rank) for part in range(max(map(len, ranks))) for rank in range(len(ranks)) if part < len(ranks[rank])
    ]
    scores = torch.cat([ranks[rank][part].double() for part, rank in order])
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.sort(scores, descending=True, stable=True).indices[:count]] = True
    pieces = dict(zip(order, mask.split([len(ranks[rank][part]) for part, rank in order]), strict=True))
    masks = [[pieces[part, rank] for part in range(len(ranks[rank]))] for rank in range(len(ranks))]
    return masks, float(scores[mask].min()) if count else float("nan")


def by_radix(ranks, count):
    """Every rank's masks, with collectives played by generators in lockstep: all ranks run the same exchanges."""
    import threading

    barrier, board, out, sent = threading.Barrier(len(ranks)), {}, {}, {}

    def exchange(rank, value):
        board[rank] = value
        barrier.wait(10)
        values = [board[one] for one in range(len(ranks))]
        barrier.wait(10)
        return values

    def run(rank):
        def total(counts):
            sent[rank] = sent.get(rank, 0) + counts.numel() * counts.element_size()
            return torch.stack(exchange(rank, counts)).sum(0)

        gather = lambda numbers: exchange(rank, numbers)  # noqa: E731
        out[rank] = top_masks(ranks[rank], count, rank=rank, sum_over_ranks=total, gather=gather)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lowest = {out[rank][1] for rank in out if count}
    assert len(lowest) <= 1
    return [out[rank][0] for rank in range(len(ranks))], lowest.pop() if lowest else float("nan"), sent


def check(ranks, count):
    masks, lowest, _ = by_radix(ranks, count)
    expected, threshold = by_sorting(ranks, count)
    for mine, theirs in zip(masks, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
    assert lowest == threshold or count == 0


scores = st.one_of(
    st.floats(allow_nan=False, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), 1e-45, -1e-45]),
)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_equals_a_stable_sort(data, dtype):
    shape = data.draw(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=3))
    ranks = [
        [torch.tensor(data.draw(st.lists(scores, min_size=n, max_size=n)), dtype=dtype) for n in rank] for rank in shape
    ]
    total = sum(map(sum, shape))
    check(ranks, data.draw(st.integers(0, total)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_scores_with_ties_over_eight_ranks(dtype):
    torch.manual_seed(0)
    ranks = [[torch.randn(500, dtype=dtype).mul(8).round().div(8) for _ in range(2)] for _ in range(8)]
    for count in (1, 2000, 7999, 8000):
        check(ranks, count)


def test_what_travels_does_not_grow_with_the_scores():
    ranks = [[torch.randn(10_000)] for _ in range(2)]
    _, _, sent = by_radix(ranks, 5000)
    assert max(sent.values()) == 3 * 8 * 2**DIGIT_BITS  # three digits of float32


def test_more_than_there_are():
    with pytest.raises(ValueError, match="count is 4, but there are only 3 scores"):
        top_masks([torch.zeros(3)], 4)
