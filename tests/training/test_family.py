"""Token weighting, anchor, teachers of several members and label smoothing in training (SPEC B9, B10, B12, B13)."""

import pytest
import torch
import yaml
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from helpers.adapters import adapter, plain_logits
from helpers.harness import VOCABULARY, relative_difference, rows, run, settings
from helpers.killable import kill_at
from helpers.parity import losses
from helpers.tiny import save_tiny, tiny_model
from helpers.two_processes import two_processes
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.cli import main
from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES, anchored, token_weighting, weighted_nll
from uncertune.selection import select
from uncertune.teachers.adapter import BaseTeacher, ModelTeacher

ONE_CUT = {"per_device_train_batch_size": 8}
CUTS = [
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
]


# ---- TRL's own


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")  # TRL's own trainer says so
@pytest.mark.parametrize("lora", [False, True], ids=["dense", "lora"])
@pytest.mark.parametrize(
    "fields", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}], ids=lambda fields: next(iter(fields))
)
def test_the_losses_are_trls(tmp_path, fields, lora):
    theirs, ours = (
        losses(trainer, config, tmp_path, "messages, assistant only", "llama", lora, bf16=False, **fields)
        for trainer, config in ((SFTTrainer, SFTConfig), (UncertuneTrainer, UncertuneConfig))
    )
    assert theirs[0][0] != theirs[0][-1]
    assert len(ours[0]) == 5
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)


def test_loss_type_dft_is_token_weighting_dft(tmp_path):
    config = settings(tmp_path, loss_type="dft")
    assert (config.loss_type, config.token_weighting) == ("nll", "dft")


# ---- by hand


def by_hand(model, data, *, weighting="none", selected=None, members=(), base=None, anchor_weight=0.0, smoothing=0.0):
    """The loss of a step from plain logits: mean over all response tokens of the rows."""
    pairs = [plain_logits(model, row) for row in data]
    z, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))

    def probabilities(other):
        return torch.cat([plain_logits(other, row)[0] for row in data]).softmax(-1)

    given = {"token_weighting": token_weighting(weighting), "label_smoothing": smoothing or None}
    name = "mle"
    if members:
        name = "masked_mle_distill"
        scores = torch.nn.functional.cross_entropy(z, labels, reduction="none")
        given |= {"selected": select(scores, selected), "teacher": [probabilities(one) for one in members]}
    targets = OBJECTIVES[name](labels, **given)
    if base is not None:
        targets = anchored(targets, labels, probabilities(base), anchor_weight)
    return float(weighted_nll(z, targets).mean())


def log_probabilities(model):
    return torch.cat([plain_logits(model, row)[0] for row in rows()]).log_softmax(-1)


@pytest.mark.parametrize("weighting", ["dft", "eaft", "infosft", "focal"])
def test_a_weighting_in_training_is_its_definition(tmp_path, weighting):
    step = run(
        tmp_path,
        data=rows(),
        token_weighting=weighting,
        learning_rate=0.0,
        **ONE_CUT,
    )
    assert step.loss == pytest.approx(by_hand(step.trainer.model, rows(), weighting=weighting), rel=1e-9)


def test_an_sft_adapter_as_teacher_and_the_base_as_anchor(tmp_path):
    """Both at once on one copy of the base: each is what it says, and the student's adapter trains on."""
    folder = adapter(tmp_path / "sft")
    step = run(
        tmp_path / "run",
        data=rows(),
        objective="masked_mle_distill",
        teacher=folder,
        anchor="base",
        anchor_weight=0.3,
        learning_rate=0.0,
        **ONE_CUT,
    )
    references = step.trainer.references
    assert isinstance(references.anchor, BaseTeacher)
    assert len(step.trainer.model.peft_config) == 2  # the student's adapter and the teacher's, no copy of the base
    base = tiny_model("llama", VOCABULARY, torch.float64)
    sft = PeftModel.from_pretrained(tiny_model("llama", VOCABULARY, torch.float64), folder).double()
    common = {"selected": 0.25, "base": base, "anchor_weight": 0.3}
    assert step.loss == pytest.approx(by_hand(step.trainer.model, rows(), members=[sft], **common), rel=1e-9)
    assert step.loss != pytest.approx(by_hand(step.trainer.model, rows(), members=[base], **common), rel=1e-3)
    q, p = (log_probabilities(one) for one in (base, step.trainer.model))
    assert step.metrics[-1]["anchor_kl"] == pytest.approx(float((q.exp() * (q - p)).sum(-1).mean()), rel=1e-9)
    assert all("lora" in name for name in step.gradient)
    active = [name for name, parameter in step.trainer.model.named_parameters() if parameter.requires_grad]
    assert active
    assert all(".default." in name for name in active)


