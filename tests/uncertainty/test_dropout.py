"""Monte-Carlo dropout: what becomes active, what does not, and that everything is as before afterwards."""

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, OPTConfig

from helpers.tiny import KINDS, tiny_model
from uncertune.errors import UserError
from uncertune.uncertainty import dropout_places, mc_dropout, sample_seed, token_uncertainty
from uncertune.uncertainty.sites import own_reads

IDS = torch.arange(3, 15)[None]


def from_config(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)
    return model


def opt(**options):
    sizes = {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    return from_config(OPTConfig(vocab_size=97, num_hidden_layers=2, max_position_embeddings=64, **sizes, **options))


def lora(model, **options):
    model = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": "all-linear", **options}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero effect
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def snapshot(model):
    """Everything that may not change: modules by identity, their attributes by identity, flags, and the RNG."""
    attributes = {
        (name, key): value if type(value) in (bool, int, float) else id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }
    children = {name: id(module) for name, module in model.named_modules()}
    rates = {key: value for key, value in model.config.to_dict().items() if "drop" in key} if is_lm(model) else {}
    return attributes, children, rates, torch.get_rng_state().tolist()


def is_lm(model):
    return hasattr(getattr(model, "config", None), "to_dict")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def mixed_flags(model):
    """Training flags as no call of train() or eval() leaves them."""
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    return model


# ------------------------------------------------------------------------------------------------- every architecture


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [*KINDS, "opt"])
def test_every_place_has_an_effect_is_seeded_and_rate_0_is_the_plain_forward(kind, backend):
    if (kind, backend) == ("gemma2", "sdpa"):
        pytest.skip("transformers: soft-capped attention has no sdpa")
    model = opt(attn_implementation=backend) if kind == "opt" else tiny_model(kind, attn_implementation=backend)
    assert model.config._attn_implementation == backend
    plain, places = logits(model), dropout_places(model)
    assert "attention" in places
    assert ("residual" in places) == (kind in ("phi", "phi3", "gpt2", "opt"))
    for place in [None, *places]:
        with mc_dropout(model, 0.2, 0, place) as reseed:
            first, second = logits(model), logits(model)
            reseed(0)
            again = logits(model)
        with mc_dropout(model, 0.2, 1, place):
            other = logits(model)
        assert not torch.equal(first, plain)
        assert not torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(first, again)
    with mc_dropout(model, 0.0):
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_it_is_the_dropout_of_the_models_own_training_mode(kind, backend):
    rates = {"attention_dropout": 0.2, "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
    model = tiny_model(kind, attn_implementation=backend)
    theirs = tiny_model(kind, attn_implementation=backend, **rates).train()
    with mc_dropout(model, 0.2, seed=5):
        ours = logits(model)
    torch.manual_seed(5)
    torch.testing.assert_close(ours, logits(theirs), rtol=0, atol=1e-6)


def test_one_place_leaves_the_others_still():
    model = tiny_model("phi3", resid_pdrop=0.5, attention_dropout=0.5)
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _m, args, out, name=name: calls.append(torch.equal(args[0], out)))
    with mc_dropout(model, 0.2, places="attention"):
        logits(model)
    assert calls
    assert all(calls)
    gpt2 = tiny_model("gpt2", attn_implementation="sdpa", attn_pdrop=0.5)  # attention is read off a sibling's `.p`
    with mc_dropout(gpt2, 0.2, 3, "residual"):
        assert gpt2.transformer.h[0].attn.training is False
        residual = logits(gpt2)
    gpt2.transformer.h[0].attn.attn_dropout.p = 0.0
    with mc_dropout(gpt2, 0.2, 3, "residual"):
        assert torch.equal(logits(gpt2), residual)


