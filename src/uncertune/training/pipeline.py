"""Stage 1 and stage 2: a run in its folder, resumed where it stopped, with its teacher trained first.

A run folder has ``config.yaml`` (resolved), ``environment.json``, ``run.json`` (the identity of the run, and whether it
is complete), ``metrics.jsonl``, ``probe.jsonl``, ``selection.parquet``, the adapter or model, and the run folders of
``rho_reference: auto`` and ``teacher: auto``: ``rho_reference/`` and ``stage1/``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from uncertune.errors import UserError
from uncertune.models import fingerprint, resolve_model
from uncertune.runs.checkpoints import latest_intact, remove_unusable, step_of
from uncertune.runs.files import plain, write_atomically
from uncertune.runs.folder import (
    DECIDES_BEST,
    RHO,
    RUN,
    SILENT,
    SILENT_PREFIXES,
    TEACHER_CACHE,
    check_free,
    check_same,
    check_usable,
    is_complete,
    lock_folder,
    member_folder,
    output_folder,
)
from uncertune.runs.notes import note
from uncertune.runs.replacing import release, replacing
from uncertune.runs.secrets import without_secrets
from uncertune.training import dataset, devices
from uncertune.training.config import (
    CACHE_FIELDS,
    OBJECTIVE_FIELDS,
    SELECTION_FIELDS,
    TEACHER_FIELDS,
    UncertuneConfig,
)
from uncertune.training.dataset import fingerprint_data
from uncertune.training.family import FAMILY_FIELDS
from uncertune.training.holdout import SHARE, held_out
from uncertune.training.interruptions import Stop, explained
from uncertune.training.rehearsal import check_options, rehearse
from uncertune.training.run_folder import RunFolder, untouched, write_settings
from uncertune.training.trackers import own_run
from uncertune.training.trainer import UncertuneTrainer


@dataclass(frozen=True)
class Job:
    """One training run: arguments of ``UncertuneTrainer``, and the fields for its records."""

    model: Any
    config: UncertuneConfig
    train_dataset: Any
    eval_dataset: Any = None
    peft_config: Any = None
    quantization_config: Any = None
    processing_class: Any = None
    callbacks: tuple[Any, ...] = ()
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """The command's fields, for ``config.yaml``; by default those of the configuration."""

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


def run(job: Job, *, overwrite: bool = False) -> Path:
    """Train, or resume the same run, and return its folder.

    With ``rho_reference="auto"`` a reference is first trained on a tenth of the data, in ``rho_reference/``; everything
    else uses the rest. With ``teacher="auto"`` the teacher is then trained in ``stage1/``. Both are reused if their
    folders have the same runs. A folder with another run raises UserError with the difference; ``overwrite`` replaces
    it: the old run is deleted once the new one has written its first checkpoint, and restored if the new one fails
    before. SIGINT and SIGTERM finish and save the current step, and raise InterruptedRun. A full disk and a non-finite
    loss raise UserError and keep the last good checkpoint.
    """
    stop = Stop()
    job = _prepared(job)
    with _locked(job, overwrite), stop.listening():
        return _train(_after_references(job, stop), stop)


def fill_caches(job: Job, *, overwrite: bool = False) -> Path:
    """Train the references of ``run`` that are ``auto``, fill the caches, and return the caches' folder."""
    job = _prepared(job)
    with _locked(job, overwrite):
        stop = Stop()
        with stop.listening():
            job = _after_references(job, stop)
        trainer = build_trainer(job)
        trainer.fill_teacher_cache()
        trainer.accelerator.wait_for_everyone()
        if trainer.accelerator.is_main_process:
            release(job.folder)
    return Path(job.config.teacher_cache_dir or job.folder / TEACHER_CACHE)


def train_references(job: Job) -> Job:
    """The job with its ``auto`` references trained, in the folders where ``run`` trains them, and named by these.

    The job's own folder may have a run already, which is not looked at.
    """
    stop = Stop()
    job = _prepared(job)
    main = job.config.process_index == 0
    with lock_folder(job.folder) if main else contextlib.nullcontext(), stop.listening():
        return _after_references(job, stop)


def _prepared(job: Job) -> Job:
    """The job with readable rows, and ``assistant_only_loss`` decided: every stage trains on the same tokens."""
    rows = dataset.readable(job.train_dataset, dataset.TRAIN, job.config)
    config = dataset.resolve_assistant_only_loss(job.config, rows)
    decided = {"assistant_only_loss": config.assistant_only_loss}
    return replace(job, train_dataset=rows, config=config, resolved={**job.resolved, **decided} if job.resolved else {})


@contextlib.contextmanager
def _locked(job: Job, overwrite: bool) -> Iterator[None]:
    """Refuse jobs that cannot run, lock the folder, and replace its run on ``overwrite``."""
    _check(job)
    main, check = job.config.process_index == 0, partial(check_usable, sources=_sources(job))
    with contextlib.ExitStack() as stack:
        if main:
            stack.enter_context(output_folder(job.folder, check))
            stack.enter_context(lock_folder(job.folder))
        else:
            check(job.folder)
        with job.config.main_process_first():  # a trainer opens its caches when it is built
            if main:
                stack.enter_context(replacing(job.folder, overwrite))
        yield


