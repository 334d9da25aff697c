"""Fig. 12: the parts of a batch, the files, and that the runs are what they say."""

import gzip

import numpy as np
import pytest
import torch
from torch.nn import functional

from uncertune.errors import UserError
from uncertune.studies import mnist
from uncertune.studies.digits import FILES, Digits, load
from uncertune.studies.mnist import losses, network, parts_of
from uncertune.studies.stacked import Stacked


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder, count=40):
    generator = np.random.default_rng(0)
    for name in FILES:
        array = generator.integers(0, 10, count) if "labels" in name else generator.integers(0, 256, (count, 28, 28))
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))


def test_parts_cover_the_batch_from_easiest_to_hardest():
    loss = torch.arange(256.0).flip(0).expand(10, -1)
    chosen = parts_of(loss, torch.arange(10))
    assert chosen.shape == (10, 25)
    ranks = 255 - chosen
    assert ranks[0].tolist() == list(range(25))
    assert ranks[9].tolist() == list(range(231, 256))
    assert (ranks[1:].amin(1) > ranks[:-1].amax(1)).all()


def test_files_are_read_and_standardised(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    digits = load(str(tmp_path))
    assert digits.name == "MNIST"
    assert digits.train.shape == (40, 784)
    assert float(digits.train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(digits.train.std()) == pytest.approx(1, abs=1e-4)
    assert int(digits.test_labels.max()) < 10


def test_without_files_the_hub_and_offline_one_line(monkeypatch):
    """Never other digits in its place."""
    monkeypatch.delenv("UNCERTUNE_DATA", raising=False)
    with pytest.raises(UserError, match=r"is not available on the hub .* or --data digits"):
        load(None)


def test_the_bundled_digits():
    digits = load("digits")
    assert digits.name == "scikit-learn's digits"
    assert digits.train.shape == (1500, 64)


def test_a_named_folder_without_mnist_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no MNIST: put train-images"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"), [(b"PK\x03\x04", "not an IDX file"), (idx(np.zeros(9))[:-2], "truncated")]
)
def test_a_broken_file_is_named(tmp_path, content, says):
    write_mnist(tmp_path)
    (tmp_path / f"{FILES[1]}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=says):
        load(str(tmp_path))


def test_losses_are_cross_entropy():
    logits, labels = torch.randn(3, 7, 10), torch.randint(10, (3, 7))
    plain = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(3, 7)
    assert torch.allclose(losses(logits, labels), plain, atol=1e-6)


def test_shared_batches_give_each_models_own_outputs():
    models = Stacked(lambda: network(16), [0, 1]).repeated(mnist.PARTS)
    x = torch.randn(2, 5, 16)
    assert torch.allclose(mnist._shared(models, x), models(x.repeat_interleave(10, 0)), atol=1e-6)


def test_a_run_on_a_part_is_plain_sgd_on_it():
    """One step of the hardest part against the same by hand."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 16, generator=generator), torch.randint(10, (256,), generator=generator)
    digits = Digits("random", x, y, x[:20], y[:20])
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    single = network(16)
    loss = functional.cross_entropy(single(x[order]), y[order], reduction="none")
    loss.topk(25).values.mean().backward()
    expected = single[0].weight.detach() - mnist.LEARNING_RATE * single[0].weight.grad
    seen = []
    original = mnist._descend

    def spy(models, *args):
        original(models, *args)
        seen.append(models.parameters["0.weight"].detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "_descend", spy)
        mnist.train(digits, 1, 3, 1, lambda *_: None)
    assert torch.allclose(seen[1][9], expected, atol=1e-6)


def test_the_slope_is_what_a_small_step_brings(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 9, generator=generator), torch.randint(0, 10, (40,), generator=generator)
    digits = mnist.Digits("toy", images.double(), labels, images.double().flip(0), labels.flip(0))
    base = mnist.network(9).double()
    state = {name: value.detach() for name, value in base.named_parameters()}
    monkeypatch.setattr(mnist, "LEARNING_RATE", 1e-6)
    drop, slope = mnist.single_steps(base, state, digits)
    torch.testing.assert_close(drop / 1e-6, slope, rtol=1e-3, atol=1e-6)
