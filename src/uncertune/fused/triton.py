"""The functions of ``elementwise`` as Triton kernels: each reads its products once.

Shape legend: ``t`` tokens of a chunk, ``V`` vocabulary. The same signatures, results in float32. Optional: imported by
``kernels`` on CUDA where Triton is installed. ``TRITON_INTERPRET=1``, Triton's own switch, runs them on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from uncertune.fused.elementwise import Teacher
from uncertune.objectives.head import Finish

BLOCK = 4096
WARPS = 8
LANES = 1024
"""Columns that a kernel which goes over a whole row takes at a time; its sums, one for each, stay in registers."""
LOWEST = tl.constexpr(-1e30)
"""Below every logit: what a lane has seen of a row before its first column."""


@triton.jit
def _finish(u, columns, mask, bias, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Logits of products: (z, dz/du)."""
    if HAS_BIAS:
        u += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    u *= scale
    slope = tl.zeros_like(u) + scale
    if HAS_SOFTCAP:
        decay = tl.exp(-2.0 * tl.abs(u) / softcap)
        tanh = (1.0 - decay) / (1.0 + decay)
        tanh = tl.where(u < 0, -tanh, tanh)
        u = softcap * tanh
        slope *= 1.0 - tanh * tanh
    return u, slope


@triton.jit
def _statistics_kernel(
    raw, row_stride, offset, bias, scale, softcap, log_norm, entropy, top, V,
    HAS_OFFSET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset + row)
    # Each lane of the block sums its own columns, so that the loop has no reduction over threads.
    peak = tl.full([BLOCK], LOWEST, tl.float32)
    norm = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)  # Σ exp(z − peak) · (z − peak)
    best = tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < V
        u = tl.load(raw + row * row_stride + columns, mask=mask, other=0.0).to(tl.float32) + shift
        z, _ = _finish(u, columns, mask, bias, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        z = tl.where(mask, z, LOWEST)
        best = tl.where(z > peak, columns, best)
        new_peak = tl.maximum(peak, z)
        drop, rise = new_peak - peak, z - new_peak
        decay, e = tl.exp(-drop), tl.where(mask, tl.exp(rise), 0.0)
        moment = decay * (moment - drop * norm) + e * rise
        norm = decay * norm + e
        peak = new_peak
    highest = tl.max(peak, 0)
    drop = highest - peak
    share = tl.exp(-drop)
    total = tl.sum(norm * share, 0)
    tl.store(log_norm + row, highest + tl.log(total))
    spread = tl.sum(share * (moment - drop * norm), 0)
    tl.store(entropy + row, tl.maximum(tl.log(total) - spread / total, 0.0))
    best = tl.min(tl.where(peak == highest, best, V), 0).to(tl.int64)
    tl.store(top + row, best)


@triton.jit
def _teacher_statistics_kernel(
    raw, row_stride, offset, bias, scale, softcap,
    teacher, teacher_stride, teacher_bias, teacher_scale, teacher_softcap, teacher_norm, expected, gap, V,
    HAS_OFFSET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    DELTA: tl.constexpr, TEACHER_BIAS: tl.constexpr, TEACHER_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset + row)
    peak = tl.full([BLOCK], LOWEST, tl.float32)  # as in _statistics_kernel, a sum for each lane
    norm = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)  # Σ exp(teacher's z − peak) · z
    excess = tl.zeros([BLOCK], tl.float32)  # Σ exp(teacher's z − peak) · (teacher's z − z)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < V
        u = tl.load(raw + row * row_stride + columns, mask=mask, other=0.0).to(tl.float32) + shift
        v = tl.load(teacher + row * teacher_stride + columns, mask=mask, other=0.0).to(tl.float32)
        if DELTA:
            v = u - v
        z, _ = _finish(u, columns, mask, bias, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        y, _ = _finish(v, columns, mask, teacher_bias, teacher_scale, teacher_softcap, TEACHER_BIAS, TEACHER_SOFTCAP)
        difference = y - z
        y = tl.where(mask, y, LOWEST)
        new_peak = tl.maximum(peak, y)
        decay = tl.exp(peak - new_peak)
        e = tl.where(mask, tl.exp(y - new_peak), 0.0)
        moment = decay * moment + tl.where(mask, e * z, 0.0)
        excess = decay * excess + tl.where(mask, e * difference, 0.0)
        norm = decay * norm + e
        peak = new_peak
    highest = tl.max(peak, 0)
    share = tl.exp(peak - highest)
    total = tl.sum(norm * share, 0)
    tl.store(teacher_norm + row, highest + tl.log(total))
    tl.store(expected + row, tl.sum(moment * share, 0) / total)
    tl.store(gap + row, tl.sum(excess * share, 0) / total)


@triton.jit
def _mean_kernel(
    raw, row_stride, offset, bias, scale, softcap, mean, V,
    HAS_OFFSET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset + row)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < V
        u = tl.load(raw + row * row_stride + columns, mask=mask, other=0.0).to(tl.float32) + shift
        z, _ = _finish(u, columns, mask, bias, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        total += tl.where(mask, z, 0.0)
    tl.store(mean + row, tl.sum(total, 0) / V)


@triton.jit
def _add_kernel(
    raw, row_stride, offset,
    teacher, teacher_stride, teacher_bias, teacher_scale, teacher_softcap, teacher_norm, teacher_weight,
    out, out_stride, V,
    HAS_OFFSET: tl.constexpr, DELTA: tl.constexpr, TEACHER_BIAS: tl.constexpr, TEACHER_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < V
    v = tl.load(teacher + row * teacher_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if DELTA:
        u = tl.load(raw + row * row_stride + columns, mask=mask, other=0.0).to(tl.float32)
        if HAS_OFFSET:
            u += tl.load(offset + row)
        v = u - v
    y, _ = _finish(v, columns, mask, teacher_bias, teacher_scale, teacher_softcap, TEACHER_BIAS, TEACHER_SOFTCAP)
    share = tl.exp(y - tl.load(teacher_norm + row)) * tl.load(teacher_weight + row)
    before = tl.load(out + row * out_stride + columns, mask=mask, other=0.0)
    tl.store(out + row * out_stride + columns, before + share, mask=mask)


@triton.jit
def _gradient_kernel(
    raw, row_stride, offset, bias, scale, softcap, log_norm, mass,
    teacher, teacher_stride, teacher_bias, teacher_scale, teacher_softcap, teacher_norm, teacher_weight,
    uniform, mixture, mixture_stride, out, out_stride, V,
    HAS_OFFSET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_UNIFORM: tl.constexpr, HAS_MIXTURE: tl.constexpr, HAS_TEACHER: tl.constexpr,
    DELTA: tl.constexpr, TEACHER_BIAS: tl.constexpr, TEACHER_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < V
    u = tl.load(raw + row * row_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_OFFSET:
        u += tl.load(offset + row)
    z, slope = _finish(u, columns, mask, bias, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    gradient = tl.exp(z - tl.load(log_norm + row)) * tl.load(mass + row)
    if HAS_UNIFORM:
        gradient -= tl.load(uniform + row)
    if HAS_MIXTURE:
        gradient -= tl.load(mixture + row * mixture_stride + columns, mask=mask, other=0.0)
    if HAS_TEACHER:
        v = tl.load(teacher + row * teacher_stride + columns, mask=mask, other=0.0).to(tl.float32)
        if DELTA:
            v = u - v
        y, _ = _finish(v, columns, mask, teacher_bias, teacher_scale, teacher_softcap, TEACHER_BIAS, TEACHER_SOFTCAP)
        gradient -= tl.exp(y - tl.load(teacher_norm + row)) * tl.load(teacher_weight + row)
    tl.store(out + row * out_stride + columns, (gradient * slope).to(out.dtype.element_ty), mask=mask)


def _student(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish) -> tuple[tuple, dict[str, bool]]:
    """Arguments of every kernel that describe the student's logits; an unused pointer may be any tensor."""
    pointers = (raw_tV if offset_t is None else offset_t, raw_tV if finish.bias is None else finish.bias)
    flags = {
        "HAS_OFFSET": offset_t is not None,
        "HAS_BIAS": finish.bias is not None,
        "HAS_SOFTCAP": finish.softcap is not None,
    }
    return (raw_tV, raw_tV.stride(0), *pointers, float(finish.scale), float(finish.softcap or 1.0)), flags


def _teacher(teacher: Teacher) -> tuple[tuple, dict[str, bool]]:
    bias, scale, softcap = teacher.finish
    values = (teacher.raw, teacher.raw.stride(0), teacher.raw if bias is None else bias, float(scale))
    flags = {"DELTA": teacher.delta, "TEACHER_BIAS": bias is not None, "TEACHER_SOFTCAP": softcap is not None}
    return (*values, float(softcap or 1.0)), flags


def statistics(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish) -> tuple[Tensor, Tensor, Tensor]:
    """``elementwise.statistics``."""
    rows, vocabulary = raw_tV.shape
    log_norm_t, entropy_t = (raw_tV.new_empty(rows, dtype=torch.float32) for _ in range(2))
    top_t = raw_tV.new_empty(rows, dtype=torch.long)
    values, flags = _student(raw_tV, offset_t, finish)
    _statistics_kernel[(rows,)](
        *values, log_norm_t, entropy_t, top_t, vocabulary, **flags, BLOCK=LANES, num_warps=WARPS
    )
    return log_norm_t, entropy_t, top_t


def teacher_statistics(
    raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, teacher: Teacher
) -> tuple[Tensor, Tensor, Tensor]:
    """``elementwise.teacher_statistics``."""
    rows, vocabulary = raw_tV.shape
    norm_t, expected_t, gap_t = (raw_tV.new_empty(rows, dtype=torch.float32) for _ in range(3))
    values, flags = _student(raw_tV, offset_t, finish)
    more_values, more_flags = _teacher(teacher)
    _teacher_statistics_kernel[(rows,)](
        *values, *more_values, norm_t, expected_t, gap_t, vocabulary, **flags, **more_flags,
        BLOCK=LANES, num_warps=WARPS,
    )  # fmt: skip
    return norm_t, expected_t, gap_t


def mean_logit(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish) -> tuple[Tensor]:
    """``elementwise.mean_logit``."""
    rows, vocabulary = raw_tV.shape
    mean_t = raw_tV.new_empty(rows, dtype=torch.float32)
    values, flags = _student(raw_tV, offset_t, finish)
    _mean_kernel[(rows,)](*values, mean_t, vocabulary, **flags, BLOCK=LANES, num_warps=WARPS)
    return (mean_t,)


def add_probabilities(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    teacher: Teacher,
    teacher_norm_t: Tensor,
    teacher_weight_t: Tensor,
    out_tV: Tensor,
) -> None:
    """``elementwise.add_probabilities``."""
    rows, vocabulary = raw_tV.shape
    values, flags = _teacher(teacher)
    _add_kernel[(rows, triton.cdiv(vocabulary, BLOCK))](
        raw_tV, raw_tV.stride(0), raw_tV if offset_t is None else offset_t, *values,
        teacher_norm_t.contiguous(), teacher_weight_t.contiguous(), out_tV, out_tV.stride(0), vocabulary,
        HAS_OFFSET=offset_t is not None, **flags, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip


def gradient(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    finish: Finish,
    log_norm_t: Tensor,
    mass_t: Tensor,
    uniform_t: Tensor | None,
    out_tV: Tensor,
) -> None:
    """``elementwise.gradient``."""
    nobody = Teacher(raw_tV, Finish(), False)
    student = (raw_tV, offset_t, finish, log_norm_t, mass_t, uniform_t)
    _launch_gradient(*student, nobody, None, None, None, out_tV)


def taught_gradient(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    finish: Finish,
    log_norm_t: Tensor,
    mass_t: Tensor,
    uniform_t: Tensor | None,
    teacher: Teacher,
    teacher_norm_t: Tensor,
    teacher_weight_t: Tensor,
    mixture_tV: Tensor | None,
    out_tV: Tensor,
) -> None:
    """``elementwise.taught_gradient``."""
    student = (raw_tV, offset_t, finish, log_norm_t, mass_t, uniform_t)
    _launch_gradient(*student, teacher, teacher_norm_t, teacher_weight_t, mixture_tV, out_tV)


def _launch_gradient(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    finish: Finish,
    log_norm_t: Tensor,
    mass_t: Tensor,
    uniform_t: Tensor | None,
    teacher: Teacher,
    teacher_norm_t: Tensor | None,
    teacher_weight_t: Tensor | None,
    mixture_tV: Tensor | None,
    out_tV: Tensor,
) -> None:
    rows, vocabulary = raw_tV.shape
    values, flags = _student(raw_tV, offset_t, finish)
    more_values, more_flags = _teacher(teacher)
    given = (teacher_norm_t, teacher_weight_t, uniform_t)
    norm_t, weight_t, even_t = (log_norm_t if part is None else part.contiguous() for part in given)
    mixed_tV = raw_tV if mixture_tV is None else mixture_tV
    _gradient_kernel[(rows, triton.cdiv(vocabulary, BLOCK))](
        *values, log_norm_t, mass_t, *more_values, norm_t, weight_t, even_t, mixed_tV, mixed_tV.stride(0),
        out_tV, out_tV.stride(0), vocabulary, **flags, **more_flags, HAS_UNIFORM=uniform_t is not None,
        HAS_MIXTURE=mixture_tV is not None, HAS_TEACHER=teacher_norm_t is not None, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
