"""A CPU that counts as a device: where the host would wait for it, and which line of code asks.

with Pretended() as device:
    device.hold(*model.parameters())
    trainer.train()
device.waits  # [(kind, "training/step.py:201 add_stats"), …]

A tensor lives on the device if it was given to ``hold``, moved there with ``to(device)``, or computed from one that
does; ``cpu()`` leaves it. The host waits for a value (``float``, ``tolist``, ``cpu`` …), for a shape that depends on
values (``nonzero``, a boolean index …), and for a copy that is not ``non_blocking``.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WATCHED = ("/src/uncertune/", "/transformers/trainer.py")
_SHAPES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "equal")
_VALUES = ("_local_scalar_dense", "is_nonzero", "item")


def _tensors(*values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


class Pretended:
    """Both modes and what they saw."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, str]] = []
        self._there: dict[int, StorageWeakRef] = {}  # while it is referenced, no other storage gets its address
        self._modes = _Functions(self), _Operations(self)

    def __enter__(self) -> Pretended:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def hold(self, *tensors: Tensor) -> None:
        self._there |= {ref.cdata: ref for ref in (StorageWeakRef(one.untyped_storage()) for one in tensors)}

    def holds(self, *values: Any) -> bool:
        return any(one.untyped_storage()._cdata in self._there for one in _tensors(*values))

    def release(self, tensor: Tensor) -> None:
        self._there.pop(tensor.untyped_storage()._cdata)

    def wait(self, kind: str) -> None:
        """Note a wait that the package's own code, or the loop of ``transformers.Trainer``, asked for."""
        for frame in reversed(traceback.extract_stack(limit=40)):
            if "/torch/" in frame.filename or frame.filename == __file__:
                continue
            if any(one in frame.filename for one in WATCHED):
                self.waits.append((kind, f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}"))
            return


class _Functions(TorchFunctionMode):
    """Copies between host and device, which operations on one device do not show."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("cpu", "tolist", "numpy", "__array__") and self.device.holds(args[0]):
            self.device.wait(name)
            with torch._C.DisableTorchFunction():
                copy = args[0].clone()
                self.device.release(copy)
                return func(copy, *args[1:], **kwargs)
        if name == "to" and _to_a_device(args, kwargs) and not self.device.holds(args[0]):
            if not kwargs.get("non_blocking", False):
                self.device.wait("to(device)")
            moved = func(*args, **kwargs)
            moved = moved.clone() if moved is args[0] else moved
            self.device.hold(moved)
            return moved
        if name in ("tensor", "as_tensor") and kwargs.get("device") is not None and not _tensors(args):
            self.device.wait(f"{name}(…, device=…)")
            out = func(*args, **kwargs)
            self.device.hold(out)
            return out
        return func(*args, **kwargs)


def _to_a_device(args: Any, kwargs: Any) -> bool:
    return any(isinstance(one, torch.device) for one in (*args[1:2], kwargs.get("device")))


class _Operations(TorchDispatchMode):
    """Operations on the device whose results, or whose results' shapes, the host needs."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = self.device.holds(args, kwargs)
        if there and self._waits(func.overloadpacket.__name__, func._overloadname, args):
            self.device.wait(func.overloadpacket.__name__)
        out = func(*args, **(kwargs or {}))
        if there:
            self.device.hold(*_tensors(out))
        return out

    def _waits(self, name: str, overload: str, args: Any) -> bool:
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = any(one.dtype in (torch.bool, torch.uint8) for one in _tensors(args[1]))
            return masks and not (name != "index" and args[2].numel() == 1)  # the latter is a fill by the mask
        if name == "repeat_interleave":
            return overload == "Tensor"
        return name in _SHAPES or name in _VALUES
