"""The light description of the fields of ``uncertune train`` agrees with the dataclasses and registries."""

import dataclasses
import enum
import json
import typing

import pytest

from uncertune.cli import main
from uncertune.data.sources import FORMATS
from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES, TOKEN_WEIGHTINGS
from uncertune.selection import LEVELS, METRICS, ORDERS, SCOPES
from uncertune.settings import convert
from uncertune.training import arguments, fields
from uncertune.training.arguments import GROUPS, arguments_of
from uncertune.training.trl_fields import UNKNOWN

REAL = {one.name: one for group in GROUPS for one in dataclasses.fields(group) if one.init}
HINTS = {name: hint for group in GROUPS for name, hint in typing.get_type_hints(group).items()}


def test_the_names_are_those_of_the_registries():
    assert tuple(OBJECTIVES) == fields.OBJECTIVES
    assert tuple(METRICS) == fields.METRICS
    assert LEVELS == fields.LEVELS
    assert SCOPES == fields.SCOPES
    assert ORDERS == fields.ORDERS
    assert tuple(TOKEN_WEIGHTINGS) == fields.TOKEN_WEIGHTINGS
    assert set(FORMATS) == set(fields.FORMATS)


def test_every_field_is_described_and_no_other():
    assert set(fields.specs()) == set(REAL)


@pytest.mark.parametrize("name", sorted(REAL))
def test_type_default_and_choices(name):
    spec, hint = fields.specs()[name], HINTS[name]
    members = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) in (list, dict):
        members = (typing.get_origin(hint),)
    origins = {typing.get_origin(one) or one for one in members}
    for kind in (bool, int, float, list, dict):
        described = kind.__name__ in spec.types
        assert described == (kind in origins) or name == "parallelism_config", kind
    if spec.default is not UNKNOWN and REAL[name].default is not dataclasses.MISSING:
        assert REAL[name].default == spec.default
    enums = [one for one in origins if isinstance(one, type) and issubclass(one, enum.Enum) and one is not list]
    if enums:
        assert set(spec.choices) == {one.value for one in enums[0]}
    elif REAL[name].metadata.get("choices"):
        assert set(spec.choices) == set(REAL[name].metadata["choices"])


@pytest.mark.parametrize(
    ("value", "read"),
    [("all", "all"), ("non_padding", "non_padding"), ("no", "no"), (False, "no"), (True, True), ("true", True)],
)
def test_a_field_of_words_and_truth(value, read):
    assert convert(fields.specs()["include_num_input_tokens_seen"], value) is read


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("learning_rate", -1, "learning_rate must be at least 0, got -1"),
        ("learning_rate", float("nan"), "learning_rate must be a finite number, got nan"),
        ("adam_beta1", 2, "adam_beta1 must be in [0, 1), got 2"),
        ("dataloader_num_workers", -1, "dataloader_num_workers must be at least 0"),
        ("neftune_noise_alpha", -1, "neftune_noise_alpha must be at least 0"),
        ("warmup_steps", float("nan"), "warmup_steps must be a finite number"),
        ("model_init_kwargs", [1], "model_init_kwargs must be a mapping or text, got [1]"),
        ("lora_target_modules", True, "lora_target_modules must be names with commas between them"),
        ("max_steps", 1e23, "max_steps must be in [-1, 1000000000]"),
        ("max_steps", "1e23", "max_steps must be in [-1, 1000000000]"),
        ("lora_dropout", -0.5, "lora_dropout must be in [0, 1)"),
        ("lora_alpha", 0, "lora_alpha must be at least 1"),
        ("max_grad_norm", float("nan"), "max_grad_norm must be a finite number"),
        ("overwrite", -7, "overwrite must be true or false, got -7"),
        ("seed", 10**5000, "seed must be a whole number of at most 64 bits, got an integer of about 5001 digits"),
        ("dataset_name", 5, "dataset_name must be text, got 5: put it in quotes"),
        ("output_dir", "a\0b", "output_dir holds a NUL character"),
        ("output_dir", "a\ud800", "output_dir holds an invalid character (U+D800"),
        ("objective", None, "objective must be text, got null"),
        ("lr_scheduler_type", "wavy", "lr_scheduler_type must be one of linear"),
        ("bf16", "maybe", "bf16 must be true or false, got 'maybe'"),
        ("selection_fracton", 0.5, "did you mean 'selection_fraction'?"),
        ("env", [1], "env must be a mapping"),
    ],
    ids=range(23),
)
def test_a_value_outside_type_or_range_is_refused_by_name(field, value, said):
    with pytest.raises(UserError) as error:
        fields.checked({field: value})
    assert said in str(error.value)


def test_what_yaml_writes_otherwise_is_read():
    given = {"learning_rate": "1e-4", "eval_strategy": False, "report_to": "none", "teacher": "none", "max_steps": 3.0}
    out = fields.checked(given)
    assert out == {"learning_rate": 1e-4, "eval_strategy": "no", "report_to": "none", "teacher": None, "max_steps": 3}
    assert isinstance(out["max_steps"], int)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_liger_kernel": True}, "pip install liger-kernel"),
        ({"attn_implementation": "flash_attention_2"}, "pip install flash-attn"),
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"accelerator_config": "missing.json"}, "accelerator_config"),
    ],
)
def test_a_missing_package_or_file_is_named(monkeypatch, tmp_path, more, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        arguments_of({"output_dir": str(tmp_path), "use_cpu": True, **more})


def test_a_flag_that_makes_a_field_of_the_file_moot_says_so(tmp_path, capsys):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "objective": "masked_mle_distill", "teacher": "auto"}
    settings |= {"selection_metric": "entropy", "teacher_cache": "hidden"}
    given = arguments_of(settings, {"objective": "mle"})
    assert (given.training.objective, given.training.teacher) == ("mle", None)
    said = capsys.readouterr().err
    assert "teacher: 'auto' has no effect with --objective mle: left out" in said
    assert "selection_metric: 'entropy' has no effect" in said
    with pytest.raises(UserError, match="has no effect"):
        arguments_of({**settings, "objective": "mle"})


def test_a_setting_without_effect_is_refused_where_no_flag_decides(tmp_path, capsys):
    """A flag that says nothing of it, such as --output_dir, does not excuse a contradiction within the file."""
    path = tmp_path / "run.yaml"
    fields = {"model_name_or_path": "x", "dataset_name": "gsm8k", "objective": "distill", "teacher": "a"}
    path.write_text(json.dumps({**fields, "token_weighting": "dft"}))
    assert main(["train", "--config", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "token_weighting='dft' has no effect with objective='distill'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fast", "given", "bf16"),
    [
        ("float32", {}, False),
        ("float32", {"bf16": True}, True),
        ("float32", {"dtype": "bfloat16"}, True),
        ("bfloat16", {}, True),
    ],
)
def test_a_processor_without_bfloat16_trains_in_float32_unless_told(tmp_path, monkeypatch, capsys, fast, given, bf16):
    monkeypatch.setattr(arguments, "fast_dtype", lambda: fast)
    arguments._say.cache_clear()
    found = arguments.arguments_of({"output_dir": str(tmp_path), "dataset_name": "alpaca", "use_cpu": True, **given})
    assert found.training.bf16 is bf16
    assert ("bf16: false, as bfloat16 takes" in capsys.readouterr().err) is not bf16
