"""Checks that otherwise fail only when training starts, made before anything is written: optimizer, schedule, trackers
and first batch.

``check_options`` needs the configuration alone, ``rehearse`` the trainer. Both restore the random state and the
trainer.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate.utils import GradientAccumulationPlugin
from datasets import Dataset
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from uncertune.errors import UserError
from uncertune.training.config import UncertuneConfig

_WIDTH = 64
"""Side of the test weight: from 64 × 64 values on, bitsandbytes' optimizers use 8 bits."""
_STEPS = 100
"""Steps of the test schedule if the run's number of steps depends on its epochs."""


def check_options(args: UncertuneConfig) -> None:
    """Try optimizer, schedule and trackers without model and data. Raises UserError that names the field.

    ``rehearse``, which has the model, checks the modules of ``optim_target_modules``.
    """
    with _refused(f"report_to={args.report_to!r}"):
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("use_liger_kernel needs the package liger-kernel; run: pip install liger-kernel")
    steps_of = args.accelerator_config.gradient_accumulation_kwargs
    with _refused(f"accelerator_config.gradient_accumulation_kwargs={steps_of!r}"):
        GradientAccumulationPlugin(**{"num_steps": 1, **(steps_of or {})})
    if args.torch_compile:
        backend, mode = args.torch_compile_backend, args.torch_compile_mode
        with _refused(f"torch_compile_backend={backend!r} with torch_compile_mode={mode!r}"):
            torch.compile(nn.Identity(), backend=backend or "inductor", mode=mode)
    # transformers 5.17 has only the older names
    if getattr(args, "activation_checkpointing", args.gradient_checkpointing):
        with _refused(f"activation_checkpointing_kwargs={_checkpointing_kwargs(args)!r}"):
            checkpoint(nn.Identity(), torch.ones(1, requires_grad=True), **_checkpointing(args))
    _check_effects(args)
    with _refused(_optimizer(args)):
        optimizer = _stand_in(args)
    with _refused(_schedule(args)):
        steps = args.max_steps if args.max_steps > 0 else _STEPS
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )


def _check_effects(args: UncertuneConfig) -> None:
    """Raise UserError for options that transformers does not read with this optimizer."""
    name = str(getattr(args.optim, "value", args.optim))
    if args.optim_args and ((name.startswith("adamw_torch") and "bit" not in name) or name == "adafactor"):
        raise UserError(f"optim_args={args.optim_args!r} has no effect with optim={name!r}: remove it")
    if args.optim_target_modules and not name.startswith(("galore", "apollo")):
        raise UserError(
            f"optim_target_modules={args.optim_target_modules!r} has no effect with optim={name!r}: remove it"
        )


def rehearse(trainer: Any) -> None:
    """Build optimizer and schedule of the real model, and a batch of the first rows. Raises UserError."""
    args = trainer.args
    with _random_state_kept():
        with _refused("the first batch of the training data"):
            _first_batch(trainer)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or _hooks_into_the_model(args):
            return
        given = trainer.optimizer, trainer.lr_scheduler, trainer._created_lr_scheduler
        try:
            with _refused(_optimizer(args)):
                trainer.create_optimizer()
            with _refused(_schedule(args)):
                trainer.create_scheduler(num_training_steps=args.max_steps if args.max_steps > 0 else _STEPS)
        finally:
            trainer.optimizer, trainer.lr_scheduler, trainer._created_lr_scheduler = given


def _first_batch(trainer: Any) -> Any:
    rows, collate = trainer.train_dataset, trainer.data_collator
    if isinstance(rows, Dataset):
        rows = trainer._remove_unused_columns(rows, "training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, "training")
    return collate(list(islice(iter(rows), trainer._train_batch_size)))


def _stand_in(args: UncertuneConfig) -> Any:
    """The optimizer of one linear layer, as ``Trainer`` builds it, after a step, since some refuse a device there."""
    layer = nn.utils.skip_init(nn.Linear, _WIDTH, _WIDTH, device=args.device)
    args = copy.copy(args)
    args.optim_target_modules = args.optim_target_modules and "all-linear"
    trainer: Any = SimpleNamespace(
        model=nn.Sequential(layer),
        args=args,
        optimizer=None,
        optimizer_cls_and_kwargs=None,
        get_decay_parameter_names=partial(Trainer.get_decay_parameter_names, None),
        get_optimizer_cls_and_kwargs=Trainer.get_optimizer_cls_and_kwargs,
    )
    optimizer: Any = Trainer.create_optimizer(trainer)
    for parameter in layer.parameters():
        parameter.data.zero_()
        parameter.grad = torch.zeros_like(parameter)
    if hasattr(optimizer, "train"):  # schedule-free optimizers
        optimizer.train()
    if not _hooks_into_the_model(args):
        optimizer.step()
    return optimizer


def _hooks_into_the_model(args: UncertuneConfig) -> bool:
    """Whether building the optimizer changes the model, so that it can be built only once."""
    return any(part in str(args.optim).lower() for part in ("lomo", "layerwise"))


def _checkpointing_kwargs(args: UncertuneConfig) -> dict[str, Any]:
    return getattr(args, "activation_checkpointing_kwargs", args.gradient_checkpointing_kwargs) or {}


def _checkpointing(args: UncertuneConfig) -> dict[str, Any]:
    known = ("every_n_layers", "offload")
    options = {name: value for name, value in _checkpointing_kwargs(args).items() if name not in known}
    return {"use_reentrant": False, **options}


def _optimizer(args: UncertuneConfig) -> str:
    name = f"optim={getattr(args.optim, 'value', args.optim)!r}"
    return name + (f" with optim_args={args.optim_args!r}" if args.optim_args else "")


def _schedule(args: UncertuneConfig) -> str:
    name = f"lr_scheduler_type={getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)!r}"
    return f"{name} with lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}"


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Errors of other libraries inside the block, as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    there = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(there[0])
        np.random.set_state(there[1])