def test_the_base_as_teacher(tmp_path):
    step = run(
        tmp_path, data=rows(), objective="masked_mle_distill", teacher="base", learning_rate=0.0, **ONE_CUT,
    )  # fmt: skip
    assert isinstance(step.trainer.references.teacher, BaseTeacher)
    assert list(step.trainer.model.peft_config) == ["default"], "no copy of the base"
    base = tiny_model("llama", VOCABULARY, torch.float64)
    assert step.loss == pytest.approx(by_hand(step.trainer.model, rows(), members=[base], selected=0.25), rel=1e-9)


def test_full_fine_tuning_keeps_a_frozen_copy(tmp_path):
    step = run(
        tmp_path, data=rows(), lora=False, anchor="base", anchor_weight=0.5, max_steps=2, num_train_epochs=2, **ONE_CUT
    )
    copied = step.trainer.references.anchor
    assert isinstance(copied, ModelTeacher)
    start = tiny_model("llama", VOCABULARY, torch.float64)
    for (name, kept), (_, first) in zip(copied.model.named_parameters(), start.named_parameters(), strict=True):
        assert torch.equal(kept, first), name
        assert not kept.requires_grad
    assert step.metrics[0]["anchor_kl"] == pytest.approx(0, abs=1e-12)  # the model is its own anchor before it moves
    assert step.metrics[1]["anchor_kl"] > 0


def test_the_anchors_part_is_logged(tmp_path):
    step = run(
        tmp_path,
        data=rows(),
        anchor="base",
        anchor_weight=0.2,
        learning_rate=0.0,
        **ONE_CUT,
    )
    base = tiny_model("llama", VOCABULARY, torch.float64)
    q, p = (log_probabilities(one) for one in (base, step.trainer.model))
    logged = step.metrics[-1]
    assert logged["anchor_kl"] == pytest.approx(float((q.exp() * (q - p)).sum(-1).mean()), rel=1e-9)
    assert logged["anchor_loss"] == pytest.approx(0.2 * float(-(q.exp() * p).sum(-1).mean()), rel=1e-9)
    assert step.loss - logged["anchor_loss"] == pytest.approx(by_hand(step.trainer.model, rows()), rel=1e-9)


def test_three_members_are_their_mean(tmp_path):
    folders = [adapter(tmp_path / f"member{seed}", seed=seed) for seed in (3, 4, 5)]
    step = run(
        tmp_path / "run",
        data=rows(),
        objective="masked_mle_distill",
        teacher=folders,
        learning_rate=0.0,
        **ONE_CUT,
    )
    members = [
        PeftModel.from_pretrained(tiny_model("llama", VOCABULARY, torch.float64), folder).double() for folder in folders
    ]
    assert step.loss == pytest.approx(by_hand(step.trainer.model, rows(), selected=0.25, members=members), rel=1e-9)


# ---- what changes nothing


def test_neutral_values_change_no_bit(tmp_path):
    folder = adapter(tmp_path / "teacher")
    common = {"data": rows(), "objective": "masked_mle_distill", "dtype": torch.float32, **ONE_CUT}
    plain = run(tmp_path / "plain", teacher=folder, **common)
    neutral = run(
        tmp_path / "neutral",
        teacher=[folder],
        token_weighting="none",
        anchor="base",
        anchor_weight=0.0,
        label_smoothing_factor=0.0,
        **common,
    )
    assert plain.loss == neutral.loss
    for name, gradient in plain.gradient.items():
        assert torch.equal(gradient, neutral.gradient[name])


