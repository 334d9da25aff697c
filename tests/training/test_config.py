"""What cannot be trained is refused, in one line that names the field; the defaults are the contract's and TRL's."""

import dataclasses

import pytest
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTConfig

from helpers.harness import VOCABULARY, rows
from helpers.refusals import refused
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from uncertune import UncertuneConfig, UncertuneTrainer

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none"}
MASKED = {"objective": "masked_mle"}
BOTH = {"objective": "masked_mle_distill"}
TRUNCATED = {"objective": "truncated_distill"}


# ---- defaults


def test_the_defaults_are_the_contracts(tmp_path):
    config = UncertuneConfig(str(tmp_path), **QUIET)
    assert config.objective == "mle"
    assert config.selection_metric == "loss"
    assert config.selection_fraction == 0.25
    assert config.selection_level == "token"
    assert config.selection_scope == "batch"
    assert config.teacher is None
    assert config.teacher_top_k == 64
    assert config.teacher_truncation == "plain"
    assert config.rho_reference is None
    assert config.normalize_by == "all"
    assert config.save_selection


def test_all_other_defaults_are_trls(tmp_path):
    theirs, ours = SFTConfig(str(tmp_path), **QUIET), UncertuneConfig(str(tmp_path), **QUIET)
    different = {
        one.name
        for one in dataclasses.fields(SFTConfig)
        if one.name not in ("logging_dir", "accelerator_config", "run_name")
        and getattr(theirs, one.name) != getattr(ours, one.name)
    }
    assert different == {"assistant_only_loss"}  # unset, so that it can be asked for; TRL's False otherwise
    assert ours.assistant_only_loss is None


# ---- fields

