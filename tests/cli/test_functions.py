"""The functions behind the commands have the commands' defaults."""

import inspect

import pytest

from uncertune.cli.main import command_of
from uncertune.cli.sweep import SweepOptions
from uncertune.comparison.compare import compare
from uncertune.evaluation.evaluate import measure
from uncertune.evaluation.generate import generate
from uncertune.scoring.settings import Settings
from uncertune.settings import specs_of
from uncertune.sweep.sweep import sweep

FUNCTIONS = {"score": Settings, "evaluate": measure, "generate": generate, "compare": compare}


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_its_commands_defaults(name):
    options = {spec.name: spec.default for spec in command_of(name).specs.values()}
    ours = defaults(FUNCTIONS[name])
    assert len(ours) > 10
    assert {one: value or None for one, value in ours.items() if one != "judge"} == {
        one: options[one] or None for one in ours if one != "judge"
    }


def test_the_function_of_a_sweep_has_its_commands_defaults():
    options = {spec.name: spec.default for spec in specs_of(SweepOptions).values() if not spec.required}
    assert {one: value for one, value in defaults(sweep).items() if one != "overrides"} == options
