"""``uncertune init`` and ``uncertune recipes``: files to start from, valid as they are."""

from pathlib import Path

import pytest

from uncertune.cli import main, train
from uncertune.cli.init import SITUATIONS
from uncertune.cli.recipes import names
from uncertune.training.arguments import arguments_of


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_file_of_init_configures_a_run(tmp_path, capsys, monkeypatch, situation):
    monkeypatch.chdir(tmp_path)
    Path('a "b".jsonl').touch()
    file = tmp_path / "run.yaml"
    words = ["init", "--for", situation, "--model", "some/model", "--data", 'a "b".jsonl', "--file", str(file)]
    assert main(words) == 0
    assert f"uncertune train --config {file}" in capsys.readouterr().out
    given = arguments_of(*train.parse(["--config", str(file), "--output_dir", str(tmp_path / "out"), "--use_cpu"]))
    assert (given.model.model_name_or_path, given.data.dataset_name) == ("some/model", 'a "b".jsonl')
    training = given.training
    chosen = (training.objective, training.teacher, training.anchor, training.token_weighting)
    assert (
        chosen
        == {
            "paper": ("masked_mle_distill", "auto", "none", "none"),
            "anchor": ("mle", None, "base", "none"),
            "dft": ("mle", None, "none", "dft"),
            "sft": ("mle", None, "none", "none"),
        }[situation]
    )
    assert main(words) == 2
    assert "exists: name another, or add --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_recipes_are_listed_and_are_configurations_by_name(capsys, tmp_path, monkeypatch):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == names()
    monkeypatch.chdir(tmp_path)
    one = next(name for name in listed if name.endswith("masked-mle-distill"))
    settings, _ = train.parse(["--config", one])
    assert settings["objective"] == "masked_mle_distill"
    assert main(["recipes", one]) == 0
    assert "masked_mle_distill" in capsys.readouterr().out
    assert main(["recipes", f"{one}x"]) == 2
    assert f"did you mean {one!r}?" in capsys.readouterr().err


def test_init_needs_a_situation_by_its_flag(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ([], "for is missing: give it, for example --for paper"),
        (["paper"], "'paper' belongs to no field: every value follows its --field"),
        (["--for", "papr"], "for must be one of paper, anchor, dft, sft"),
    ):
        assert main(["init", *words]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