REFUSED_FIELDS = [
    ({"objective": "mlee"}, "objective", "mlee", "masked_mle_distill"),
    ({**MASKED, "selection_metric": "surprise"}, "selection_metric", "surprise", "entropy"),
    ({**MASKED, "selection_level": "word"}, "selection_level", "word", "document"),
    ({**MASKED, "selection_scope": "epoch"}, "selection_scope", "epoch", "microbatch"),
    ({**MASKED, "normalize_by": "none"}, "normalize_by", "none", "selected"),
    ({**TRUNCATED, "teacher_truncation": "half"}, "teacher_truncation", "half", "tail"),
    ({**TRUNCATED, "teacher_top_k": 0}, "teacher_top_k", "0"),
    ({**MASKED, "selection_fraction": 0}, "selection_fraction", "0"),
    ({**MASKED, "selection_fraction": 2}, "selection_fraction", "2"),
    ({**MASKED, "selection_fraction": -0.1}, "selection_fraction", "-0.1"),
    ({**MASKED, "selection_fraction": float("nan")}, "selection_fraction", "nan"),
    ({"objective": "mle", "selection_fraction": 2}, "selection_fraction", "2"),
    ({"probe_steps": 0, "probe_samples": 4}, "probe_samples", "probe_steps=0"),
    ({**MASKED, "selection_metric": "bald", "bald_samples": 1}, "bald_samples", "1"),
    ({**MASKED, "selection_metric": "bald", "bald_rate": 1.0}, "bald_rate", "1.0"),
    ({**MASKED, "bald_samples": 20}, "bald_samples", "loss"),
    ({"bald_rate": 0.2}, "bald_rate", "mle"),
    ({**MASKED, "selection_scope": "running", "selection_metric": "random"}, "selection_scope", "random", "batch"),
    ({**MASKED, "selection_scope": "running", "normalize_by": "selected"}, "normalize_by", "running", "all"),
    ({**MASKED, "selection_metric": "rho"}, "rho_reference", "rho"),
    ({**MASKED, "selection_order": "first"}, "selection_order", "first", "lowest"),
    ({**MASKED, "selection_order": "lowest", "selection_metric": "random"}, "selection_order", "lowest", "random"),
    ({**MASKED, "selection_threshold": 0.5, "selection_metric": "random"}, "selection_threshold", "0.5", "random"),
    ({**MASKED, "selection_order": "middle", "selection_scope": "running"}, "selection_order", "middle", "batch"),
    ({**MASKED, "selection_order": "middle", "selection_threshold": 2.0}, "selection_threshold", "2.0", "lowest"),
    ({**MASKED, "selection_threshold": 2.0, "selection_fraction": 0.5}, "selection_fraction", "selection_threshold"),
    ({**MASKED, "selection_threshold": 2.0, "selection_scope": "running"}, "selection_scope", "selection_threshold"),
    ({**MASKED, "selection_threshold": float("nan")}, "selection_threshold", "finite"),
    ({"selection_threshold": 2.0}, "selection_threshold", "mle"),
    ({"selection_order": "lowest"}, "selection_order", "mle"),
    ({**MASKED, "rho_reference": "x"}, "rho_reference", "selection_metric", "loss"),
    ({"selection_fraction": 0.5}, "selection_fraction", "0.5", "mle"),
    ({"selection_metric": "entropy"}, "selection_metric", "entropy", "mle"),
    ({"selection_level": "document"}, "selection_level", "mle"),
    ({"objective": "distill", "selection_scope": "microbatch"}, "selection_scope", "distill"),
    ({"objective": "oracle", "normalize_by": "selected"}, "normalize_by", "oracle"),
    ({"rho_reference": "x"}, "rho_reference", "mle"),
    ({**MASKED, "teacher": "x"}, "teacher", "masked_mle"),
    ({"teacher": "auto"}, "teacher", "mle"),
    ({"teacher_top_k": 5}, "teacher_top_k", "truncated_distill"),
    ({**BOTH, "teacher_truncation": "tail"}, "teacher_truncation", "truncated_distill"),
    ({**BOTH, "normalize_by": "selected"}, "normalize_by", "masked_mle_distill"),
    ({**BOTH, "teacher_cache": "logits"}, "teacher_cache", "logits", "hidden"),
    ({**BOTH, "teacher_cache": "topk"}, "teacher_cache", "topk", "hidden"),
    ({"objective": "distill", "teacher_cache": "topk"}, "teacher_cache", "topk", "truncated_distill"),
    ({"teacher_cache": "hidden"}, "teacher_cache", "mle"),
    ({**BOTH, "teacher_cache_dir": "x"}, "teacher_cache_dir", "none"),
    ({**MASKED, "teacher_cache_dir": "x"}, "teacher_cache_dir", "masked_mle"),
    ({**BOTH, "teacher_cache_fill": "first_epoch"}, "teacher_cache_fill", "none"),
    ({**MASKED, "packing": True, "packing_strategy": "wrapped"}, "packing_strategy", "wrapped", "bfd"),
    ({**BOTH, "packing": True, "packing_strategy": "wrapped"}, "packing_strategy", "wrapped", "bfd"),
    ({**MASKED, "packing": True, "packing_strategy": "bfd_split"}, "packing_strategy", "bfd_split", "use 'bfd'"),
    ({"packing_strategy": "best"}, "packing_strategy must be one of bfd, bfd_split, wrapped; got 'best'"),
    ({"include_num_input_tokens_seen": "each"}, "include_num_input_tokens_seen", "all, non_padding, no", "'each'"),
    ({"train_sampling_strategy": "sorted"}, "train_sampling_strategy", "group_by_length", "'sorted'"),
    ({"log_level_replica": "loud"}, "log_level_replica", "critical", "'loud'"),
    ({"include_for_metrics": ["labels"]}, "include_for_metrics must be one of inputs, loss; got 'labels'"),
]


@pytest.mark.parametrize("case", REFUSED_FIELDS, ids=lambda case: ", ".join(f"{k}={v}" for k, v in case[0].items()))
def test_fields_refused(tmp_path, case):
    fields, *words = case
    refused(lambda: UncertuneConfig(str(tmp_path), **QUIET, **fields), *words)


