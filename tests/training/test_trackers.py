"""What trackers receive: metrics by name, a picture of the selection, a run of its own for each stage."""

import json
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from helpers.run_files import run_file
from uncertune.cli import main
from uncertune.training.trackers import SelectionPicture, own_run, selection_picture

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def events(folder):
    """The values that a folder of TensorBoard holds, by tag: a list of (step, number or PNG)."""
    out = {}
    for path in folder.rglob("events.out.tfevents.*"):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                png = value.image.encoded_image_string
                out.setdefault(value.tag, []).append((event.step, png or value.simple_value))
    return out


def test_tensorboard_has_our_metrics_and_one_picture(tmp_path):
    path = run_file(
        tmp_path,
        rows=10,
        test_split_size=0.2,
        objective="masked_mle_distill",
        anchor="base",
        eval_strategy="epoch",
        num_train_epochs=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        use_cpu=True,
        report_to="tensorboard",
        run_name="mine",
        output_dir=str(tmp_path / "out"),
    )
    assert main(["train", "--config", str(path)]) == 0
    sent = events(tmp_path / "out" / "runs")
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in records if row["kind"] == "step"]
    names = ("nll_selected", "nll_unselected", "loss_part_selected", "loss_part_unselected", "selected_fraction")
    for name in (*names, "selection_threshold", "anchor_kl", "anchor_loss", "entropy"):
        assert [step for step, _ in sent[f"train/{name}"]] == [1, 2]
        assert [value for _, value in sent[f"train/{name}"]] == pytest.approx([row[name] for row in steps], rel=1e-5)
    assert {"eval/loss", "eval/objective", "train/loss"} <= sent.keys()
    ((step, png),) = sent["selection"]
    assert step == 2
    assert png[:4] == b"\x89PNG"
    stage_1 = events(tmp_path / "out" / "stage1" / "runs")
    assert "train/loss" in stage_1
    assert "selection" not in stage_1, "MLE selects nothing"
    assert yaml.safe_load((tmp_path / "out" / "stage1" / "config.yaml").read_text())["run_name"] == "mine-stage1"


DOCUMENT = {
    "text": ["Q", " one", "\n", " two", "\u4e16", " x"],
    "loss": [None, 1.0, 0.5, 4.0, 0.0, -0.1],
    "selected": [False, False, False, True, False, False],
    "response": [False, True, True, True, True, True],
}


def test_the_picture_shows_two_moments():
    moments = [{"step": step, "documents": [DOCUMENT]} for step in (0, 2, 4)]
    first, both = selection_picture(moments[:1]), selection_picture(moments)
    assert both.dtype == np.uint8
    assert both.shape == (2 * first.shape[0], *first.shape[1:])
    unmarked = {**DOCUMENT, "selected": [False] * 6}
    other = selection_picture([{"step": 0, "documents": [unmarked]}])
    assert (first != other).any()


class Tracker:
    """Stands for the modules wandb and trackio, which share ``log`` and ``Image``."""

    def __init__(self, fails=False):
        self.sent, self.fails = [], fails

    def Image(self, picture):  # noqa: N802 (their name)
        return ("image", picture.shape[2])

    def log(self, values):
        if self.fails:
            raise OSError("no connection")
        self.sent.append(values)


def test_wandb_and_trackio_take_the_picture(tmp_path, capsys):
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps({"step": step, "documents": [DOCUMENT]}) + "\n" for step in (0, 4)))
    wandb, trackio, broken = Tracker(), Tracker(), Tracker(fails=True)
    callbacks = [
        *(SimpleNamespace(_wandb=wandb), SimpleNamespace(_wandb=broken)),
        *(SimpleNamespace(_trackio=trackio), SimpleNamespace(tb_writer=None), object()),
    ]
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=callbacks))
    picture = SelectionPicture(trainer, probe)
    args = SimpleNamespace(uses_selection=True)
    for step in (3, 4):
        picture.on_step_end(args, SimpleNamespace(global_step=step, max_steps=4, is_world_process_zero=True), None)
    assert wandb.sent == trackio.sent == [{"selection": ("image", 3), "train/global_step": 4}]
    assert "the picture of the selection was not sent: no connection" in capsys.readouterr().err


def test_each_stage_is_a_run_of_its_own(monkeypatch):
    """Weights & Biases keeps a run open after training; transformers would write the next stage into it."""
    wandb = SimpleNamespace(run=None)
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with own_run():
        wandb.run = "opened by training"
    assert wandb.run is None
    wandb.run = "the user's"
    with own_run():
        pass
    assert wandb.run == "the user's"


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch, tracker):
    import importlib.util

    def without(name, *more, found=importlib.util.find_spec):
        return None if name == tracker else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    words = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path / "out")]
    assert main(["train", *words, "--report_to", tracker]) == 2
    assert f"needs the package {tracker}; run: pip install {tracker}, or set report_to: none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
