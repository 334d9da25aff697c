"""The comparison of a folder: its numbers, what it says of what is missing, and its refusals."""

import json
import re
import shutil

import pytest
from scipy import stats

from helpers.comparison_folders import MODELS, comparison_folder, write_lines
from helpers.report_pages import HOSTILE
from uncertune.cli import main
from uncertune.comparison.page import write_comparison
from uncertune.errors import UserError
from uncertune.training.page import write_run_page


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = comparison_folder(tmp_path_factory.mktemp("comparison"))
    return write_comparison(folder, in_distribution=["gsm8k", "head to head"])


@pytest.fixture
def folder(made, tmp_path):
    for name in ("evaluation", "answers", "judgements"):
        shutil.copytree(made.parent / name, tmp_path / name)
    shutil.copy(made.parent / "verdicts.json", tmp_path)
    return tmp_path


def numbers(folder):
    return json.loads((folder / "comparison.json").read_text())


def samples(folder, label, task):
    lines = (folder / "evaluation" / label / f"{task}.samples.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


def test_every_model_on_every_task(made):
    found = numbers(made.parent)
    assert found["models"] == list(MODELS)
    assert found["baseline"] == "mle"
    by_task = {}
    for one in found["measures"]:
        by_task.setdefault((one["task"], one["measure"]), []).append(one["model"])
    assert by_task == {
        ("gsm8k", "exact_match,strict-match"): list(MODELS),
        ("ifeval", "prompt_level_strict_acc"): list(MODELS),
        **{("tokens:wikitext2", name): list(MODELS) for name in ("loss", "accuracy", "ece")},
    }
    assert [one["measure"] for one in found["measures"] if one["main"] and one["model"] == "mle"] == [
        "exact_match,strict-match",
        "prompt_level_strict_acc",
        "loss",
    ]


def test_the_page_is_made_anew(made, capsys):
    """Also against whom and what is in distribution: neither is said again."""
    files = [made.parent / f"comparison.{ending}" for ending in ("html", "md", "json")]
    before = [file.read_bytes() for file in files]
    for file in files[:2]:
        file.unlink()
    assert main(["report", str(made.parent)]) == 0
    assert [file.read_bytes() for file in files] == before
    assert capsys.readouterr().out == f"page: {made}\n"


def test_the_paired_test_is_of_the_samples(made):
    metric = "exact_match,strict-match"
    mine, theirs = (
        [one["scores"][metric] for one in samples(made.parent, label, "gsm8k")] for label in ("masked_mle", "mle")
    )
    won = sum(a > b for a, b in zip(mine, theirs, strict=True))
    lost = sum(a < b for a, b in zip(mine, theirs, strict=True))
    (one,) = [one for one in numbers(made.parent)["measures"] if (one["task"], one["model"]) == ("gsm8k", "masked_mle")]
    against = one["against_baseline"]
    assert (against["won"], against["lost"], against["documents"]) == (won, lost, len(mine))
    assert against["p"] == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    assert against["adjusted_p"] >= against["p"]
    assert against["relative"]["value"] == pytest.approx(sum(mine) / sum(theirs) - 1)


def test_a_lower_loss_is_a_gain(made):
    found = numbers(made.parent)
    gain = {one["model"]: one["value"] for one in found["gains"] if one["task"] == "tokens:wikitext2"}
    raw = {one["model"]: one for one in found["measures"] if one["measure"] == "loss"}
    assert raw["masked_mle_distill"]["relative"] < 0 < gain["masked_mle_distill"]["value"]
    assert gain["masked_mle"]["value"] == pytest.approx(-raw["masked_mle"]["relative"])
    assert gain["masked_mle"]["low"] < gain["masked_mle"]["value"] < gain["masked_mle"]["high"] < 0


def test_a_win_rate_of_a_half_is_no_gain(made):
    gains = {one["model"]: one["value"]["value"] for one in numbers(made.parent)["gains"] if one["task"][:4] == "head"}
    assert gains == {"masked_mle": pytest.approx(-0.08), "masked_mle_distill": pytest.approx(0.22)}


def test_the_page_says_every_outcome_and_both_orders(made):
    html = made.read_text()
    for text in ("unparsable", "http 429", "no verdict (timeout)", "preferred, probability", "Cut off at 256 tokens."):
        assert text in html
    shown = re.findall(r"<li[^>]*>(Shown first|Shown second): ", html)
    assert shown.count("Shown first") == shown.count("Shown second") == 2 * 23
    assert html.count('<ol class="rows leaf"') >= 3


def test_strangers_text_is_text(made):
    html, markdown = made.read_text(), (made.parent / "comparison.md").read_text()
    for text in HOSTILE[:4]:
        assert text not in html
    assert html.count("<script") == html.count("</script>") == 1
    assert "<script" not in markdown
    assert not re.search("[\u202a-\u202e\x00\x1b]", markdown)
    for line in markdown.split("\n"):
        assert not line.startswith("<")


def test_twice_the_same_bytes(made):
    before = [(made.parent / name).read_bytes() for name in ("comparison.html", "comparison.md", "comparison.json")]
    write_comparison(made.parent, in_distribution=["gsm8k", "head to head"])
    assert before == [(made.parent / n).read_bytes() for n in ("comparison.html", "comparison.md", "comparison.json")]


@pytest.mark.parametrize("left", ["evaluation", "answers", "verdicts.json"])
def test_one_part_is_enough(folder, left):
    for path in list(folder.iterdir()):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = write_comparison(folder).read_text()
    assert "masked_" in html
    assert ("Gain on each task" in html) == (left != "answers")


def test_without_samples_there_is_no_test_and_the_page_says_so(folder):
    for path in folder.glob("evaluation/*/*.samples.jsonl"):
        path.unlink()
    html = write_comparison(folder).read_text()
    assert "none, since no samples are common" in html
    assert all(one["against_baseline"] is None for one in numbers(folder)["measures"])


def test_samples_of_other_documents_are_not_paired(folder):
    path = folder / "evaluation" / "masked_mle" / "gsm8k.samples.jsonl"
    lines = samples(folder, "masked_mle", "gsm8k")
    write_lines(path, [{**line, "doc_hash": "another"} for line in lines])
    write_comparison(folder)
    found = {(one["task"], one["model"]): one["against_baseline"] for one in numbers(folder)["measures"]}
    assert found["gsm8k", "masked_mle"] is None
    assert found["gsm8k", "masked_mle_distill"] is not None


def test_a_baseline_of_nothing_is_beaten_without_a_relative_gain(folder):
    place = folder / "evaluation" / "mle"
    lines = [{**line, "scores": dict.fromkeys(line["scores"], 0.0)} for line in samples(folder, "mle", "gsm8k")]
    write_lines(place / "gsm8k.samples.jsonl", lines)
    result = json.loads((place / "gsm8k.json").read_text())
    (place / "gsm8k.json").write_text(json.dumps(result | {"metrics": dict.fromkeys(result["metrics"], 0.0)}))
    html = write_comparison(folder, in_distribution=["gsm8k", "head to head"]).read_text()
    assert "The gain on gsm8k is undefined, since mle has 0." in html
    (gain,) = [one for one in numbers(folder)["gains"] if (one["task"], one["model"]) == ("gsm8k", "masked_mle")]
    assert gain["value"]["value"] is None
    assert gain["ahead"]["low"] > 0.4
    assert "4 of 4, 4 with an interval above 0" not in html
    assert html.count("3 of 4, 3 with an interval above 0") == 1  # masked_mle_distill, gsm8k among them


def test_what_has_no_better_way_has_no_relative_difference(folder):
    for label in MODELS:
        path = folder / "evaluation" / label / "tokens-wikitext2.json"
        result = json.loads(path.read_text())
        result["metrics"]["kl"] = 1e-9 if label == "mle" else 0.02
        path.write_text(json.dumps(result))
    write_comparison(folder)
    found = [one for one in numbers(folder)["measures"] if one["measure"] == "kl"]
    assert [one["value"]["value"] for one in found] == [1e-9, 0.02, 0.02]
    assert [one["relative"] for one in found] == [None] * 3
    assert not any(one["main"] for one in found)


def test_another_baseline(folder):
    write_comparison(folder, baseline="masked_mle")
    against = {one["model"]: one["against_baseline"] for one in numbers(folder)["measures"] if one["task"] == "ifeval"}
    assert against["masked_mle"] is None
    assert against["mle"]["difference"]["value"] > 0


def empty(folder):
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "verdicts.json").write_text('{"models": "x"}'), "verdicts.json' is damaged"),
        (lambda f: (f / "verdicts.json").write_text("[" * 100_000), "verdicts.json' is damaged"),
        (lambda f: (f / "evaluation" / "results.json").write_text('{"results": "x"}'), "results.json' is damaged"),
        (
            lambda f: write_lines(f / "answers" / "mle.jsonl", [{"id": "1", "messages": ["x"], "answer": "y"}]),
            "'messages' are not turns",
        ),
        (lambda f: (f / "verdicts.json").write_text("{"), "verdicts.json' is damaged"),
        (
            lambda f: write_lines(f / "answers" / "mle.jsonl", [{"id": "1"}]),
            "mle.jsonl' is damaged in line 1 .without 'messages'.",
        ),
        (
            lambda f: [shutil.rmtree(f / n) for n in ("evaluation", "answers")] + [(f / "verdicts.json").unlink()],
            "noth",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_and_nothing_is_written(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        write_comparison(folder)
    assert "\n" not in str(error.value)
    assert not list(folder.glob("comparison*"))


def test_names_that_are_not_there(folder):
    with pytest.raises(UserError, match="baseline: there is no model 'mel'; choose from mle,"):
        write_comparison(folder, baseline="mel")
    with pytest.raises(UserError, match="in_distribution: there is no task 'gsm'; choose from gsm8k, ifeval"):
        write_comparison(folder, in_distribution=["gsm"])


def run_folder(folder):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"complete": True}))
    (folder / "config.yaml").write_text("objective: masked_mle\nmodel_name_or_path: tiny\n")
    (folder / "environment.json").write_text(json.dumps({"packages": {}}))
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "step", "step": 1, "loss": 1.0}) + "\n")
    return folder