ACCEPTED_FIELDS = [
    {"include_num_input_tokens_seen": True},
    {"include_num_input_tokens_seen": "non_padding"},
    {"include_for_metrics": ["inputs", "loss"], "log_level": "detail"},
    {"packing": True, "packing_strategy": "wrapped"},
    {**MASKED, "selection_fraction": 1, "selection_metric": "random", "selection_level": "document"},
    {**MASKED, "normalize_by": "selected"},
    {**MASKED, "selection_scope": "running", "selection_level": "document"},
    {**MASKED, "selection_scope": "running", "selection_order": "lowest"},
    {**MASKED, "selection_threshold": 2.0, "normalize_by": "selected"},
    {**MASKED, "selection_metric": "rho", "rho_reference": "teacher", "teacher": "x"},
    {**TRUNCATED, "teacher_top_k": 5, "teacher_truncation": "renormalized"},
    {**BOTH, "teacher": "auto"},
    {**MASKED, "selection_metric": "rho", "rho_reference": "auto", "teacher_cache_dir": "x"},
    {**BOTH, "teacher_cache": "hidden", "teacher_cache_dir": "x", "teacher_cache_fill": "first_epoch"},
    {**TRUNCATED, "teacher_cache": "topk"},
]


@pytest.mark.parametrize("fields", ACCEPTED_FIELDS, ids=str)
def test_fields_accepted(tmp_path, fields):
    UncertuneConfig(str(tmp_path), **QUIET, **fields)


@pytest.mark.parametrize("size", ["cp_size", "sp_size", "tp_size"])
def test_other_parallelism_than_over_data(tmp_path, size):
    parallel = type("Parallelism", (), {size: 2})()
    config = UncertuneConfig(str(tmp_path), **QUIET)
    config.parallelism_config = parallel
    refused(config._check_unsupported, "parallelism_config", size)


# ---- what the trainer is given


def build(folder, *, model=None, data=None, tokenizer=None, peft_config=None, **given):
    names = {one.name for one in dataclasses.fields(UncertuneConfig)} - {"teacher"}
    fields = {name: given.pop(name) for name in list(given) if name in names}
    return UncertuneTrainer(
        tiny_model("llama", VOCABULARY) if model is None else model,
        UncertuneConfig(str(folder), **QUIET, **fields),
        train_dataset=rows(8) if data is None else data,
        processing_class=tiny_tokenizer() if tokenizer is None else tokenizer,
        peft_config=peft_config,
        **given,
    )


def messages(count=4):
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    return Dataset.from_list([{"messages": turns} for _ in range(count)])


def test_args_of_another_class(tmp_path):
    refused(
        lambda: UncertuneTrainer(tiny_model("llama"), SFTConfig(str(tmp_path), **QUIET), train_dataset=rows(8)),
        "args",
        "SFTConfig",
    )


def test_a_loss_function_of_ones_own(tmp_path):
    refused(lambda: build(tmp_path, compute_loss_func=lambda *_: 0), "compute_loss_func")


def test_prompt_learning(tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    refused(lambda: build(tmp_path, peft_config=config), "peft_config", "PromptTuningConfig", "LoraConfig")
    wrapped = get_peft_model(tiny_model("llama", VOCABULARY), config)
    refused(lambda: build(tmp_path, model=wrapped), "PromptTuningConfig", "LoraConfig")


@pytest.mark.parametrize("objective", ["mle", "masked_mle"])
def test_an_adapter_on_the_head(tmp_path, objective):
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = tiny_model("phi3", VOCABULARY)
    refused(lambda: build(tmp_path, model=model, peft_config=config, objective=objective), "lm_head", "target_modules")


def test_target_modules_that_are_not_there(tmp_path):
    config = LoraConfig(r=2, target_modules=["nowhere"], task_type="CAUSAL_LM")
    refused(lambda: build(tmp_path, peft_config=config), "nowhere")


def test_a_vision_language_model(tmp_path):
    class Processor(ProcessorMixin):
        def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
            self.tokenizer = tokenizer
            self.chat_template = tokenizer.chat_template

    refused(lambda: build(tmp_path, tokenizer=Processor(tiny_tokenizer())), "vision-language", "processing_class")
    text = tiny_model("gemma3", VOCABULARY).config.to_dict()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config={**vision, **sizes}, mm_tokens_per_image=4)
    refused(lambda: build(tmp_path, model=Gemma3ForConditionalGeneration(config)), "vision-language", "model")