def test_patterns_choose_modules_and_numbers():
    model = tiny_model("phi3")
    for pattern in ("model.layers.1.*", "*.self_attn", "*.resid_mlp_dropout", "*attention_dropout"):
        with mc_dropout(model, 0.5, places=[pattern]):
            assert any(module.training for module in model.modules())
    with mc_dropout(model, 0.5, places=["model.layers.1.*"]):
        assert model.model.layers[0].self_attn.training is False
        assert model.model.layers[1].self_attn.attention_dropout == 0.5


def test_nothing_but_dropout_awakes():
    model = opt(layerdrop=1.0)  # in training mode every layer would be skipped
    with mc_dropout(model, 0.01):
        assert not torch.equal(logits(model), logits(model))
        assert not any(module.training for module in (model, model.model, model.model.decoder))
    with mc_dropout(model, 1e-7):
        torch.testing.assert_close(logits(model), plain_logits(model), rtol=1e-4, atol=1e-4)


def plain_logits(model):
    with mc_dropout(model, 0.0):
        return logits(model)


@pytest.mark.parametrize("make", [opt, lambda: tiny_model("llama"), lambda: lora(tiny_model("llama"))])
def test_gradient_checkpointing_stays_asleep_and_comes_back(make, monkeypatch):
    model = make()
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert layers

    def forbidden(*args, **kwargs):
        raise AssertionError("checkpointed")

    for layer in layers:
        monkeypatch.setattr(layer, "_gradient_checkpointing_func", forbidden, raising=False)
    with mc_dropout(model, 0.2):
        model(IDS).logits.sum().backward()
    assert all(layer.gradient_checkpointing for layer in layers)


# ------------------------------------------------------------------------------------------------------- restoration


def batch_norm():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Sequential(nn.Dropout1d(0.9)))


MODELS = {
    "llama": lambda: tiny_model("llama"),
    "gemma2": lambda: tiny_model("gemma2"),
    "phi3": lambda: tiny_model("phi3"),
    "gpt2": lambda: tiny_model("gpt2"),
    "opt": opt,
    "lora": lambda: lora(tiny_model("llama")),
    "lora dropout": lambda: lora(tiny_model("llama"), lora_dropout=0.3),
    "plain": batch_norm,
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_everything_is_restored(kind, fails):
    model = mixed_flags(MODELS[kind]())
    before = snapshot(model)
    caught = pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext()
    with caught, mc_dropout(model, 0.2, seed=3):
        torch.rand(7)
        assert torch.initial_seed() == 3
        assert sum(module.training for module in model.modules()) > 0
        if fails:
            raise ZeroDivisionError
    assert snapshot(model) == before


def test_contexts_nest():
    model = tiny_model("phi3")
    before = snapshot(model)
    with mc_dropout(model, 0.2, places="attention"):
        outer = snapshot(model)
        with mc_dropout(model, 0.4, seed=9, places="residual"):
            assert model.model.layers[0].self_attn.training is False
        assert snapshot(model) == outer
    assert snapshot(model) == before


def test_running_statistics_are_left_alone():
    model = batch_norm().eval()
    before = copy.deepcopy(model.state_dict())
    with mc_dropout(model, 0.5):
        assert not torch.equal(model(torch.ones(8, 4)), model(torch.ones(8, 4)))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


# --------------------------------------------------------------------------------------------- torch's modules and PEFT


class Functional(nn.Module):
    """Rates in odd places: a number handed to a helper, and one read from a configuration."""

    class Config:
        resid_pdrop = 0.0

    def __init__(self, unused=0.1):
        super().__init__()
        self.config, self.p_dropout, self.unused_dropout = self.Config(), 0.0, unused

    def forward(self, x):
        x = nn.functional.dropout(x, self.p_dropout, self.training)
        return nn.functional.dropout(x, p=self.config.resid_pdrop, training=self.training)


def test_numbers_count_where_the_code_reads_them():
    model = Functional()
    config = model.config
    assert dropout_places(model) == {"residual": ["p_dropout", "config.resid_pdrop"]}
    with mc_dropout(model, 0.25, places="config.*"):
        values = model(torch.ones(4096)).unique().tolist()
        assert config.resid_pdrop == 0.0
        with mc_dropout(model, 0.5):
            assert (model.config.resid_pdrop, model.p_dropout) == (0.5, 0.5)
        assert (model.config.resid_pdrop, model.p_dropout) == (0.25, 0.0)
    assert values == [0.0, pytest.approx(1 / 0.75)]
    assert model.config is config
    assert "unused_dropout" not in own_reads(Functional)


def test_torchs_fused_encoder_layer_does_not_skip_dropout():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.ones(1, 3, 8)
    with torch.no_grad(), mc_dropout(layer, 0.3):
        assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.4}, {"use_dora": True}])