def name_source(folder, label, source):
    for path in (folder / "evaluation" / label).glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": str(source)}))


def test_the_page_of_a_compared_run_links_to_the_comparison(folder, tmp_path):
    run = run_folder(tmp_path / "runs" / "a run: <b>")
    checkpoint = run / "checkpoint-10"
    checkpoint.mkdir()
    name_source(folder, "masked_mle", run)
    name_source(folder, "mle", checkpoint)
    name_source(folder, "masked_mle_distill", "no path " * 1000 + "\0")
    for _ in range(2):
        page = write_comparison(folder)
    html = (run / "report.html").read_text()
    (link,) = re.findall(r'<a href="([^"#]*)">Comparison in ', html)
    assert link == "../../comparison.html"
    assert (run / link).resolve() == page.resolve()
    # a page that is gone is not linked to any more
    page.unlink()
    write_run_page(run)
    assert "comparison.html" not in (run / "report.html").read_text()


def test_what_is_no_finished_run_is_left_alone(folder, tmp_path):
    run = run_folder(tmp_path / "run")
    (run / "run.json").write_text("{}")
    name_source(folder, "masked_mle", run)
    before = sorted(path.name for path in run.iterdir())
    write_comparison(folder)
    assert sorted(path.name for path in run.iterdir()) == before
