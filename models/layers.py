"""The parts of a Transformer block: attention with rotary positions, SwiGLU, RMSNorm, and weights cast on use.

Weights stay in float32 and are cast to the activations' dtype where they are used, so that the optimiser sees full
precision. State-dict names follow the published checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import AttentionKernel
from models.common import trunc_normal_init_


class CastedLinear(nn.Module):
    """A linear map with truncated LeCun normal weights and, where asked for, a zero bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_init_(torch.empty(out_features, in_features), std=in_features**-0.5))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype) if self.bias is not None else None)


class CastedEmbedding(nn.Module):
    """An embedding table that is cast before the look-up."""

    def __init__(self, num_embeddings: int, embedding_dim: int, init_std: float, cast_to: torch.dtype):
        super().__init__()
        self.cast_to = cast_to
        self.embedding_weight = nn.Parameter(trunc_normal_init_(torch.empty(num_embeddings, embedding_dim), init_std))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding_weight.to(self.cast_to))


class RotaryEmbedding(nn.Module):
    """Cosines and sines of rotary position embeddings (Su et al. 2021), half-split layout."""

    def __init__(self, head_dim: int, max_positions: int, base: float):
        super().__init__()
        inv_freq = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inv_freq).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (positions, head_dim)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


def apply_rotary(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, S, heads, head_dim) by its position, in float32."""
    cos, sin = (table[: x.shape[1]].unsqueeze(-2) for table in cos_sin)  # (S, 1, head_dim)
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, kernel: AttentionKernel):
        super().__init__()
        self.num_heads, self.kernel = num_heads, kernel
        self.qkv_proj = CastedLinear(hidden_size, 3 * hidden_size, bias=False)
        self.o_proj = CastedLinear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False) -> Tensor:
        """x (B, S, hidden) -> the same, or with `first_only` (B, 1, hidden): what position 0 takes from all."""
        batch, length, hidden = x.shape
        queries = 1 if first_only else length
        if first_only:
            of_q, of_kv = self.qkv_proj.weight.to(x.dtype).split([hidden, 2 * hidden])
            q, kv = F.linear(x[:, :1], of_q), F.linear(x, of_kv)
        else:
            q, kv = self.qkv_proj(x).split([hidden, 2 * hidden], dim=-1)
        heads = (self.num_heads, hidden // self.num_heads)
        q = q.view(batch, queries, *heads)
        k, v = kv.view(batch, length, 2, *heads).unbind(2)  # (B, S, heads, head_dim)
        if cos_sin is not None:
            q, k = apply_rotary(q, cos_sin), apply_rotary(k, cos_sin)
        return self.o_proj(self.kernel(q, k, v).reshape(batch, queries, hidden))


class SwiGLU(nn.Module):
    def __init__(self, hidden_size: int, expansion: float):
        super().__init__()
        # Two thirds of the width make up for the third matrix of a gated unit; multiples of 256 suit the hardware.
        width = -(-round(expansion * hidden_size * 2 / 3) // 256) * 256
        self.gate_up_proj = CastedLinear(hidden_size, 2 * width, bias=False)
        self.down_proj = CastedLinear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, in float32, without a learned weight."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
