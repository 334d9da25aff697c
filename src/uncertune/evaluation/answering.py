"""lm-eval's wrappers of loaded models, or of a vLLM engine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.evaluation.models import LoadedModels, ModelSpec


def hf_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's wrapper of a loaded transformers or PEFT model; the active adapter answers."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


class VLLMModels:
    """One vLLM engine with the base; each request names its LoRA adapter."""

    def __init__(self, path: str, *, dtype: str, seed: int, folders: list[str], template: str | None) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError("backend: vllm is not installed; install it in a separate environment: pip install vllm")
        from lm_eval.models.vllm_causallms import VLLM

        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(folders)} if folders else {}
        self.lm = VLLM(pretrained=path, dtype=dtype, seed=seed, batch_size="auto", **lora)
        self.lm.hf_chat_template = template
        self._numbers = {folder: number for number, folder in enumerate(folders, start=1)}

    @contextlib.contextmanager
    def active(self, folder: str | None) -> Iterator[None]:
        """Answer with the adapter in ``folder`` from now on, or with the bare base."""
        from vllm.lora.request import LoRARequest

        self.lm.lora_request = None if folder is None else LoRARequest(folder, self._numbers[folder], folder)
        try:
            yield
        finally:
            self.lm.lora_request = None


class Answering:
    """lm-eval's wrappers of the models, one per loaded model and tokenizer, or one vLLM engine."""

    def __init__(self, models: LoadedModels, batch_size: int, backend: str, dtype: str, seed: int) -> None:
        self._models, self._batch_size, self._backend = models, batch_size, backend
        self._dtype, self._seed = dtype, seed
        self._wrapped: dict[tuple[int, int], Any] = {}
        self._vllm: VLLMModels | None = None

    def lm(self, one: ModelSpec) -> Any:
        """The wrapper that answers for ``one``."""
        tokenizer = self._models.tokenizers[one.label]
        if self._backend == "vllm":
            return self._engine().lm
        model = self._models.models[one.label]
        key = id(model), id(tokenizer)
        if key not in self._wrapped:
            self._wrapped[key] = hf_model(model, tokenizer, self._batch_size)
        return self._wrapped[key]

    def active(self, one: ModelSpec) -> contextlib.AbstractContextManager[Any]:
        """Answer with ``one`` from now on."""
        return self._models.active(one) if self._backend == "hf" else self._engine().active(one.folder)

    def _engine(self) -> VLLMModels:
        if self._vllm is None:
            tokenizers = {id(one): one for one in self._models.tokenizers.values()}
            if len(tokenizers) > 1:
                raise UserError(
                    "backend: vllm uses one tokenizer and chat template for all models, and these differ: give "
                    "--chat_template_path, or evaluate them by separate commands"
                )
            self._vllm = VLLMModels(
                self._models.path,
                dtype=self._dtype,
                seed=self._seed,
                folders=[str(one.folder) for one in self._models.adapters],
                template=next(iter(tokenizers.values())).chat_template,
            )
        return self._vllm


def _rank(folders: list[str]) -> int:
    """The smallest LoRA rank of vLLM that fits all adapters."""
    ranks = []
    for folder in folders:
        settings = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        ranks += [settings.get("r", 8), *settings.get("rank_pattern", {}).values()]
    return next((rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= max(ranks)), max(ranks))