# ---- the teacher


def test_a_missing_teacher(tmp_path):
    for objective in ("distill", "truncated_distill", "masked_mle_distill"):
        refused(lambda objective=objective: build(tmp_path, objective=objective), "teacher", objective)
    rho = {**MASKED, "selection_metric": "rho", "rho_reference": "teacher"}
    refused(lambda: build(tmp_path, **rho), "rho_reference", "teacher")


def test_a_teacher_that_is_not_used_twice_or_beside_auto(tmp_path):
    model = tiny_model("llama", VOCABULARY)
    refused(lambda: build(tmp_path, teacher=model), "teacher", "mle")
    refused(lambda: build(tmp_path, teacher=model, **MASKED), "teacher", "masked_mle")
    refused(lambda: build(tmp_path, teacher=["auto", model], objective="distill"), "teacher", "stands alone")
    config = UncertuneConfig(str(tmp_path), **QUIET, objective="distill", teacher="x")
    refused(
        lambda: UncertuneTrainer(tiny_model("llama"), config, train_dataset=rows(8), teacher=model), "teacher", "twice"
    )


def test_a_teacher_that_cannot_be_loaded(tmp_path):
    distill = {"objective": "distill"}
    refused(lambda: build(tmp_path, teacher=str(tmp_path / "nowhere"), **distill), "teacher", "nowhere")
    refused(lambda: build(tmp_path, teacher="nobody/nothing", **distill), "teacher", "nobody/nothing")
    (tmp_path / "empty").mkdir()
    refused(lambda: build(tmp_path, teacher=str(tmp_path / "empty"), **distill), "teacher", "empty")
    adapter = tmp_path / "adapter"
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama", VOCABULARY, intermediate_size=64), config).save_pretrained(str(adapter))
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    refused(lambda: build(tmp_path, teacher=str(adapter), peft_config=lora, **distill), "teacher", "adapter", "fit")


def test_a_teacher_of_another_vocabulary(tmp_path):
    distill = {"objective": "distill"}
    refused(lambda: build(tmp_path, teacher=tiny_model("llama", 300), **distill), "teacher", "300", str(VOCABULARY))
    wide = save_tiny(tmp_path / "wide", "llama", vocab_size=300)
    refused(lambda: build(tmp_path, teacher=str(wide), **distill), "teacher", "300", str(VOCABULARY))
    other = save_tiny(tmp_path / "other", "llama")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["uncertain"])
    tokenizer.save_pretrained(str(other))
    refused(lambda: build(tmp_path, teacher=str(other), **distill), "teacher", "vocabulary", "tokenizer")


# ---- data


def test_messages_are_trained_on_the_assistants_turns(tmp_path, capsys):
    shared = Dataset.from_list([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}])
    for data in (messages(), shared):
        assert build(tmp_path, data=data, **MASKED).args.assistant_only_loss is True
        assert capsys.readouterr().err.count("assistant_only_loss: true") == 1
    assert build(tmp_path, data=messages(), assistant_only_loss=False, **MASKED).args.assistant_only_loss is False
    assert build(tmp_path, data=messages()).args.assistant_only_loss is False  # TRL's default
    assert "assistant_only_loss" not in capsys.readouterr().err


