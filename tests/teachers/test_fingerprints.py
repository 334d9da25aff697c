"""A teacher's fingerprint changes with everything that changes its answers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny import tiny_model
from uncertune.teachers.fingerprints import documents_fingerprint, teacher_fingerprint


def adapted(**options):
    torch.manual_seed(0)
    fields = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options}
    return get_peft_model(tiny_model("phi3"), LoraConfig(**fields))


CHANGES = {
    "a saved module": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "trained tokens": ({"trainable_token_indices": [3, 5]}, "trainable_tokens_delta"),
    "an adapter": ({}, "lora_A"),
    "a magnitude": ({"use_dora": True}, "lora_magnitude_vector"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_peft_has_trained_counts(case):
    options, part = CHANGES[case]
    options = {"target_modules": ["qkv_proj"], **options}
    one, other = adapted(**options), adapted(**options)
    student = tiny_model("phi3")
    assert teacher_fingerprint(one, student) == teacher_fingerprint(other, student)
    with torch.no_grad():
        next(tensor for name, tensor in other.named_parameters() if part in name)[0].add_(1)
    assert teacher_fingerprint(one, student) != teacher_fingerprint(other, student)


def test_the_scale_of_an_adapter_counts():
    student = tiny_model("phi3")
    one, other = (adapted(target_modules=["qkv_proj"], lora_alpha=alpha) for alpha in (4, 8))
    assert teacher_fingerprint(one, student) != teacher_fingerprint(other, student)


def test_the_configuration_of_a_folder_and_the_base_of_an_adapter_count(tmp_path):
    options = {"target_modules": ["qkv_proj"]}
    adapted(**options).save_pretrained(tmp_path / "a")
    student, other = adapted(**options), get_peft_model(tiny_model("phi3", seed=1), LoraConfig(**options))
    found = {teacher_fingerprint(str(tmp_path / "a"), one) for one in (student, other)}
    assert len(found) == 2
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    assert teacher_fingerprint(str(tmp_path / "a"), student) not in found


def test_documents_count_as_a_set_and_keys_as_wholes():
    assert documents_fingerprint(["ab", "c", "ab"]) == documents_fingerprint(["c", "ab"])
    assert documents_fingerprint(["ab", "c"]) != documents_fingerprint(["a", "bc"])
