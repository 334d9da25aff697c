"""A run folder: its contents, the identity of its run, and its lock."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from uncertune.errors import UserError
from uncertune.runs.checkpoints import checkpoints, latest_complete
from uncertune.runs.records import read_json

RUN = "run.json"
STAGE_1 = "stage1"
RHO = "rho_reference"
TEACHER_CACHE = "teacher_cache"
COMPARISONS = "comparisons.json"
"""Relative paths of the pages of ``uncertune compare`` that the run is in."""
_LOCK = ".lock"
_BEFORE = (STAGE_1, RHO, TEACHER_CACHE)
"""Files in the folder before the run has begun."""
_OURS = (
    *("run.json", "config.yaml", "environment.json", "metrics.jsonl", "probe.jsonl", "report.html", "tokens.html"),
    *("selection.parquet", "selection", COMPARISONS, *_BEFORE, "adapter_config.json", "training_args.bin"),
)
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")

# Fields for paths, output and saving, which do not change what a run learns; teacher and rho_reference count by their
# content instead of their path.
SILENT = frozenset(
    (
        "allow_pickle",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataset_num_proc",
        "ddp_timeout",
        "debug",
        "disable_tqdm",
        "do_eval",
        "do_predict",
        "do_train",
        "local_rank",
        "output_dir",
        "per_device_eval_batch_size",
        "probe_samples",
        "probe_steps",
        "prediction_loss_only",
        "project",
        "push_to_hub",
        "report_to",
        "selection_memory_gb",
        "resume_from_checkpoint",
        "rho_reference",
        "run_name",
        "save_selection",
        "teacher",
        "teacher_cache_dir",
        "teacher_cache_fill",
    )
)
DECIDES_BEST = frozenset(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps"))
"""Silent fields that decide, with ``load_best_model_at_end``, which checkpoint is the result."""
SILENT_PREFIXES = ("logging_", "log_", "save_", "eval_", "hub_", "trackio_", "batch_eval")


def member_folder(number: int) -> str:
    """The subfolder of a run in which member ``number`` of its teacher, counted from 0, is trained."""
    return f"{STAGE_1}-{number + 1}" if number else STAGE_1


def left_by_a_run(folder: Path) -> list[Path]:
    """The files of a run and its references in a folder, and nothing else; in a folder without a run, its caches."""
    found = [path for path in (folder / STAGE_1, *folder.glob(f"{STAGE_1}-*"), folder / RHO) if read(path)]
    if any((folder / TEACHER_CACHE).glob("*/manifest.json")):
        found.append(folder / TEACHER_CACHE)
    if read(folder):
        found += [folder / name for name in (*_OURS, *_WEIGHTS) if (folder / name).exists()]
        found += [*folder.glob("model-*-of-*.safetensors"), *checkpoints(folder)]
    return list(dict.fromkeys(found))


def is_complete(folder: str | Path) -> bool:
    """Whether a folder holds a finished run."""
    return bool(read(Path(folder)).get("complete"))


def check_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise UserError if the folder has a run with other settings, data or model.

    A run with neither a result nor a checkpoint does not count.
    """
    if not (is_complete(folder) or latest_complete(folder)):
        return
    there = read(folder).get("identity", {})
    names = [name for name in identity if name in there and there[name] != identity[name]]
    names += [name for name in identity if name not in there and identity[name] is not None]
    if not names:
        return
    shown = ", ".join(f"{name} ({there.get(name)!r} there, {identity[name]!r} here)" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"output_dir {str(folder)!r} holds another run, which differs in {shown}{more}: choose another output_dir, or "
        "--overwrite to start again"
    )


def check_usable(folder: Path, sources: Iterable[Any] = ()) -> None:
    """Make the folder. Refuse what ``check_free`` and ``check_writable`` refuse."""
    check_free(folder, sources)
    check_writable(folder)


def check_free(folder: Path, sources: Iterable[Any] = ()) -> None:
    """Refuse a path that is not a folder, has no folder that can be written above it, or holds another command's files.

    ``sources`` are paths that the run reads; one of them inside the folder is refused, since a run may delete there.
    Writes nothing.
    """
    check_path(folder)
    for source in sources:
        if (
            isinstance(source, str)
            and Path(source).exists()
            and Path(source).resolve().is_relative_to(folder.resolve())
        ):
            raise UserError(
                f"output_dir {str(folder)!r} holds {source!r}, which the run reads: choose another output_dir"
            )
    found = [name for name in (*_OURS, *_WEIGHTS) if (folder / name).exists()]
    found += [path.name for path in checkpoints(folder)]
    foreign = [name for name in found if name not in _BEFORE]
    if foreign and not read(folder):
        raise UserError(
            f"output_dir {str(folder)!r} holds another run ({foreign[0]}) that this command did not start: choose "
            "another output_dir"
        )
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise UserError(f"output_dir {str(folder)!r} cannot be made: {str(there)!r} is not a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"output_dir {str(folder)!r} cannot be written: choose another folder")


def check_path(folder: Path) -> None:
    """Raise UserError for a path that is not a folder and cannot become a folder."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output_dir {str(folder)!r} is a file: choose a folder")
    except OSError as error:  # a name that is too long, a parent that cannot be read
        raise UserError(f"output_dir {str(folder)[:200]!r} cannot be used: {error.strerror}") from error


def check_writable(folder: Path) -> None:
    """Make the folder. Raises UserError if that, or writing a file in it, fails."""
    check_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"output_dir {str(folder)[:200]!r} cannot be made: {_reason(error)}") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # access rights do not show that a file system is read-only or virtual
        raise UserError(
            f"output_dir {str(folder)!r} cannot be written: {_reason(error)}: choose another folder"
        ) from error


@contextlib.contextmanager
def output_folder(folder: Path, check: Callable[[Path], None] = check_usable) -> Iterator[None]:
    """Make the folder, checked by ``check``, for what the block writes there.

    Where the block fails, folders that it made are removed, unless they hold more than locks.
    """
    check_path(folder)
    new = [one for one in (folder.absolute(), *folder.absolute().parents) if not one.exists()]
    try:
        check(folder)
        yield
    except BaseException:
        within = sorted(new[0].rglob("*"), reverse=True) if new else []
        if all(one.is_dir() or one.name.endswith(_LOCK) for one in within):
            with contextlib.suppress(OSError):
                for one in within:
                    one.rmdir() if one.is_dir() else one.unlink()
                for one in new:
                    one.rmdir()
        raise


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder until the block ends or the process dies. Raises UserError if another process has locked it."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"output_dir {str(folder)!r} is in use by another process: wait for it, or choose another output_dir"
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def read(folder: Path) -> dict[str, Any]:
    """The content of ``run.json``; empty if the folder has none. Raises UserError for a damaged file."""
    path = folder / RUN
    if not path.exists():
        return {}
    run = read_json(path)
    if not isinstance(run.get("identity", {}), dict):
        raise UserError(f"{str(path)!r} is damaged: identity is not an object")
    return run
