"""The tables in ``results`` are those of the runs beside them, and each folder names the command that made it."""

import csv
import json
import re
import shutil
from dataclasses import astuple
from pathlib import Path

import pytest

from uncertune.statistics.intervals import Estimate
from uncertune.sweep.curves import at_best, equal_gain
from uncertune.sweep.measures import difference, mean, read_sweep
from uncertune.sweep.page import write_sweep

RESULTS = Path(__file__).parent.parent / "results"
PAGE = RESULTS.parent / "docs" / "results" / "fine_tuning.md"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/sweep.json"))
COMMANDS = dict(
    re.findall(r"^\| `([\w-]+)` \| `uncertune sweep --config (\S+)", (RESULTS / "README.md").read_text(), re.M)
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_table_is_that_of_the_runs(folder, tmp_path):
    assert f"\n| `{folder.name}` | `" in (RESULTS / "README.md").read_text()
    shutil.copy(folder / "sweep.json", tmp_path)
    write_sweep(tmp_path)
    assert (tmp_path / "sweep.md").read_text() == (folder / "sweep.md").read_text()


@pytest.mark.parametrize("recipe", COMMANDS.values())
def test_a_command_names_a_recipe(recipe):
    assert (RESULTS.parent / recipe).is_file()


def loss(found):
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def accuracy(found):
    """In points."""
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def rows(folder, shown):
    """A row a data set: each arm's measure less that of MLE with the same seed."""
    sweep = read_sweep(folder)
    for name in sweep.sets:
        cells = [shown(difference(sweep, arm, name, shown.__name__)).replace("-", "−") for arm in sweep.others]
        yield f"| {sweep.content['data']} | {name} | " + " | ".join(cells) + " |"


@pytest.mark.parametrize(
    ("page", "name", "shown"),
    [
        ("results/README.md", "gsm8k", loss),
        ("results/README.md", "gsm8k", accuracy),
        ("results/README.md", "alpaca", loss),
        ("results/README.md", "alpaca", accuracy),
        ("results/README.md", "gsm8k-gemma", loss),
        ("docs/results/fine_tuning.md", "gsm8k", loss),
    ],
)
def test_the_pages_quote_the_runs(page, name, shown):
    text = (RESULTS.parent / page).read_text()
    for row in rows(RESULTS / name, shown):
        assert row in text


def share(found):
    return f"{100 * found.value:+.1f} % [{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("-", "−")


def gains(folder):
    """Each arm's gains over MLE, in and out of distribution."""
    sweep = read_sweep(folder)
    return {
        arm: [share(mean(found)) for found in (sweep.gains(arm, sweep.inside), sweep.mean_gains(arm))]
        for arm in sweep.others
    }


def over_epochs(folder):
    """A row an arm: gains over MLE in and out of distribution at the end, in distribution at the best epoch, and out of
    distribution where both have first gained equally much in it."""
    sweep = read_sweep(folder)
    best = at_best(sweep)
    for arm in sweep.others:
        equal = {seed: apart for seed, (_, apart) in equal_gain(sweep, arm).items()}
        found = [sweep.gains(arm, sweep.inside), sweep.mean_gains(arm), best.gains(arm, sweep.inside), equal]
        yield f"| `{arm}` | " + " | ".join(share(mean(one)) if len(one) > 1 else "–" for one in found) + " |"


@pytest.mark.parametrize("name", ["gpu-epochs-gsm8k", "gpu-epochs-alpaca"])
def test_the_page_quotes_the_epochs(name):
    text = PAGE.read_text()
    for row in over_epochs(RESULTS / name):
        assert row in text


def student(folder):
    """A row a data set: mean losses untrained, of MLE at its best epoch and at the end, and of MLE with an anchor."""
    sweep = read_sweep(folder)
    best = at_best(sweep)
    for name in sweep.sets:
        arms = [
            one.values(arm, name, "loss") for one, arm in ((best, "mle"), (sweep, "mle"), (sweep, "mle-anchor_base"))
        ]
        cells = [sweep.base(name, "loss"), *(sum(one.values()) / len(one) for one in arms)]
        yield f"| {sweep.content['data']} | {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


STUDENTS = ["gpu-student-gsm8k", "gpu-student-alpaca", "gpu-student-mixed"]


def student_gains(folder):
    """The rows of ``over_epochs`` with what was trained on."""
    return [f"| {read_sweep(folder).content['data']} {row}" for row in over_epochs(folder)]


@pytest.mark.parametrize("name", STUDENTS)
def test_the_page_quotes_the_student(name):
    text = PAGE.read_text()
    for row in [*student(RESULTS / name), *student_gains(RESULTS / name)]:
        assert row in text


TRAINED = {"mixed": "alpaca + own", "mle": "MLE", "base": "untrained", "alpaca-mle": "MLE, alpaca"}
TRAINED |= {"mle-anchor_base": "MLE + anchor", "masked_mle_distill-loss-0.25": "masked MLE + distillation"}


def table(folder, name):
    return list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))


