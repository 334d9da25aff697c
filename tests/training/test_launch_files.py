"""The accelerate files that come with the package are read by accelerate, and become the plugins they name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

import uncertune
from helpers.tiny import tiny_model
from uncertune.errors import UserError
from uncertune.training import devices

FOLDER = Path(uncertune.__file__).parent / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


MODEL = tiny_model("llama")


def accelerator(plugin=None, processes=2):
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(
        state=state, parallelism_config=None, num_processes=processes, even_batches=True, mixed_precision="no"
    )


def plugin_of(config, **changes):
    fields = {name.removeprefix("fsdp_"): value for name, value in {**config.fsdp_config, **changes}.items()}
    fields["cpu_offload"] = fields.pop("offload_params")
    return FullyShardedDataParallelPlugin(fsdp_version=fields.pop("version"), **fields)


def test_the_files_are_those_of_the_guide():
    assert [path.stem for path in FILES] == ["ddp", "fsdp2", "zero2", "zero3"]
    guide = Path(uncertune.__file__).parents[2] / "docs" / "scale.md"
    if guide.is_file():
        assert all(f"{path.stem}.yaml" in guide.read_text(encoding="utf-8") for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_a_file(path):
    config = load_config_from_file(str(path))  # raises for a key that it does not know
    assert config.mixed_precision == "bf16"
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")


def test_the_fsdp_file_makes_a_plugin_that_the_trainer_takes():
    plugin = plugin_of(load_config_from_file(str(FOLDER / "fsdp2.yaml")))
    assert plugin.fsdp_version == 2
    devices.check(accelerator(plugin), MODEL, average_tokens=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_zero_file_becomes_a_deepspeed_configuration(stage):
    from accelerate.utils import DeepSpeedPlugin

    fields = load_config_from_file(str(FOLDER / f"zero{stage}.yaml")).deepspeed_config
    plugin = DeepSpeedPlugin(
        zero_stage=fields["zero_stage"],
        offload_optimizer_device=fields["offload_optimizer_device"],
        offload_param_device=fields["offload_param_device"],
        zero3_init_flag=False,  # True needs DeepSpeed itself
        zero3_save_16bit_model=fields["zero3_save_16bit_model"],
    )
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    assert plugin.hf_ds_config.is_zero3() == (stage == 3)
    assert zero["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)


def test_what_is_not_supported_is_one_line():
    config = load_config_from_file(str(FOLDER / "fsdp2.yaml"))
    sharded = plugin_of(config, fsdp_state_dict_type="SHARDED_STATE_DICT")
    with pytest.raises(UserError, match="fsdp_state_dict_type"):
        devices.check(accelerator(sharded), MODEL, average_tokens=True)
    old = SimpleNamespace(fsdp_version=1, state_dict_type="FULL_STATE_DICT")
    with pytest.raises(UserError, match="set fsdp_version: 2"):
        devices.check(accelerator(old), MODEL, average_tokens=True)
    with pytest.raises(UserError, match="average_tokens_across_devices"):
        devices.check(accelerator(), MODEL, average_tokens=False)