def test_lora_dropout_also_where_peft_built_none(options):
    model = lora(tiny_model("llama"), **options)
    plain = logits(model)
    assert len(dropout_places(model)["lora"]) == 14
    with mc_dropout(model, 0.2, 1, "lora"):
        first, second = logits(model), logits(model)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)
    assert torch.equal(logits(model), plain)


def test_a_merged_or_disabled_adapter_has_no_dropout():
    model = lora(tiny_model("llama"))
    model.merge_adapter()
    assert "lora" not in dropout_places(model)
    model.unmerge_adapter()
    with (
        model.disable_adapter(),
        pytest.raises(UserError, match="no dropout at 'lora'"),
        mc_dropout(model, places="lora"),
    ):
        pass


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(UserError, match=r"^rate: .* is not in \[0, 1\)"), mc_dropout(tiny_model("llama"), rate):
        pass


@pytest.mark.parametrize("places", ["residual", ["attention", "mlp"], "*.nowhere", []])
def test_a_place_the_model_does_not_have_is_refused_with_those_it_has(places):
    with pytest.raises(UserError) as caught, mc_dropout(tiny_model("llama"), places=places):
        pass
    assert "'attention' (model.layers.*.self_attn.attention_dropout)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_dropout_is_refused():
    with pytest.raises(UserError, match="Linear has no dropout"), mc_dropout(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("backend", ["flex_attention", "flash_attention_3", "flash_attention_4", "someone/else"])
def test_attention_that_cannot_drop_is_refused(backend):
    model = tiny_model("phi3")
    model.config._attn_implementation = backend
    with (
        pytest.raises(UserError, match=f"attn_implementation: '{backend}' has no attention dropout"),
        mc_dropout(model),
    ):
        pass
    with mc_dropout(model, places="residual"):
        pass


def test_a_rate_that_no_forward_uses_is_refused_where_there_is_input_to_tell():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 97}
    model = from_config(FalconConfig(**sizes, attn_implementation="sdpa"))  # drops attention only with ALiBi
    with pytest.raises(UserError, match=r"'attention' changes nothing in Falcon.*places=\['residual'\]"):
        token_uncertainty(model, IDS, IDS, samples=2)
    assert token_uncertainty(model, IDS, IDS, samples=2, places="residual").total.shape == (11,)


# --------------------------------------------------------------------------------------------------------------- seeds


def test_seeds_depend_on_all_their_arguments_and_nothing_else():
    ids = torch.tensor([3, 4, 5])
    assert sample_seed(0, ids, 0) == sample_seed(0, ids.int()[None], 0)
    seeds = [sample_seed(*arguments) for arguments in [(0, ids, 0), (1, ids, 0), (0, ids, 1), (0, ids + 1, 0)]]
    seeds += [sample_seed(0, content, 0) for content in (3, "3", b"3")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_dropout_and_bald_need_no_hugging_face_package():
    code = (
        "import sys, uncertune.uncertainty.dropout, uncertune.uncertainty.bald;"
        "print([name for name in ('transformers', 'peft', 'trl', 'accelerate') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_attention_number_of_llama_is_found():
    names = dropout_places(
        from_config(
            LlamaConfig(vocab_size=97, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=1)
        )
    )
    assert names == {"attention": ["model.layers.0.self_attn.attention_dropout"]}
