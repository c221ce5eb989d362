"""Kernels of our own for passes without gradient, which are most of a step: ten of the twelve of a level in HRM.

Each does in one kernel what PyTorch does in several, so that what lies between never goes through the device's memory:

    swiglu      silu(x G) * (x U): the two halves of the first product of a SwiGLU, and what is made of them
    attention   rotary positions and attention, from the product of the queries, keys and values as it is
    mix         TRM's mixing of positions: SwiGLU over positions, residual, norm; nothing is transposed in memory

Written in Triton, which PyTorch brings for CUDA; this file imports it, and only `models/layers.py` imports this file.
Between the kernels' inputs and outputs every intermediate value is rounded to the activations' dtype where PyTorch's
compiled blocks round it, and sums are in float32, as theirs: results differ by the order of sums. Shapes are fixed, not
tuned while running, so that a run repeats to the byte. Shapes: B sequences, S positions, D hidden size, W the width of
a SwiGLU.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv

# Rows, columns and depth of a tile; warps; loads ahead. Not tuned yet.
SWIGLU_TILE, SWIGLU_LAUNCH = (128, 128, 64), dict(num_warps=8, num_stages=3)
ATTENTION_TILE, ATTENTION_LAUNCH = (128, 128), dict(num_warps=8, num_stages=1)
MIX_TILE, MIX_LAUNCH = (128, 64), dict(num_warps=8, num_stages=2)


@triton.jit
def _silu_times(gate, up, dtype: tl.constexpr):
    """silu(gate) * up in float32, of sums that are first rounded to `dtype`."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return (gate / (1 + tl.exp(-gate)) * up).to(dtype)


