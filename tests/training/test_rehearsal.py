"""What only the start of training would refuse is one line, before a run folder is made or an old run is touched."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from helpers.harness import rows, settings
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from uncertune.cli import main
from uncertune.errors import UserError
from uncertune.training import pipeline
from uncertune.training.config import UncertuneConfig
from uncertune.training.rehearsal import check_options, rehearse
from uncertune.training.trainer import UncertuneTrainer

PACKAGES = {  # options that need a package: the module, and the field that is named
    "bitsandbytes": ({"optim": "adamw_8bit"}, "optim='adamw_8bit': You need to install `bitsandbytes`"),
    "galore_torch": (
        {"optim": "galore_adamw_layerwise", "optim_target_modules": ["q_proj"]},
        "optim='galore_adamw_layerwise': You need to install `galore_torch`",
    ),
    "lomo_optim": ({"optim": "lomo"}, "optim='lomo': You need to install `lomo_optim`"),
    "torchao": ({"optim": "adamw_torch_8bit"}, "optim='adamw_torch_8bit': You need to have `torchao"),
    "liger_kernel": ({"use_liger_kernel": True}, "pip install liger-kernel"),
    "flash_attn": ({"attn_implementation": "flash_attention_2"}, "pip install flash-attn"),
    "flash_attn_interface": ({"attn_implementation": "flash_attention_3"}, "FlashAttention3"),
    "comet_ml": ({"report_to": "comet_ml"}, "report_to=['comet_ml']: CometCallback requires comet-ml"),
    "swanlab": ({"report_to": "swanlab"}, "report_to=['swanlab']: SwanLabCallback requires swanlab"),
    "wandb": ({"report_to": ["wandb"]}, "report_to: 'wandb' needs the package wandb"),
}
VALUES = [
    ({"optim": "sgd", "optim_args": "momentum"}, "optim='sgd' with optim_args='momentum': "),
    ({"optim": "adafactor", "optim_args": "decay=1"}, "optim_args='decay=1' has no effect with optim='adafactor'"),
    ({"optim_target_modules": ["q_proj"]}, "optim_target_modules='q_proj' has no effect with optim='adamw_torch"),
    ({"lr_scheduler_kwargs": {"nonsense": 1}}, "lr_scheduler_kwargs={'nonsense': 1}: "),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr' with "),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "lr_end (1.0) must be smaller"),
    (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"x": 1}},
        "checkpointing_kwargs={'x': 1}: ",
    ),
    ({"include_num_input_tokens_seen": "each"}, "tokens_seen must be one of all, non_padding, no, true"),
    ({"bnb_4bit_quant_storage": "int4"}, "bnb_4bit_quant_storage must be one of uint8, "),
    ({"pad_to_multiple_of": "all"}, "pad_to_multiple_of='all': invalid literal for int()"),
    ({"torch_compile_backend": "nothing"}, "torch_compile_backend='nothing' with "),
    ({"torch_compile_mode": "fast"}, "torch_compile_mode='fast': Unrecognized mode=fast"),
    (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"x": 1}}},
        "accelerator_config.gradient_accumulation_kwargs={'x': 1}: ",
    ),
    ({"pad_to_multiple_of": 0}, "the first batch of the training data: integer modulo by zero"),
    ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "the first batch of the training data: No columns"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, rows, and a finished run of one step on them."""
    folder = tmp_path_factory.mktemp("rehearsal")
    save_tiny(folder / "model", marked=True)
    data = [{"prompt": "ab" * n, "completion": "cdef" * n} for n in range(2, 10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    assert main(words(folder, folder / "old")) == 0
    return folder


def words(folder, out, **more):
    fields = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "rows.jsonl",
        "output_dir": out,
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }
    given = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    listed = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return ["train", *(str(word) for name, values in listed.items() for word in (f"--{name}", *values))]


def content(folder: Path):
    """Every file of a folder: its bytes, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refused(place, capsys, fields, said):
    """Exit 2 and one line: no new folder is made, in one stage or two, and an old run stays as it is."""
    before = content(place / "old")
    two = {"objective": "masked_mle_distill", "teacher": "auto", "teacher_cache": "hidden"}
    for more in ({}, two):
        capsys.readouterr()
        assert main(words(place, place / "parent" / "new", **fields, **more)) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert said in error[-1]
        assert not any("Traceback" in line for line in error)
        assert not (place / "parent").exists()
    assert main([*words(place, place / "old", **fields), "--overwrite"]) == 2
    assert said in capsys.readouterr().err
    assert content(place / "old") == before


@pytest.mark.parametrize("package", PACKAGES)
def test_an_option_without_its_package_is_refused_before_a_folder_is_made(place, capsys, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    refused(place, capsys, *PACKAGES[package])


@pytest.mark.parametrize(("fields", "said"), VALUES, ids=[said[:40] for _, said in VALUES])
def test_a_value_that_training_refuses_is_refused_before_a_folder_is_made(place, capsys, fields, said):
    refused(place, capsys, fields, said)


def test_options_are_refused_before_the_old_run_is_moved(place, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "replacing", lambda *_: pytest.fail("the old run was moved"))
    for fields in ({"optim": "sgd", "optim_args": "momentum"}, {"lr_scheduler_kwargs": {"nonsense": 1}}):
        assert main([*words(place, place / "old", **fields), "--overwrite"]) == 2


def test_check_refuses_the_first_batch_too(place, capsys):
    given = words(place, place / "new", pad_to_multiple_of=0)
    assert main(["check", *given[1:]]) == 2
    assert "the first batch of the training data" in capsys.readouterr().err


def test_a_folder_that_was_there_stays(place, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(words(place, tmp_path / "mine", pad_to_multiple_of=0)) == 2
    assert (tmp_path / "mine").is_dir()


def test_the_rehearsal_changes_no_number(place, tmp_path, monkeypatch):
    fields = {"lora_dropout": 0.3, "max_steps": 3, "objective": "masked_mle", "shuffle_dataset": True}
    assert main(words(place, tmp_path / "with", **fields)) == 0
    monkeypatch.setattr(pipeline, "rehearse", lambda trainer: None)
    monkeypatch.setattr(pipeline, "check_options", lambda args: None)
    assert main(words(place, tmp_path / "without", **fields)) == 0
    for name in ("adapter_model.safetensors", "selection.parquet", "checkpoint-3/optimizer.pt"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name


def trainer(folder, collator=None, **fields):
    return UncertuneTrainer(
        tiny_model("llama", 259),
        settings(folder, per_device_train_batch_size=4, max_steps=1, **fields),
        data_collator=collator,
        train_dataset=rows(),
        processing_class=tiny_tokenizer(marked=True),
    )


def test_a_collator_of_the_users_own_that_refuses_is_named(tmp_path):
    def collator(examples):
        raise KeyError("image")

    with pytest.raises(UserError, match="the first batch of the training data: 'image'"):
        rehearse(trainer(tmp_path, collator))


def test_the_trainer_is_left_as_it_was(tmp_path):
    built = trainer(tmp_path, optim="sgd", objective="mle")
    rehearse(built)
    assert (built.optimizer, built.lr_scheduler, built._created_lr_scheduler) == (None, None, False)


def test_an_optimizer_that_refuses_a_device_at_its_first_step_is_named(tmp_path, monkeypatch):
    def step(self, closure=None):
        raise NotImplementedError("no such kernel on this device")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(UserError, match="optim='sgd': no such kernel on this device"):
        check_options(UncertuneConfig(output_dir=str(tmp_path), optim="sgd", use_cpu=True, report_to="none"))