def answered(folder):
    """A row a difference: the share of right answers, compared with what, in points, over problems and over seeds."""
    for one in table(folder, "differences"):
        names = [TRAINED.get(one[column], one[column]) for column in ("trained_on", "arm", "less")]
        points, low, high, *seeds = (
            f"{float(one[name]):+.1f}" for name in ("points", "low", "high", "low_of_seeds", "high_of_seeds")
        )
        cells = [*names[:2], f"{one['right']} %", names[2], f"{points} [{low}, {high}]", f"[{', '.join(seeds)}]"]
        yield "| " + " | ".join(cells).replace("-", "−") + " |"


def test_the_page_quotes_the_answers_on_a_gpu():
    page = PAGE.read_text()
    folder = RESULTS / "gpu" / "student-answers" / "gsm8k"
    for row in answered(folder):
        assert row in page
    (base,) = (row for row in table(folder, "scores") if row["contestant"] == "base")
    assert quoted(base, "exact_match") in " ".join(page.split())
    lengths = {row["contestant"]: f"{float(row['characters']):.0f}" for row in table(folder, "scores")}
    assert f"median answer has {lengths['base']} characters" in page
    short = sorted((lengths[f"alpaca-mle-s{seed}"] for seed in range(3)), key=int)
    assert f"with {short[0]} to {short[-1]} (by seed)" in page
    assert f"({lengths['alpaca-mle-anchor_base-s1']} and {lengths['alpaca-mle-anchor_base-s0']})" in page
    terse = sorted((length for name, length in lengths.items() if name.startswith("gsm8k")), key=int)
    assert f"median {terse[0]} to {terse[-1]} characters" in page
    following = RESULTS / "gpu" / "student-following" / "ifeval"
    (base,) = (row for row in table(following, "scores") if row["contestant"] == "base")
    right = [float(row["right"]) for row in table(following, "differences")]
    assert f"{100 * float(base['strict']):.1f} % of 200 prompts" in page
    assert f"{min(right)} to {max(right)} % after" in page


def test_the_page_quotes_what_own_answers_cost():
    page = " ".join(PAGE.read_text().split())
    (own,) = table(RESULTS / "gpu-student-mixed", "own")
    right = round(int(own["answers"]) * float(own["exact_match"]))
    assert f"of the {own['answers']} answers that they were drawn from, {right} are right" in page
    (best, end), (best_mixed, end_mixed) = (
        next(row.split(" | ")[3:5] for row in student(RESULTS / name) if "held out" in row)
        for name in ("gpu-student-alpaca", "gpu-student-mixed")
    )
    said = f"{best_mixed} at the best epoch against {best} without them, and {end_mixed} at the end against {end}"
    assert said in page