@triton.jit
def _swiglu(x, weight, out, rows, width, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """One tile of the output. Neighbouring programs share their rows of x, and the weight stays in the L2 cache."""
    columns = tl.cdiv(width, BN)
    m = (tl.program_id(0) // columns).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = m[:, None] < rows
    of_x = x + m[:, None] * K + k[None, :]
    of_gate = weight + n[None, :] * K + k[:, None]
    of_up = of_gate + width * K
    gate = tl.zeros((BM, BN), tl.float32)
    up = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        part = tl.load(of_x + start, mask=inside, other=0)
        gate = tl.dot(part, tl.load(of_gate + start), gate)
        up = tl.dot(part, tl.load(of_up + start), up)
    tl.store(out + m[:, None] * width + n[None, :], _silu_times(gate, up, out.dtype.element_ty), mask=inside)


@torch.library.custom_op("hrm::swiglu", mutates_args=())
def swiglu(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, D), weight (2 W, D), gate before up -> silu(x gate) * (x up), (…, W)."""
    depth, width = x.shape[-1], weight.shape[0] // 2
    x, weight, rows = x.contiguous(), weight.contiguous(), x.numel() // depth
    out = x.new_empty(*x.shape[:-1], width)
    BM, BN, BK = SWIGLU_TILE
    _swiglu[(cdiv(rows, BM) * (width // BN),)](x, weight, out, rows, width, depth, BM, BN, BK, **SWIGLU_LAUNCH)
    return out


@swiglu.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2)


@triton.jit
def _rotated(at, cos, sin, inside, HALF: tl.constexpr):
    """The two halves of some rows (R, 2 HALF), rotated by their positions, as `layers.apply_rotary` does."""
    first = tl.load(at, mask=inside, other=0)
    second = tl.load(at + HALF, mask=inside, other=0)
    cos, sin = tl.load(cos, mask=inside, other=0), tl.load(sin, mask=inside, other=0)
    one, two = first.to(tl.float32), second.to(tl.float32)
    return (one * cos - two * sin).to(first.dtype), (two * cos + one * sin).to(first.dtype)


@triton.jit
def _attention(
    qkv, cos, sin, out, scale, length: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The answers to BQ queries of one head of one sequence; the softmax is summed up over blocks of BK keys."""
    blocks = tl.cdiv(length, BQ)
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks % HEADS
    width: tl.constexpr = HEADS * 2 * HALF
    start = (tl.program_id(0) // blocks // HEADS).to(tl.int64) * length  # the first row of this sequence
    h = tl.arange(0, HALF)[None, :]
    d = tl.arange(0, 2 * HALF)[None, :]
    rows = block * BQ + tl.arange(0, BQ)[:, None]
    at = qkv + (start + rows) * (3 * width) + head * (2 * HALF)
    of_table = rows * (2 * HALF) + h
    q1, q2 = _rotated(at + h, cos + of_table, sin + of_table, rows < length, HALF)
    highest = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    summed = tl.zeros((BQ, 2 * HALF), tl.float32)
    for first in range(0, length, BK):
        keys = first + tl.arange(0, BK)[:, None]
        inside = keys < length
        at = qkv + (start + keys) * (3 * width) + head * (2 * HALF) + width
        of_table = keys * (2 * HALF) + h
        k1, k2 = _rotated(at + h, cos + of_table, sin + of_table, inside, HALF)
        v = tl.load(at + width + d, mask=inside, other=0)
        score = tl.dot(q2, k2.T, tl.dot(q1, k1.T)) * scale
        score = tl.where(first + tl.arange(0, BK)[None, :] < length, score, float("-inf"))
        now = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - now[:, None])
        fade = tl.exp2(highest - now)
        total = total * fade + tl.sum(weight, 1)
        summed = tl.dot(weight.to(v.dtype), v, summed * fade[:, None])
        highest = now
    at = out + (start + rows) * width + head * (2 * HALF) + d
    tl.store(at, (summed / total[:, None]).to(out.dtype.element_ty), mask=rows < length)


@torch.library.custom_op("hrm::attention", mutates_args=())
def attention(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """qkv (B, S, 3 D), cos and sin (S or more, head size) -> (B, S, D): a position attends to all of its sequence."""
    batch, length, width = qkv.shape
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    out = qkv.new_empty(batch, length, width // 3)
    size = width // 3 // num_heads
    scale = math.log2(math.e) / math.sqrt(size)  # powers of two are faster
    BQ, BK = ATTENTION_TILE
    grid = (batch * num_heads * cdiv(length, BQ),)
    _attention[grid](qkv, cos, sin, out, scale, length, num_heads, size // 2, BQ, BK, **ATTENTION_LAUNCH)
    return out


@attention.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


@triton.jit
def _mix(
    x, gate_up, down, out, length, eps, D: tl.constexpr, W: tl.constexpr,
    BP: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """BD channels of one sequence. Weights are padded with zeros to BP positions: gate_up (2 W, BP), down (BP, W)."""
    p, w = tl.arange(0, BP), tl.arange(0, BW)
    d = tl.program_id(0) % (D // BD) * BD + tl.arange(0, BD)
    at = (tl.program_id(0) // (D // BD)).to(tl.int64) * length * D + p[:, None] * D + d[None, :]
    inside = p[:, None] < length
    state = tl.load(x + at, mask=inside, other=0)  # (BP, BD)
    across = state.T
    mixed = tl.zeros((BD, BP), tl.float32)
    for start in range(0, W, BW):
        gate = tl.dot(across, tl.load(gate_up + (start + w)[None, :] * BP + p[:, None]))
        up = tl.dot(across, tl.load(gate_up + (W + start + w)[None, :] * BP + p[:, None]))
        inner = _silu_times(gate, up, state.dtype)
        mixed = tl.dot(inner, tl.load(down + p[None, :] * W + (start + w)[:, None]), mixed)
    y = state.to(tl.float32) + mixed.to(state.dtype).to(tl.float32).T
    y *= tl.rsqrt(tl.sum(y * y, 0) / length + eps)[None, :]
    tl.store(out + at, y.to(state.dtype), mask=inside)


@torch.library.custom_op("hrm::mix", mutates_args=())
def mix(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """x (B, S, D), gate_up (2 W, S), down (S, W) -> rms_norm(xᵀ + SwiGLU(xᵀ))ᵀ, (B, S, D), the norm over positions."""
    batch, length, hidden = x.shape
    x, width = x.contiguous(), down.shape[1]
    block = max(16, triton.next_power_of_2(length))
    gate_up = torch.nn.functional.pad(gate_up, (0, block - length))
    down = torch.nn.functional.pad(down, (0, 0, 0, block - length))
    out = torch.empty_like(x)
    BD, BW = MIX_TILE
    _mix[(batch * (hidden // BD),)](
        x, gate_up, down, out, length, eps, hidden, width, block, BD, BW, **MIX_LAUNCH
    )  # fmt: skip
    return out


@mix.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def try_out(dtype: torch.dtype) -> None:
    """Run each kernel once, small. Raises whatever Triton raises where it does not work."""
    x = torch.zeros(1, 16, 128, dtype=dtype, device="cuda")
    weight = x.new_zeros(512, 128)
    swiglu(x, weight)
    attention(x.new_zeros(1, 16, 384), x.new_zeros(16, 64).float(), x.new_zeros(16, 64).float(), 2)
    mix(x, x.new_zeros(512, 16), x.new_zeros(16, 256), 1e-5)
    torch.cuda.synchronize()