def _after_references(job: Job, stop: Stop) -> Job:
    """The job with its references trained and named by their folders."""
    check_same(job.folder, _settings(job, job.config.teacher))
    config = copy.copy(job.config)
    if config.rho_reference == "auto":
        rest, holdout = held_out(job.train_dataset, config.seed)
        note(f"rho_reference: auto holds out {len(holdout)} of {len(rest) + len(holdout)} rows")
        job = replace(job, train_dataset=rest)
        config.rho_reference = str(_stage(replace(_mle(job, RHO), train_dataset=holdout), "reference of rho", stop))
    if config.teacher == "auto":
        folders = []
        for number in range(config.teacher_members):
            name = f"stage 1, member {number + 1} of {config.teacher_members}" if number else "stage 1"
            folders.append(str(_stage(_member(job, number), name, stop)))
        config.teacher = folders[0] if len(folders) == 1 else folders
        note(f"stage 2: {config.objective} in {job.folder}")
    return replace(job, config=config)


def _stage(job: Job, name: str, stop: Stop) -> Path:
    note(f"{name}: MLE in {job.folder}")
    check_usable(job.folder)
    folder = _train(job, stop)
    stop.check_between(f"{name}, which is complete")
    return folder


def _check(job: Job) -> None:
    """Refuse options that are incompatible with resuming, and unusable ones."""
    if job.config.save_only_model:
        raise UserError("save_only_model=True leaves nothing to resume from: set it to false, or save_strategy to 'no'")
    if str(job.config.resume_from_checkpoint).lower() not in ("none", "false", "true"):
        raise UserError(
            f"resume_from_checkpoint={job.config.resume_from_checkpoint!r}: a run resumes automatically from the last "
            "checkpoint in its output_dir; remove the field, or --overwrite to start again"
        )
    check_options(job.config)


def check_job(job: Job, *, overwrite: bool = False) -> Job:
    """Refuse what ``run`` refuses before it builds a trainer; the job as it runs. Writes nothing."""
    job = _prepared(job)
    _check(job)
    check_free(job.folder, _sources(job))
    if not overwrite:
        check_same(job.folder, _settings(job, job.config.teacher))
    return job


def _sources(job: Job) -> list[Any]:
    """Paths that the run reads, which must not be inside the folder that it writes."""
    config = job.config
    teachers = config.teacher if isinstance(config.teacher, list) else [config.teacher]
    references = [one for one in (*teachers, config.rho_reference, config.anchor) if one not in ("none", "base")]
    return [job.model, *references, config.chat_template_path, job.resolved.get("dataset_name")]


def _member(job: Job, number: int) -> Job:
    """The MLE run of one member of the teacher; all but the first have other seeds of data order and adapter."""
    stage = _mle(job, member_folder(number))
    config = stage.config
    config.seed += number
    config.data_seed = None if config.data_seed is None else config.data_seed + number
    seeds = {"seed": config.seed, "data_seed": config.data_seed}
    return replace(stage, resolved={**stage.resolved, **seeds} if stage.resolved else {})


def _mle(job: Job, name: str) -> Job:
    """``job`` as MLE in its subfolder ``name``; with ``max_steps``, rho's reference runs the same number of epochs."""
    config = copy.copy(job.config)
    defaults = {one.name: one.default for one in dataclasses.fields(UncertuneConfig)}
    reset = (*SELECTION_FIELDS, *TEACHER_FIELDS, *OBJECTIVE_FIELDS, *CACHE_FIELDS, *FAMILY_FIELDS)
    for field_name in reset:
        setattr(config, field_name, defaults[field_name])
    config.objective, config.output_dir = "mle", str(job.folder / name)
    config.push_to_hub = False  # only the result of stage 2 is published
    config.run_name = f"{config.run_name}-{name}" if config.run_name else None
    if name != RHO and job.config.teacher_checkpoint == "best":
        config.load_best_model_at_end, config.metric_for_best_model = True, "eval_loss"
        config.greater_is_better, config.save_strategy = False, config.eval_strategy
        config.save_steps = config.eval_steps or config.save_steps
    if name == RHO and config.max_steps > 0:
        config.max_steps = math.ceil(config.max_steps * SHARE / (1 - SHARE))
    names = ("objective", "output_dir", "max_steps", "run_name", *reset)
    resolved = {**job.resolved, **{name: getattr(config, name) for name in names}} if job.resolved else {}
    return replace(job, model=untouched(job.model), config=config, resolved=resolved)