def test_readme_and_guide_quote_what_the_student_forgets():
    pages = (RESULTS.parent / name for name in ("README.md", "docs/how-to/choose.md", "docs/paper.md"))
    readme, guide, paper = (" ".join(page.read_text().split()) for page in pages)
    folder = RESULTS / "gpu" / "student-answers" / "gsm8k"
    (base,) = (row for row in table(folder, "scores") if row["contestant"] == "base")
    rows = table(folder, "differences")
    right = {(row["trained_on"], row["arm"]): f"{row['right']} %" for row in rows}
    kept = [right["alpaca", "mle"], right["alpaca", "mle-anchor_base"], right["mixed", "mle"]]
    for share_of_right in [f"{100 * float(base['exact_match']):.1f} %", *kept]:
        assert share_of_right in readme
        assert share_of_right in guide
    for arm in ("mle", "masked_mle_distill-loss-0.25"):
        assert right["gsm8k", arm] in guide
    for row in answered(folder):
        if "masked MLE + distillation" in row:
            assert row.split(" | ")[-2] in paper, "the difference and its interval over the problems"
    (losses,) = (row.split(" | ")[2:] for row in student(RESULTS / "gpu-student-alpaca") if "gsm8k@test" in row)
    untrained, _, mle, anchor = (cell.strip(" |") for cell in losses)
    assert f"raises its loss on GSM8K from {untrained} to {mle}, with the anchor it falls to {anchor}" in readme
    for name in ("gpu-student-alpaca", "gpu-student-mixed"):
        (gained,) = (row for row in over_epochs(RESULTS / name) if "anchor" in row)
        inside, outside = (cell.split(" %")[0].lstrip("+") for cell in gained.split(" | ")[1:3])
        assert f"{inside} % in distribution and {outside} % out of it" in guide


