"""The element-wise part by hand in Triton and compiled equals the plain functions; which of them runs is told."""

import importlib.util
import os
import subprocess
import sys
import warnings

import pytest
import torch

from helpers.cases import ALL_CASES, T, V, labels
from uncertune.fused import elementwise, kernels, projection, score_tokens
from uncertune.fused import linear_weighted_nll as fused_nll
from uncertune.fused.elementwise import Teacher
from uncertune.objectives import Finish

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

HEADS = {"plain": Finish(), "all": Finish(torch.randn(V), 0.7, 5.0), "scaled": Finish(None, 1.5, None)}


def triton_kernels():
    from uncertune.fused import triton

    return triton


IMPLEMENTATIONS = {
    "triton": pytest.param(
        triton_kernels,
        marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (pip install triton)"),
        id="triton",
    ),
    "compiled": pytest.param(kernels._compiled, id="compiled"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [False, True], ids=["", "offset"])
@pytest.mark.parametrize("finish", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("make", IMPLEMENTATIONS.values())
def test_equals_the_plain_functions(make, finish, offset, dtype, monkeypatch):
    run = make()
    if make is triton_kernels:
        for size in ("BLOCK", "LANES"):
            monkeypatch.setattr(run, size, 16)  # several blocks, the last one ragged
    finish = finish._replace(bias=None if finish.bias is None else finish.bias.to(DEVICE))
    raw = (4 * torch.randn(T, V, device=DEVICE)).to(dtype)
    offset_t = 10 * torch.randn(T, device=DEVICE) if offset else None
    close = {"rtol": 1e-5, "atol": 1e-5}
    plain = elementwise.statistics(raw, offset_t, finish)
    for ours, theirs in zip(run.statistics(raw, offset_t, finish), plain, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    (mean_t,), (want_t,) = run.mean_logit(raw, offset_t, finish), elementwise.mean_logit(raw, offset_t, finish)
    torch.testing.assert_close(mean_t, want_t, **close)
    norm_t, mass_t = plain[0], torch.randn(T, device=DEVICE)
    wanted = torch.empty_like(raw)
    uniform = torch.rand(T, device=DEVICE)
    for uniform_t in (None, uniform):
        elementwise.gradient(raw, offset_t, finish, norm_t, mass_t, uniform_t, wanted)
        out = raw.clone()  # in place
        run.gradient(out, offset_t, finish, norm_t, mass_t, uniform_t, out)
        torch.testing.assert_close(out, wanted)
    for delta in (True, False):
        theirs_finish = finish if delta else Finish(None, 1.1, 4.0)
        teacher = Teacher((0.1 * torch.randn(T, V, device=DEVICE)).to(dtype), theirs_finish, delta)
        theirs = elementwise.teacher_statistics(raw, offset_t, finish, teacher)
        for ours, plain_t in zip(run.teacher_statistics(raw, offset_t, finish, teacher), theirs, strict=True):
            torch.testing.assert_close(ours, plain_t, **close)
        weight_t, mixture = torch.rand(T, device=DEVICE), torch.rand(T, V, device=DEVICE)
        added = [mixture.clone(), mixture.clone()]
        elementwise.add_probabilities(raw, offset_t, teacher, theirs[0], weight_t, added[0])
        run.add_probabilities(raw, offset_t, teacher, theirs[0], weight_t, added[1])
        torch.testing.assert_close(*added)
        for uniform_t, mixture_tV in ((None, None), (uniform, mixture)):
            arguments = (offset_t, finish, norm_t, mass_t, uniform_t, teacher, theirs[0], weight_t, mixture_tV)
            elementwise.taught_gradient(raw, *arguments, wanted)
            mine = raw.clone()
            run.taught_gradient(mine, *arguments, mine)
            torch.testing.assert_close(mine, wanted)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (pip install triton)")
@pytest.mark.parametrize(
    "name",
    [
        "mle",
        "masked_mle_distill/factored",
        "truncated_distill/tail",
        "masked_mle_distill/everything",
    ],
)
def test_triton_behind_the_front_door(name, monkeypatch):
    """The whole loss and its gradients, with the Triton kernels in place of the plain functions."""
    hidden = torch.randn(T, 8, requires_grad=True, device=DEVICE)
    head = torch.randn(V, 8, requires_grad=True, device=DEVICE)
    if DEVICE == "cuda":
        pytest.skip("the cases are made on the CPU")
    targets = ALL_CASES[name](torch.float32, T)

    def outcome():
        loss = fused_nll(hidden, head, targets, softcap=5.0, scale=0.9)
        return loss, *torch.autograd.grad(loss.sum(), (hidden, head))

    plain = outcome()
    used = []

    def chosen(raw):
        used.append(raw.shape)
        return triton_kernels()

    monkeypatch.setattr("uncertune.fused.chunk.kernels", chosen)
    for ours, theirs in zip(outcome(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert used


def large(monkeypatch):
    """Every vocabulary counts as large: rounded products and compiled functions."""
    monkeypatch.setattr(projection, "LARGE_VOCABULARY", 1)
    monkeypatch.setattr(kernels.CompiledFunction, "works", True)


def test_where_compiling_fails_the_plain_functions_run_and_one_line_says_so(monkeypatch):
    large(monkeypatch)
    monkeypatch.setattr(projection, "CHUNK_ROWS", {"cpu": 5})
    monkeypatch.setattr(kernels, "PLAIN_BYTES", 2 * V * 4)  # blocks of two rows
    hidden, head, y = torch.randn(T, 8), torch.randn(V, 8), labels()
    monkeypatch.setattr(projection, "LARGE_VOCABULARY", V + 1)
    want = score_tokens(hidden, head, y).stats
    monkeypatch.setattr(projection, "LARGE_VOCABULARY", 1)

    def broken(*_):
        raise RuntimeError("no C++ compiler\nand a long story")

    for function in vars(kernels._compiled()).values():
        monkeypatch.setattr(function, "fast", broken)
    with pytest.warns(UserWarning, match=r"torch.compile does not work here \(no C\+\+ compiler\): .* uncompiled"):
        got = score_tokens(hidden, head, y).stats
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.entropy, want.entropy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_tokens(hidden, head, y)  # said once


def test_running_out_of_memory_is_not_a_broken_compiler(monkeypatch):
    large(monkeypatch)

    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(kernels._compiled().statistics, "fast", full)
    with pytest.raises(torch.OutOfMemoryError):
        score_tokens(torch.randn(T, 8), torch.randn(V, 8), labels())
    assert kernels.CompiledFunction.works


def test_small_vocabularies_and_float64_run_plain():
    assert kernels.kernels(torch.zeros(1, projection.LARGE_VOCABULARY - 1)) is elementwise
    assert kernels.kernels(torch.zeros(1, projection.LARGE_VOCABULARY, dtype=torch.float64)) is elementwise
    assert kernels.kernels(torch.zeros(1, projection.LARGE_VOCABULARY)) is kernels._compiled()


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from uncertune.fused import triton as kernels

HALF = ("raw", "teacher")
TYPES = {"row_stride": "i32", "teacher_stride": "i32", "mixture_stride": "i32", "out_stride": "i32", "V": "i32"}
TYPES |= {name: "fp32" for name in ("scale", "softcap", "teacher_scale", "teacher_softcap")} | {"top": "*i64"}
for name in ("statistics", "teacher_statistics", "mean", "add", "gradient"):
    kernel = getattr(kernels, f"_{name}_kernel")
    for everything in (False, True):
        constants = {one: everything for one in kernel.arg_names if one.isupper() and one != "V"} | {"BLOCK": 1024}
        types = {one: TYPES.get(one, "*bf16" if one in HALF else "*fp32") for one in kernel.arg_names}
        source = ASTSource(kernel, {**types, **dict.fromkeys(constants, "constexpr")}, constants)
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
        print(name, len(made.asm["cubin"]))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (pip install triton)")
def test_they_compile_for_a_gpu():
    """To machine code of compute capability 9.0, by the assembler that Triton brings; no GPU takes part."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False, env=plain)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 10