def _train(job: Job, stop: Stop) -> Path:
    """Run one stage: build its trainer, which finds most mistakes, before its folder is changed."""
    settings = _settings(job, job.config.teacher)
    trainer = build_trainer(job)
    trainer.remove_callback(RunFolder)  # the settings of the command are written instead
    trainer.add_callback(stop)
    trainer.add_callback(_Release(job.folder))
    named = {name: job.resolved[name] for name in ("model_name_or_path", "dataset_name") if job.resolved.get(name)}
    trainer.card_settings |= named
    identity = {
        **settings,
        "data": fingerprint_data(trainer.train_dataset),
        "model": devices.as_main_process(partial(fingerprint, trainer.accelerator.unwrap_model(trainer.model))),
    }
    if job.config.load_best_model_at_end:
        identity["evaluation_data"] = _evaluation_data(trainer.eval_dataset)
    check_same(job.folder, identity)
    if is_complete(job.folder):
        note(f"{job.folder} has this run already, complete; --overwrite trains it again")
        return job.folder
    rehearse(trainer)
    with explained(job.folder):
        if trainer.accelerator.is_main_process:
            _begin(job, identity, job.resolved or trainer.args.to_dict())
        trainer.accelerator.wait_for_everyone()
        with own_run():
            _to_the_end(job, trainer, stop)
        if trainer.accelerator.is_main_process:
            write_atomically(job.folder / RUN, json.dumps({"complete": True, "identity": identity}, indent=1))
            release(job.folder)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()
    return job.folder


class _Release(TrainerCallback):
    """Deletes the replaced run once this one has written its first checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            release(self._folder)


def _to_the_end(job: Job, trainer: UncertuneTrainer, stop: Stop) -> None:
    """Train from the last complete checkpoint, and save the result."""
    checkpoint = latest_intact(job.folder, quiet=True)
    if checkpoint is not None:
        note(f"resuming at step {step_of(checkpoint)} from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step == 0:
        raise UserError("train data: no optimizer step was made; the data gave no batch with response tokens")
    stop.check(trainer)
    trainer.save_model(str(job.folder))
    trainer.create_model_card()  # replaces PEFT's


def build_trainer(job: Job, kind: type[UncertuneTrainer] = UncertuneTrainer) -> UncertuneTrainer:
    """The trainer of a job, which finds most mistakes when it is built."""
    return kind(
        job.model,
        copy.deepcopy(job.config),
        train_dataset=job.train_dataset,
        eval_dataset=job.eval_dataset,
        peft_config=copy.deepcopy(job.peft_config),
        quantization_config=job.quantization_config,
        processing_class=job.processing_class,
        callbacks=list(job.callbacks),
    )


def _begin(job: Job, identity: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Remove incomplete checkpoints of a crash, and write the identity of the run."""
    folder = job.folder
    folder.mkdir(parents=True, exist_ok=True)
    remove_unusable(folder, latest_intact(folder))
    write_atomically(folder / RUN, json.dumps({"complete": False, "identity": identity}, indent=1))
    own = {name: getattr(job.config, name) for name in ("teacher", "rho_reference", "save_report")}
    write_settings(folder, {**resolved, **own})


# ---- the identity of a run


def _settings(job: Job, teacher: list[str] | str | None) -> dict[str, Any]:
    """The fields that determine what is learned, flat, as JSON values."""
    settings = {
        name: value
        for name, value in job.config.to_dict().items()
        if (name not in SILENT and not name.startswith(SILENT_PREFIXES))
        or (job.config.load_best_model_at_end and name in DECIDES_BEST)
    }
    settings["model_name_or_path"] = job.model if isinstance(job.model, str) else type(job.model).__name__
    if job.peft_config is not None:
        for name, value in job.peft_config.to_dict().items():
            if name not in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
                settings[f"lora.{name}"] = sorted(value) if isinstance(value, set) else value
    members = [_reference(one, job) for one in (teacher if isinstance(teacher, list) else [teacher])]
    settings["teacher"] = members[0] if len(set(members)) == 1 else members  # members trained here are "auto" together
    settings["anchor"] = _reference(job.config.anchor, job)
    settings["rho_reference"] = _reference(job.config.rho_reference, job)
    return json.loads(json.dumps(plain(without_secrets(settings)), sort_keys=True))


def _evaluation_data(rows: Any) -> Any:
    """Fingerprints of the evaluation data, on which the best checkpoint depends."""
    if isinstance(rows, Mapping):
        return {str(name): fingerprint_data(one) for name, one in rows.items()}
    return None if rows is None else fingerprint_data(rows)


def _reference(name: str | None, job: Job) -> Any:
    """The identity of a reference model: the content of a folder, so that moving it has no effect."""
    if name is None or name in ("auto", "teacher", "none", "base"):
        return name
    stages = [RHO, *(member_folder(number) for number in range(job.config.teacher_members))]
    if Path(name).resolve() in [(job.folder / stage).resolve() for stage in stages]:
        return "auto"
    path = Path(resolve_model(name))
    if not path.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode())
        with open(file, "rb") as handle:
            for offset in (0, max(0, file.stat().st_size - 2**20)):
                handle.seek(offset)
                digest.update(handle.read(2**20))
    return digest.hexdigest()[:16]