def test_one_configuration_for_two_trainers(tmp_path):
    """A trainer does not answer for the next one what was left open."""
    config = UncertuneConfig(str(tmp_path), **QUIET, **MASKED)
    common = {"processing_class": tiny_tokenizer()}
    first = UncertuneTrainer(tiny_model("llama", VOCABULARY), config, train_dataset=rows(8), **common)
    second = UncertuneTrainer(tiny_model("llama", VOCABULARY), config, train_dataset=messages(), **common)
    assert [one.args.assistant_only_loss for one in (first, second)] == [False, True]
    assert config.assistant_only_loss is None


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_a_tokenizer_without_a_chat_template(tmp_path, assistant_only_loss):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    refused(
        lambda: build(tmp_path, data=messages(), tokenizer=tokenizer, assistant_only_loss=assistant_only_loss),
        "chat_template_path",
    )


def test_a_template_without_marks(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    refused(
        lambda: build(tmp_path, data=messages(), tokenizer=tokenizer, assistant_only_loss=True),
        "chat_template_path",
        "{% generation %}",
    )


def test_a_conversation_without_an_assistant(tmp_path):
    data = Dataset.from_list([{"messages": [{"role": "user", "content": "anyone?"}]}])
    refused(
        lambda: build(tmp_path, data=data, tokenizer=tiny_tokenizer(marked=True), assistant_only_loss=True),
        "row 0",
        "no assistant turn",
    )


def test_assistant_only_loss_without_conversations_does_not_apply(tmp_path, capsys):
    data = Dataset.from_dict({"text": ["a", "b"]})
    trainer = build(tmp_path, data=data, assistant_only_loss=True)
    assert trainer.train_dataset["labels"] == [[64, 257], [65, 257]]  # a and b, and the end of text
    assert "assistant_only_loss: true does not apply" in capsys.readouterr().err


@pytest.mark.parametrize("packing", [False, True])
def test_no_response_token_at_all(tmp_path, packing):
    data = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": [-100] * 3}] * 3)
    refused(lambda: build(tmp_path, data=data, packing=packing), "labels", "-100", "max_length")
    cut = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": [-100, -100, 6]}] * 3)
    refused(lambda: build(tmp_path, data=cut, max_length=2, packing=packing), "labels", "max_length")
    build(tmp_path, data=cut, max_length=3, packing=packing)


def test_side_columns_missing_unused_or_of_another_length(tmp_path):
    gradient = {"objective": "policy_gradient"}
    refused(lambda: build(tmp_path, **gradient), "advantages", "policy_gradient")
    refused(lambda: build(tmp_path, objective="oracle"), "'oracle'")
    refused(lambda: build(tmp_path, data=rows(8, side="advantages")), "advantages", "mle")
    refused(lambda: build(tmp_path, data=rows(8, side="oracle"), **gradient), "oracle", "policy_gradient", "advantages")
    only_ids = rows(8, side="oracle").remove_columns("oracle")
    refused(lambda: build(tmp_path, data=only_ids), "oracle_ids")
    for wrong in ([1.0, 2.0], None, "high"):
        data = Dataset.from_list([{**row, "token_weight": wrong} for row in rows(2)])
        refused(lambda data=data: build(tmp_path, data=data), "token_weight", "row 0", "9")
    stream = rows(8, side="token_weight").to_iterable_dataset()
    refused(lambda: build(tmp_path, data=stream, max_steps=1), "dataset_streaming")


def test_batches_that_cannot_be(tmp_path):
    few = {"per_device_train_batch_size": 16, "dataloader_drop_last": True}
    refused(lambda: build(tmp_path, **few), "dataloader_drop_last", "8 rows", "16")
    build(tmp_path, **{**few, "per_device_train_batch_size": 8})
    stream = rows(8).to_iterable_dataset()
    grouped = {"train_sampling_strategy": "group_by_length", "max_steps": 1}
    refused(lambda: build(tmp_path, data=stream, **grouped), "train_sampling_strategy", "stream")
    build(tmp_path, data=stream, max_steps=1)
    build(tmp_path, train_sampling_strategy="group_by_length")


def test_half_precision_needs_a_gpu(tmp_path):
    refused(lambda: build(tmp_path, fp16=True), "fp16", "CPU", "bf16")