def quoted(row, of):
    low, value, high = (100 * float(row[name]) for name in ("low", of, "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def test_the_pages_quote_the_answers_of_the_student():
    page = PAGE.read_text()
    found = json.loads((RESULTS / "student-answers" / "comparison.json").read_text())["measures"]
    flexible = {one["model"]: one for one in found if one["measure"] == "exact_match,flexible-extract"}
    for one in flexible.values():
        cells = [share(Estimate(**one["value"])).replace("+", "")]
        if one["model"] != "mle":
            cells.append(accuracy(Estimate(**one["against_baseline"]["difference"])).replace("-", "−"))
        assert " | ".join(cells) in page


CONTESTANTS = {"anchor": "MLE + anchor", "mixed": "MLE, own answers mixed in", "s5": "masked MLE + distillation"}


def judged():
    """A row a contestant: prompts that the judge decides for it, against MLE, plainly and at equal length."""
    for folder in ("student-judged", "student-judged-s5"):
        content = json.loads((RESULTS / folder / "comparison.json").read_text())
        for name, found in content["head_to_head"].items():
            if name == "s5" and folder == "student-judged":
                continue  # fewer prompts than in the folder of its own
            one = found["decided"]
            shares = [share(Estimate(**one[which])).replace("+", "") for which in ("share", "adjusted")]
            count = f"{one['won']} of {one['won'] + one['lost']}"
            yield f"| {CONTESTANTS[name]} | {count} | " + " | ".join(shares) + " |"


def test_the_page_quotes_the_judged_answers_of_the_student():
    page = PAGE.read_text()
    assert len(list(judged())) == 3
    for row in judged():
        assert row in page
    found = json.loads((RESULTS / "student-judged-s5" / "comparison.json").read_text())["head_to_head"]["s5"]["decided"]
    lost = f"{found['lost']} of {found['won'] + found['lost']}"
    assert f"loses** {lost} prompts" in page
    assert lost in (RESULTS.parent / "docs" / "how-to" / "choose.md").read_text()
    paper = (RESULTS.parent / "docs" / "paper.md").read_text()
    for which in ("share", "adjusted"):
        assert share(Estimate(**found[which])).replace("+", "") in paper


def test_the_page_quotes_what_stopping_saves():
    page = " ".join(PAGE.read_text().split())
    folder = RESULTS / "student-stopped"
    right = {row["contestant"]: f"{100 * float(row['exact_match']):.1f} %" for row in table(folder, "scores")}
    assert right["base"] == right["mixed-mle-s0"]
    assert f"solves {right['stopped-mle-s0']} of the first 128 problems" in page
    assert f"untrained, which solves {right['base']} of them" in page
    less = {
        one["less"]: sorted(abs(float(one[name])) for name in ("low", "points", "high"))
        for one in table(folder, "differences")
        if one["trained_on"] == "stopped"
    }
    for other, said in (("alpaca-mle", "points [{}] more than after four"), ("base", "[{}] fewer than untrained")):
        low, points, high = less[other]
        assert f"{points} {said}".format(f"+{low}, +{high}") in page


def test_the_page_quotes_one_pass_of_the_student():
    text = PAGE.read_text()
    for cells in gains(RESULTS / "gpu-student-pass").values():
        assert "| " + " | ".join(cells) + " |" in text


@pytest.mark.parametrize("q", ["0.1", "0.25", "0.5", "0.75"])
def test_the_page_quotes_every_q(q):
    found = gains(RESULTS / "gsm8k-q")
    cells = [*found[f"masked_mle-loss-{q}"], *found[f"masked_mle_distill-loss-{q}"]]
    assert f"| {q} | " + " | ".join(cells) + " |" in (RESULTS / "README.md").read_text()


def test_the_page_quotes_every_selection():
    text = (RESULTS / "README.md").read_text()
    for arm, cells in gains(RESULTS / "gsm8k-selection").items():
        assert f"| `{arm}` | " + " | ".join(cells) + " |" in text


def answers(folder):
    """A row a model: right answers of GSM8K, as strictly and as flexibly read, and the judged win rate over MLE."""
    found = json.loads((folder / "comparison.json").read_text())
    right = {(one["measure"], one["model"]): one["value"] for one in found["measures"]}
    for model in found["models"]:
        cells = [share(Estimate(**right[f"exact_match,{how}", model])) for how in ("strict-match", "flexible-extract")]
        rate = found["head_to_head"].get(model)
        yield model, [cell.replace("+", "") for cell in [*cells, share(Estimate(**rate["adjusted"])) if rate else "–"]]


@pytest.mark.parametrize("data", ["gsm8k", "alpaca"])
def test_the_page_quotes_the_answers(data):
    text = (RESULTS / "README.md").read_text()
    for model, cells in answers(RESULTS / f"{data}-answers"):
        assert f"| {data} | {model} | " + " | ".join(cells) + " |" in text


@pytest.mark.parametrize(
    ("what", "name", "measure", "digits"),
    [
        ("problems solved, points", "word_problems@test", "exact_match", 1),
        ("loss on solutions", "word_problems@test", "loss", 3),
        ("KL from the untrained model", "prompts", "kl", 4),
        ("loss on prose", "prose", "loss", 4),
    ],
)
def test_the_page_quotes_the_demos(what, name, measure, digits):
    sweep = read_sweep(RESULTS / "word_problems")
    times = 100 if measure == "exact_match" else 1
    cells = [f"{times * mean(sweep.values('mle', name, measure)).value:.{digits}f}"]
    for arm in sweep.others:
        ends = [f"{times * end:+.{digits}f}" for end in astuple(difference(sweep, arm, name, measure))]
        cells.append("{} [{}, {}]".format(*ends).replace("-", "−"))
    assert f"| {what} | " + " | ".join(cells) + " |" in (RESULTS / "README.md").read_text()


def test_the_page_quotes_what_the_judge_is_worth():
    found = json.loads((RESULTS / "judge" / "comparison.json").read_text())["head_to_head"]["gpt4"]
    said = share(Estimate(**found["adjusted"])).replace("+", "")
    assert said in (RESULTS / "README.md").read_text()


def test_the_page_quotes_what_a_small_judge_is_worth():
    found = json.loads((RESULTS / "judge-1.5b" / "comparison.json").read_text())["head_to_head"]["gpt4"]
    text = (RESULTS.parent / "docs" / "how-to" / "judge.md").read_text()
    decided = found["decided"]
    quoted = [found["order_averaged"], decided["share"], decided["adjusted"]]
    for one in (share(Estimate(**estimate)).replace("+", "") for estimate in quoted):
        assert one in text
    assert f"{decided['won']} of {found['pairs']}" in text


def test_the_page_quotes_the_demo():
    assert (RESULTS / "demo" / "table.md").read_text().strip() in PAGE.read_text()


def test_the_readme_quotes_the_sweep():
    """In whole percent of MLE's loss on GSM8K."""
    sweep = read_sweep(RESULTS / "gsm8k")
    lost = [
        -100 * mean(sweep.gains(f"{arm}-loss-0.25", sweep.inside)).value for arm in ("masked_mle", "masked_mle_distill")
    ]
    said = "cost {:.0f} % of the loss on GSM8K, with distillation {:.0f} %".format(*lost)
    assert said in " ".join((RESULTS.parent / "README.md").read_text().split())