@pytest.mark.parametrize("cut", CUTS, ids=["2 of 4", "8 of 1"])
@pytest.mark.parametrize(
    "fields",
    [
        {"token_weighting": "dft", "anchor": "base"},
        {"objective": "masked_mle", "token_weighting": "eaft", "anchor": "base", "label_smoothing_factor": 0.1},
        {"objective": "masked_mle", "selection_level": "document", "anchor": "base"},
        {"objective": "masked_mle_distill", "token_weighting": "infosft", "anchor": "base", "members": 2},
    ],
    ids=["asft", "masked_mle", "documents", "members"],
)
def test_how_a_step_is_cut_changes_nothing(tmp_path, cut, fields):
    fields = dict(fields)
    count = fields.pop("members", 0)
    if count:
        fields["teacher"] = [adapter(tmp_path / f"m{seed}", seed=seed) for seed in range(count)]
    whole = run(tmp_path / "whole", data=rows(), **ONE_CUT, **fields)
    parts = run(tmp_path / "parts", data=rows(), **cut, **fields)
    assert whole.masks == parts.masks
    assert relative_difference(parts.gradient, whole.gradient) < 1e-9
    assert parts.loss == pytest.approx(whole.loss, rel=1e-9)
    assert parts.metrics[-1]["anchor_kl"] == pytest.approx(whole.metrics[-1]["anchor_kl"], rel=1e-9)


def on_a_rank(folder):
    step = run(
        folder / "run",
        data=rows(),
        objective="masked_mle_distill",
        token_weighting="eaft",
        anchor="base",
        teacher=[str(folder / "m1"), str(folder / "m2")],
        per_device_train_batch_size=4,
        dtype=torch.float32,
    )
    return step.gradient, step.metrics[-1]


def test_two_processes_are_one(tmp_path):
    for seed in (1, 2):
        adapter(tmp_path / f"m{seed}", seed=seed)
    results = two_processes(on_a_rank, tmp_path, tmp_path / "ranks")
    alone = run(
        tmp_path / "alone",
        data=rows(),
        objective="masked_mle_distill",
        token_weighting="eaft",
        anchor="base",
        teacher=[str(tmp_path / "m1"), str(tmp_path / "m2")],
        dtype=torch.float32,
        **ONE_CUT,
    )
    names = {name.replace("module.", ""): gradient for name, gradient in results[0][0].items()}
    assert relative_difference(names, alone.gradient) < 1e-5
    for name in ("loss", "anchor_loss", "anchor_kl", "selected_fraction"):
        assert results[0][1][name] == pytest.approx(alone.metrics[-1][name], rel=1e-5)


# ---- the cache


def test_teacher_members_and_anchor_are_cached(tmp_path):
    folders = [adapter(tmp_path / f"m{seed}", seed=seed) for seed in (1, 2)]
    fields = {
        "data": rows(),
        "objective": "masked_mle_distill",
        "teacher": folders,
        "anchor": "base",
        "dtype": torch.bfloat16,
        **ONE_CUT,
    }
    live = run(tmp_path / "live", **fields)
    cache = {"teacher_cache": "hidden", "teacher_cache_dir": str(tmp_path / "cache")}
    first = run(tmp_path / "first", **cache, **fields)
    again = run(tmp_path / "again", **cache, **fields)
    assert {path.name for path in (tmp_path / "cache").iterdir()} >= {"hidden", "hidden-2", "anchor"}
    assert again.trainer.references.members == [None, None]  # read from the disk, not loaded
    assert again.trainer.references.anchor is None
    assert first.loss == again.loss
    assert first.loss == pytest.approx(live.loss, rel=1e-3)
    assert relative_difference(first.gradient, live.gradient) < 0.02  # of bfloat16


def test_a_cached_anchor_without_a_teacher(tmp_path):
    fields = {"data": rows(), "anchor": "base", "teacher_cache": "hidden", "dtype": torch.float32, **ONE_CUT}
    cached = run(tmp_path / "cached", **fields)
    live = run(tmp_path / "live", **{**fields, "teacher_cache": "none"})
    assert cached.loss == pytest.approx(live.loss, rel=1e-4)  # kept in bfloat16


# ---- members as the ensemble of bald


