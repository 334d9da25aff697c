"""The response tokens of a batch, by places that are known on the CPU."""

import pytest
import torch

from uncertune.training.batch import IGNORED, LAYOUT, Tokens, layout_of, layouts

ROWS, LENGTH = 4, 9


def batch(kind):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (ROWS, LENGTH), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.4, IGNORED)
    labels[2] = IGNORED
    out = {"input_ids": ids, "labels": labels, "oracle": torch.randn(ROWS, LENGTH, 3, generator=generator)}
    if kind == "flat":
        positions = torch.tensor([*range(5), *range(4)]).expand(ROWS, LENGTH)
        return out | {"position_ids": positions.clone()}
    there = torch.arange(LENGTH) < torch.tensor([9, 5, 7, 8])[:, None]
    there = there.flip(1) if kind == "padded on the left" else there
    labels[~there] = IGNORED
    return out | {"attention_mask": there.long()}


@pytest.mark.parametrize("kind", ["padded", "padded on the left", "flat"])
def test_places_are_those_of_the_mask(kind):
    found = batch(kind)
    tokens = Tokens.of(found, {name: value for name, value in found.items() if name not in ("labels", "oracle")})
    mask = found["labels"][:, 1:] != IGNORED
    hidden = torch.randn(ROWS, LENGTH, 2)
    assert torch.equal(tokens.mask, mask)
    assert torch.equal(hidden.flatten(0, 1)[tokens.index], hidden[:, :-1][mask])
    assert torch.equal(tokens.labels, found["labels"][:, 1:][mask])
    assert torch.equal(tokens.side["oracle"], found["oracle"][:, 1:][mask])
    assert torch.equal(tokens.spread()[:, 1:], found["labels"][:, 1:])
    assert tokens.spread()[:, 0].tolist() == [IGNORED] * ROWS
    assert tokens.layout.inputs == (ROWS * LENGTH if kind == "flat" else 29)
    assert len(tokens.hashes) == tokens.documents.count == (6 if kind == "flat" else 3)


def test_a_stored_layout_is_used():
    found = [batch("padded"), batch("flat")]
    both = layouts(found)
    assert [one.index.tolist() for one in both] == [layout_of(one).index.tolist() for one in found]
    assert layout_of({**found[0], LAYOUT: both[1]}) is both[1]
