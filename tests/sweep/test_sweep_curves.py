"""Runs measured at several points: the best one, equal gain in distribution, and the plane of trajectories."""

import json
from dataclasses import replace

import pytest

from helpers.sweep_folders import sweep_folder
from uncertune.sweep.curves import at_best, closer, curve_tables, equal_gain, trails
from uncertune.sweep.measures import Sweep, read_sweep
from uncertune.sweep.page import write_sweep

BASE = (2.0, 4.0)
# losses in and out of distribution after each epoch
WAYS = {
    "mle": ((1.6, 4.2), (1.4, 4.4), (1.5, 4.8)),
    "distill": ((1.8, 4.0), (1.5, 4.05), (1.45, 4.2)),
}


def record(loss: float, other: float) -> dict:
    return {"in": {"loss": loss}, "out": {"texts": {"loss": other}}}


@pytest.fixture
def sweep() -> Sweep:
    """Two seeds; the second is worse by 0.1 in distribution and by 0.2 out of it, at every point."""
    runs = []
    for seed, (worse, away) in enumerate([(0.0, 0.0), (0.1, 0.2)]):
        for arm, way in WAYS.items():
            curve = [
                {"step": 8 * epoch, "epoch": float(epoch), **record(x + worse, y + away)}
                for epoch, (x, y) in enumerate(way, start=1)
            ]
            end = {name: curve[-1][name] for name in ("in", "out")}
            runs.append({"arm": arm, "seed": seed, "status": "done", "error": None, "minutes": 2.0, **end})
            runs[-1] |= {"measuring_minutes": 0.5, "curve": curve}
    arms = [{"name": name, "objective": name, "metric": None, "level": None, "q": None} for name in WAYS]
    content = {"model": "tiny", "data": "sums", "in_data": "sums, held out", "documents": 24, "arms": arms}
    return Sweep({**content, "base": record(*BASE), "runs": runs})


def test_the_best_point_is_the_lowest_loss_in_distribution_of_each_run(sweep):
    best = at_best(sweep)
    assert best.values("mle", "sums, held out", "loss") == {0: 1.4, 1: 1.5}
    assert best.values("mle", "texts", "loss") == {0: 4.4, 1: pytest.approx(4.6)}
    assert best.values("distill", "sums, held out", "loss") == {0: 1.45, 1: pytest.approx(1.55)}
    assert {run["arm"]: run["epoch"] for run in best.content["runs"]} == {"mle": 2.0, "distill": 3.0}
    gain = best.gains("distill", "texts")
    assert gain[0] == pytest.approx((4.4 - 4.2) / 4.4)


def test_at_equal_gain_both_arms_are_taken_where_they_first_reach_it(sweep):
    level, difference = equal_gain(sweep, "distill")[0]
    assert level == pytest.approx(0.55 / 2)  # distill's highest: MLE gains more
    # distill at its end: 4.2; MLE between its first two points, at a loss of 1.45
    mle = 4.2 + (4.4 - 4.2) * (1.6 - 1.45) / (1.6 - 1.4)
    assert difference == pytest.approx((mle - 4.2) / 4.0)
    assert set(equal_gain(sweep, "distill")) == {0, 1}


def test_out_of_distribution_is_the_mean_over_its_data_sets(sweep):
    before = equal_gain(sweep, "distill")
    for one in [sweep.content["base"], *(point for run in sweep.content["runs"] for point in (run, *run["curve"]))]:
        one["out"]["code"] = {"loss": one["out"]["texts"]["loss"] / 2}  # the same relative gains
    found = equal_gain(sweep, "distill")
    assert {seed: pytest.approx(one) for seed, one in before.items()} == found


def test_an_arm_that_gains_nothing_has_no_equal_gain(sweep):
    for run in sweep.content["runs"]:
        if run["arm"] == "distill":
            for point in run["curve"]:
                point["in"]["loss"] = 2.5
    assert equal_gain(sweep, "distill") == {}


def test_trails_start_at_the_base_and_have_a_dot_an_epoch(sweep):
    plane = trails(sweep)
    assert [trail.name for trail in plane.trails] == ["mle", "distill"]
    mle = plane.trails[0]
    assert [point.name for point in mle.points] == ["base", "epoch 1", "epoch 2", "epoch 3"]
    assert (mle.points[0].x.value, mle.points[0].y.value) == (0.0, 0.0)
    first = mle.points[1]
    assert first.x.value == pytest.approx((0.4 + 0.3) / 2 / 2.0)
    assert first.y.value == pytest.approx(-(0.2 + 0.4) / 2 / 4.0)
    assert first.x.low < first.x.value < first.x.high


def test_arms_that_leave_the_picture_are_left_out_of_a_second_one(sweep):
    plane = trails(sweep)
    assert closer(plane) is None
    far = replace(plane.trails[0], name="far", points=tuple(times(point, 5.0) for point in plane.trails[0].points))
    near = closer(replace(plane, trails=(*plane.trails, far)))
    assert [trail.name for trail in near.trails] == ["mle", "distill"]
    assert near.caption == "Without far."
    assert closer(replace(plane, trails=(replace(far, name="mle"), *plane.trails[1:]))) is None  # MLE always stays


def times(point, factor):
    return replace(point, x=replace(point.x, value=factor * point.x.value))


def test_the_page_has_the_plane_the_two_tables_and_the_share_of_measuring(sweep, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(sweep.content))
    html = write_sweep(tmp_path).read_text()
    for text in ("From the base to the end", "Kept at its best epoch", "At equal gain in distribution"):
        assert text in html
    assert "2.0 minutes in all, 25% of the training" in html
    assert "24 documents each; fewer than 30 say little" in html
    assert (tmp_path / "trajectories.png").is_file()
    best, equal = curve_tables(sweep)
    assert [row["epoch"] for row in best.rows] == ["2, 2", "3, 3"]
    assert equal.rows[0]["seeds"] == 2


def test_runs_measured_at_their_end_alone_have_no_curves(tmp_path):
    found = read_sweep(sweep_folder(tmp_path))
    assert trails(found) is None
    assert list(curve_tables(found)) == []
    assert at_best(found).content["runs"] == found.content["runs"]


def test_claims_of_the_paper_are_on_the_page_only_on_request(tmp_path):
    def page(paper: bool) -> str:
        folder = sweep_folder(tmp_path)
        content = json.loads((folder / "sweep.json").read_text())
        (folder / "sweep.json").write_text(json.dumps({**content, "paper": paper}))
        return write_sweep(folder).read_text()

    words = ("C5", "The paper", "claimed")
    plain = page(False)
    assert not any(word in plain for word in words)
    assert (tmp_path / "in-against-out.png").is_file()
    of_the_paper = page(True)
    assert all(word in of_the_paper for word in words)
    assert (tmp_path / "figure-6a.png").is_file()
