"""Settings every test runs under: no hub, few threads that do not spin, a fixed seed."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch

from helpers import order

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported


pytest_plugins = ["helpers.browser"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first. Tests marked ``gpu`` work at sizes that take a CPU hours."""
    items.sort(key=lambda item: order.place(item.nodeid.partition("::")[0]))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish() -> None:
    """Collections pass over the objects of the imports: they take 0.2 s with them, and a training run asks for two."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
