"""The page of a sweep: gains of the right sign and pairs, the front, seeds that a doubt would need, what failed."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.report_pages import HOSTILE
from helpers.sweep_folders import ARMS, sweep_folder
from uncertune.errors import UserError
from uncertune.statistics.intervals import over_seeds
from uncertune.sweep.claims import claims
from uncertune.sweep.figures import figures
from uncertune.sweep.gains import clear
from uncertune.sweep.measures import families, mean, mean_over, read_sweep
from uncertune.sweep.page import write_sweep

FIGURES = ("figure-3", "figure-5", "figure-6a", "figure-6b", "q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = sweep_folder(tmp_path_factory.mktemp("sweep"))
    write_sweep(folder)
    return folder


def drawn(folder):
    return dict(figures(read_sweep(folder)))


def change(folder, new, edit):
    content = json.loads((folder / "sweep.json").read_text())
    edit(content)
    (new / "sweep.json").write_text(json.dumps(content))
    return new


def test_gains_are_of_pairs_with_the_same_seed(folder):
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    loss = {(run["arm"], run["seed"]): run["in"].get("loss") for run in runs}
    expected = over_seeds([1 - loss["distill", seed] / loss["mle", seed] for seed in range(5)])
    ((bars,),) = [panels for stem, panels in drawn(folder).items() if stem == "figure-5"]
    (found,) = [bar.value for bar in dict(bars.groups)["alpaca, held out"] if bar.name == "distill"]
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    # a common shift of both of a pair, ten times the noise, hardly widens the interval
    spread = np.std([loss["mle", seed] for seed in range(5)])
    assert found.high - found.low < spread


def test_the_failed_run_has_no_part_and_is_named(folder):
    assert read_sweep(folder).gains("masked_mle_distill-loss-0.5", "wikitext2").keys() == {0, 1, 2, 3}
    for name in ("sweep.md", "sweep.html"):
        text = (folder / name).read_text().replace("\\_", "_")
        assert "Failed runs" in text
        assert "masked_mle_distill-loss-0.5, seed 4" in text
        assert not any(hostile in text for hostile in HOSTILE[:3])


def test_measures_of_a_failed_run_do_not_count(folder, tmp_path):
    def measure(content):
        content["runs"][-1]["in"] = {"loss": 0.1}

    sweep = read_sweep(change(folder, tmp_path, measure))
    assert sweep.gains("masked_mle_distill-loss-0.5", sweep.inside).keys() == {0, 1, 2, 3}


def test_a_mean_over_data_sets_is_of_the_seeds_that_all_have(folder):
    assert mean_over([{0: 1.0, 1: 2.0}, {0: 3.0}]) == {0: 2.0}
    sweep = read_sweep(folder)
    one, other = (sweep.gains("distill", name) for name in ("wikitext2", "mmlu_dev"))
    assert sweep.mean_gains("distill") == {seed: pytest.approx((one[seed] + other[seed]) / 2) for seed in range(5)}


def test_seeds_are_asked_for_only_where_the_interval_holds_0_and_has_a_width():
    def asked(*gains):
        by_seed = dict(enumerate(gains))
        return clear(by_seed, mean(by_seed))

    assert asked(0.9, 1.0, 1.1) == asked(-0.9, -1.0, -1.1) == "none"
    assert asked(1.0, 1.0) is None
    assert asked(1.0) is None


def test_figure_3_sets_masked_mle_by_metric_and_level(folder):
    (bars,) = drawn(folder)["figure-3"]
    assert {metric: [bar.name for bar in group] for metric, group in bars.groups} == {
        "loss": [
            "masked_mle-loss-0.1",
            "masked_mle-loss-0.25",
            "masked_mle-loss-0.5",
            "masked_mle-loss-0.25-document",
        ],
        "entropy": ["masked_mle-entropy-0.25"],
    }
    token, document = (dict(bars.groups)["loss"][place].value.value for place in (1, 3))
    assert token > document > 0


def test_the_front_is_of_arms_that_none_beats_on_both_sides(folder):
    (points,) = drawn(folder)["figure-6a"]
    at = {point.name: (point.x.value, point.y.value) for point in points.points}
    assert at["mle"] == (0, 0)
    assert set(points.front) == {
        name for name, (x, y) in at.items() if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in at.values())
    }
    assert "mle" not in points.front
    assert at["masked_mle-loss-0.25"][0] > 0 > at["masked_mle-loss-0.25"][1]


def test_data_sets_won_are_counted(folder):
    (bars,) = drawn(folder)["figure-6b"]
    notes = {bar.name: (round(bar.value.value, 3), bar.note) for bar in bars.groups[0][1]}
    assert notes["masked_mle_distill-loss-0.25"] == (1.0, "3 of 3, 3 with an interval above 0")
    assert notes["masked_mle-loss-0.25"] == (0.333, "1 of 3, 1 with an interval above 0")


def test_q_is_drawn_for_arms_that_differ_in_it_alone(folder):
    assert [[arm["q"] for arm in family] for family in families(ARMS)] == [[0.1, 0.25, 0.5], [0.1, 0.25, 0.5]]
    inside, outside = drawn(folder)["q"]
    assert [series.name for series in inside.series] == ["masked_mle, loss, token", "masked_mle_distill, loss, token"]
    masked = outside.series[0]
    assert masked.x == (0.1, 0.25, 0.5)
    assert masked.y[0] < masked.y[1] < masked.y[2] < 0
    assert all(low < y < high for y, low, high in zip(masked.y, *masked.band, strict=True))


def test_a_doubtful_gain_says_how_many_seeds_more(tmp_path):
    differences = [0.004, -0.001, 0.003, -0.002, 0.004]

    def runs(content):
        content["arms"], content["base"] = ARMS[:2], {}
        content["runs"] = [
            {"arm": arm, "seed": seed, "status": "done", "error": None, "in": {"loss": loss}, "out": {}, "minutes": 1}
            for seed, gain in enumerate(differences)
            for arm, loss in (("mle", 1.0), ("distill", 1.0 - gain))
        ]

    folder = change(sweep_folder(tmp_path), tmp_path, runs)
    write_sweep(folder)
    (line,) = [line for line in (folder / "sweep.md").read_text().split("\n") if line.startswith("| distill | 5")]
    (more,) = re.findall(r"\| (\d+) \|$", line)
    center, spread = np.mean(differences), np.std(differences, ddof=1)
    assert 2.0 * spread / np.sqrt(5 + int(more)) == pytest.approx(center, rel=0.1)
    (bars,) = drawn(folder)["figure-6b"]
    assert bars.groups[0][1][0].note == "1 of 1, 0 with an interval above 0"


def test_figures_are_files_and_the_same_each_time(folder, tmp_path):
    for stem in FIGURES:
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(folder / f"{stem}.svg")
    again = sweep_folder(tmp_path)
    write_sweep(again)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_one_seed_and_no_other_data_sets(tmp_path):
    def cut(content):
        content["runs"] = [run | {"out": {}} for run in content["runs"] if run["seed"] == 0]
        content["base"] = {}

    html = write_sweep(change(sweep_folder(tmp_path), tmp_path, cut)).read_text()
    assert "Gain on each data set" in html
    assert "In against out of distribution" not in html
    assert "nan" not in re.sub("<script.*", "", html).lower().replace("finance", "")


def test_without_mle_there_are_values_and_no_gains(tmp_path):
    def cut(content):
        content["runs"] = [run for run in content["runs"] if run["arm"] == "distill"]

    html = write_sweep(change(sweep_folder(tmp_path), tmp_path, cut)).read_text()
    assert "Measured: loss" in html
    assert "Gain on each data set" not in html


def test_tasks_count_by_their_first_measure(tmp_path):
    def add(content):
        for run in content["runs"]:
            run["out"]["ifeval"] = {"prompt_level_strict_acc": 0.3 + 0.1 * (run["arm"] == "distill")}

    folder = change(sweep_folder(tmp_path, fail=False), tmp_path, add)
    (bars,) = drawn(folder)["figure-5"]
    (gain,) = [bar.value.value for bar in dict(bars.groups)["ifeval"] if bar.name == "distill"]
    assert gain == pytest.approx(1 / 3)


def test_a_task_on_which_mle_has_nothing_counts_as_won_or_lost_alone(tmp_path):
    def add(content):
        for run in content["runs"]:
            run["out"]["gsm8k"] = {"exact_match": 0.1 * (run["arm"] == "distill") + 0.2 * (run["seed"] > 0)}

    folder = change(sweep_folder(tmp_path, fail=False), tmp_path, add)
    sweep = read_sweep(folder)
    assert sweep.relative == ["alpaca, held out", "wikitext2", "mmlu_dev"]
    assert len(sweep.mean_gains("distill")) == 5
    found = drawn(folder)
    assert "gain on gsm8k is undefined" in found["figure-5"][0].caption
    notes = {bar.name: bar.note for bar in found["figure-6b"][0].groups[0][1]}
    assert notes["distill"] == "3 of 4, 3 with an interval above 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "holds no sweep: sweep.json cannot be read"), ("{", "is not JSON"), ("{}", "has no 'arms'")],
)
def test_what_is_no_sweep_is_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        write_sweep(tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["sweep.json"])


@pytest.fixture
def address(folder):
    return (folder / "sweep.html").as_uri()


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_never_scrolls_sideways_and_runs_nothing(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "window.hacked = 1" in page.locator("#failed-runs").text_content()


# ---- the paper's claims


def test_claims_are_tested_in_pairs_of_arms(folder):
    found = list(claims(read_sweep(folder)))
    masked, mixed = "masked_mle-loss-0.25", "masked_mle_distill-loss-0.25"
    outcome = {f.says: f.outcome for f in found if f.claim == "C5" and (masked in f.test or mixed in f.test)}
    places = ("on wikitext2", "on mmlu_dev", "mean of the data sets")
    assert outcome == {
        "masked MLE gains in distribution": "held",
        **{f"masked MLE loses out of distribution, {place}": "held" for place in places},
        "with distillation it gains in distribution": "held",
        **{f"distillation recovers what masked MLE loses out of distribution, {place}": "held" for place in places},
    }
    sweep = read_sweep(folder)
    document = sweep.gains(f"{masked}-document", sweep.inside)
    (tokens,) = [f for f in found if f.says == "tokens beat documents, by loss"]
    expected = over_seeds([one - document[seed] for seed, one in sweep.gains(masked, sweep.inside).items()])
    assert tokens.effect == expected
    assert tokens.outcome == "held"
    (entropy,) = [f for f in found if f.says == "the highest loss is better than entropy"]
    assert entropy.test.endswith(f"{masked} less masked_mle-entropy-0.25")
    assert entropy.outcome == "undecided"  # the two have the same effect
    text = (folder / "sweep.md").read_text()
    assert text.index("What came out") < text.index("Gains over MLE")


def test_a_sweep_without_masks_claims_nothing(folder, tmp_path):
    def only_distill(content):
        content["arms"] = [arm for arm in content["arms"] if "mask" not in arm["name"]]

    write_sweep(change(folder, tmp_path, only_distill))
    assert "What came out" not in (tmp_path / "sweep.md").read_text()


def test_a_claim_of_one_seed_is_undecided(tmp_path):
    assert {f.outcome for f in claims(read_sweep(sweep_folder(tmp_path, seeds=1, fail=False)))} == {"undecided"}
