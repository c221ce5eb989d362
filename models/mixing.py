"""TRM's mixing of positions (`mlp_t`) as one kernel, for passes without gradient: two thirds of those of a step.

A SwiGLU over positions, the residual and the norm, which PyTorch's compiled blocks do in several kernels and with two
transposes. Here what lies between never goes through the device's memory, and nothing is transposed in it: 0.27 in
place of 0.47 ms at (384, 97, 512) on an H200 (docs/performance-log.md).

Written in Triton, which PyTorch brings for CUDA; only `models/trm.py` imports this file, and only where it is used.
Values are rounded to the activations' dtype where the compiled blocks round them, and sums are in float32, as theirs:
results differ by the order of sums. The tile is fixed, not tuned while running, so that a run repeats to the byte.
Shapes: B sequences, S positions, D hidden size, W the width of the SwiGLU.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# Channels and columns of the width at a time; the fastest of those in benchmarks/mixing.py on an H200.
TILE, LAUNCH = (64, 64), dict(num_warps=4, num_stages=2)


@triton.jit
def _silu_times(gate, up, dtype: tl.constexpr):
    """silu(gate) * up in float32, of sums that are first rounded to `dtype`."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return (gate / (1 + tl.exp(-gate)) * up).to(dtype)


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
    across = tl.trans(state)
    mixed = tl.zeros((BD, BP), tl.float32)
    for start in range(0, W, BW):
        gate = tl.dot(across, tl.load(gate_up + (start + w)[None, :] * BP + p[:, None]))
        up = tl.dot(across, tl.load(gate_up + (W + start + w)[None, :] * BP + p[:, None]))
        inner = _silu_times(gate, up, state.dtype)
        mixed = tl.dot(inner, tl.load(down + p[None, :] * W + (start + w)[:, None]), mixed)
    y = state.to(tl.float32) + tl.trans(mixed.to(state.dtype).to(tl.float32))
    y *= tl.rsqrt(tl.sum(y * y, 0) / length + eps)[None, :]
    tl.store(out + at, y.to(state.dtype), mask=inside)


@torch.library.custom_op("hrm::mix", mutates_args=())
def mix(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """x (B, S, D), gate_up (2 W, S), down (S, W) -> rms_norm(xᵀ + SwiGLU(xᵀ))ᵀ, (B, S, D), the norm over positions."""
    (batch, length, hidden), width = x.shape, down.shape[1]
    BD, BW = TILE
    assert hidden % BD == 0 and width % BW == 0 and gate_up.shape == (2 * width, length) and len(down) == length
    block = max(16, triton.next_power_of_2(length))
    gate_up = F.pad(gate_up, (0, block - length)).contiguous()
    down = F.pad(down, (0, 0, 0, block - length)).contiguous()
    x, out = x.contiguous(), x.new_empty(x.shape)
    _mix[(batch * (hidden // BD),)](
        x, gate_up, down, out, length, eps, hidden, width, block, BD, BW, **LAUNCH
    )  # fmt: skip
    return out


@mix.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def try_out(dtype: torch.dtype) -> None:
    """Run the kernel once, small. Raises whatever Triton raises where it does not work."""
    with torch.device("cuda"):
        x = torch.zeros(1, 16, TILE[0], dtype=dtype)
        mix(x, x.new_zeros(512, 16), x.new_zeros(16, 256), 1e-5)
    torch.cuda.synchronize()