def test_bald_of_the_members(tmp_path):
    folders = [adapter(tmp_path / f"m{seed}", seed=seed) for seed in (1, 2, 3)]
    fields = {"data": rows(), "objective": "masked_mle", "selection_metric": "bald", "bald_members": "teacher"}
    step = run(tmp_path / "run", teacher=folders, **fields, **ONE_CUT)
    probs = []
    for folder in folders:
        model = PeftModel.from_pretrained(tiny_model("llama", VOCABULARY, torch.float64), folder).double()
        probs.append(torch.cat([plain_logits(model, row)[0] for row in rows()]).softmax(-1))
    entropies = [-(p * p.log()).sum(-1) for p in probs]
    mean = torch.stack(probs).mean(0)
    epistemic = -(mean * mean.log()).sum(-1) - torch.stack(entropies).mean(0)
    count = -(-len(epistemic) // 4)
    assert step.metrics[-1]["selection_threshold"] == pytest.approx(float(epistemic.sort().values[-count]), abs=1e-6)
    cut = run(tmp_path / "cut", teacher=folders, **fields, **CUTS[0])
    assert cut.masks == step.masks


# ---- refusals

REFUSED = [
    ({"token_weighting": "dtf"}, "token_weighting", "dft", "dtf"),
    ({"objective": "distill", "teacher": "x", "token_weighting": "dft"}, "token_weighting", "distill", "no label term"),
    ({"objective": "distill", "teacher": "x", "label_smoothing_factor": 0.1}, "label_smoothing_factor", "distill"),
    ({"label_smoothing_factor": 1.5}, "label_smoothing_factor", "[0, 1)"),
    ({"focal_gamma": 1.0}, "focal_gamma", "token_weighting='none'"),
    ({"token_weighting": "eaft", "eaft_top_k": 1}, "eaft_top_k", "at least 2"),
    ({"token_weighting": "eaft", "loss_type": "dft"}, "loss_type", "token_weighting"),
    ({"anchor_weight": 0.2}, "anchor_weight", "anchor='none'"),
    ({"anchor": "base", "anchor_weight": -0.1}, "anchor_weight", "at least 0"),
    ({"anchor": "auto"}, "anchor", "base"),
    ({"objective": "masked_mle", "anchor": "base", "normalize_by": "selected"}, "normalize_by", "anchor"),
    ({"objective": "distill", "teacher": "x", "teacher_members": 2}, "teacher_members", "auto"),
    ({"objective": "distill", "teacher": ["a", "auto"]}, "teacher", "teacher_members"),
    ({"objective": "truncated_distill", "teacher": ["a", "b"]}, "truncated_distill", "one teacher"),
    ({"bald_members": "teacher"}, "bald_members", "mle"),
    (
        {"objective": "masked_mle", "selection_metric": "bald", "bald_members": "teacher", "teacher": "x"},
        "bald_members",
        "two members",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: str(case[0]))
def test_fields_refused(tmp_path, case):
    fields, *words = case
    with pytest.raises(UserError) as error:
        settings(tmp_path, **fields)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_anchor_of_another_vocabulary(tmp_path):
    other = save_tiny(tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match=r"anchor .* has another vocabulary"):
        run(tmp_path / "run", data=rows(), anchor=str(other), **ONE_CUT)


def test_an_anchor_may_be_another_model(tmp_path):
    other = tiny_model("llama", VOCABULARY, torch.float64, seed=5)
    other.save_pretrained(tmp_path / "other")
    step = run(tmp_path / "run", data=rows(), lora=False, anchor=str(tmp_path / "other"), anchor_weight=0.3, **ONE_CUT)
    start = tiny_model("llama", VOCABULARY, torch.float64)
    assert step.loss == pytest.approx(by_hand(start, rows(), base=other, anchor_weight=0.3), rel=1e-9)


# ---- members trained first


def command(model, out):
    fields = {
        "model_name_or_path": model,
        "dataset_name": "word_problems",
        "max_train_samples": 16,
        "output_dir": out,
        "objective": "masked_mle_distill",
        "teacher": "auto",
        "teacher_members": 2,
        "anchor": "base",
        "token_weighting": "eaft",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "lora_dropout": 0.1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "probe_steps": 0,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return ["train", *(word for name, value in fields.items() for word in (f"--{name}", str(value)))]


def test_members_are_trained_first_and_a_killed_run_ends_with_the_same_bytes(tmp_path, capsys):
    model = save_tiny(tmp_path / "model", marked=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(model, whole)) == 0
    kill_at(command(model, killed), killed / "stage1-2" / "metrics.jsonl", 2, tmp_path / "log")
    kill_at(command(model, killed), killed / "metrics.jsonl", 2, tmp_path / "log")
    assert main(command(model, killed)) == 0
    files = [f"{stage}adapter_model.safetensors" for stage in ("", "stage1/", "stage1-2/")]
    for name in (*files, "selection.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert len({(whole / name).read_bytes() for name in files}) == 3
    seeds = [yaml.safe_load((whole / stage / "config.yaml").read_text())["seed"] for stage in ("stage1", "stage1-2")]
    assert seeds == [42, 43]
    capsys.readouterr()
    again = ["train", "--config", str(whole / "config.yaml"), "--teacher", "auto", "--output_dir", str(whole)]
    assert main(again) == 0
    assert "complete" in capsys.readouterr().err
