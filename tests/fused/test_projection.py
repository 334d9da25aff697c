"""How much memory the logits may take, by device."""

from types import SimpleNamespace

import pytest
import torch

from tools.gpu.choices import chosen
from uncertune.fused import projection
from uncertune.fused.projection import Projection, logits_bytes

GIB = 2**30
GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu_of(monkeypatch):
    """A GPU of so many bytes; the devices whose memory was looked up."""

    def of(total):
        asked = []
        properties = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: asked.append(device) or properties)
        projection._memory.cache_clear()
        return asked

    yield of
    projection._memory.cache_clear()


@pytest.mark.parametrize(
    ("total", "most"), [(80 * GIB, 4 * GIB), (64 * GIB, 4 * GIB), (24 * GIB, 3 * GIB // 2), (8 * GIB, GIB // 2)]
)
def test_a_sixteenth_of_a_gpu_and_at_most_four_gibibytes(total, most, gpu_of):
    asked = gpu_of(total)
    assert [logits_bytes(GPU) for _ in range(3)] == [most] * 3
    assert asked == [GPU], "looked up once"


def test_a_cpu_has_a_limit_of_its_own(gpu_of):
    asked = gpu_of(80 * GIB)
    assert {logits_bytes(torch.device(kind)) for kind in ("cpu", "mps", "meta")} == {GIB // 2}
    assert asked == []


def test_chunks_and_stored_products_follow_it(gpu_of):
    """Half for the buffers of a chunk, float32 here, and the rest for products that scoring stores."""
    head = SimpleNamespace(device=GPU, shape=(2**17, 8), dtype=torch.float32)
    one = Projection(head, None, torch.float32, "exact")  # no tensor: only its sizes count
    sizes = {}
    for total in (80 * GIB, 24 * GIB):
        gpu_of(total)
        sizes[total] = (one.chunk_rows(), one.chunk_rows(teacher=True), one.kept_rows())
    assert sizes == {80 * GIB: (4096, 2048, 4096), 24 * GIB: (1536, 768, 1536)}


@pytest.mark.parametrize("mebibytes", [512, 8192])
def test_a_size_that_is_tried_overrides_the_share(mebibytes, gpu_of):
    gpu_of(24 * GIB)
    with chosen({"logits_mib": mebibytes}):
        assert logits_bytes(GPU) == mebibytes * 2**20
    assert logits_bytes(GPU) == 3 * GIB // 2
