"""The parts of a Transformer block: attention with rotary positions, SwiGLU, RMSNorm, and weights cast on use.

Weights stay in float32 and are cast to the activations' dtype where they are used, so that the optimiser sees full
precision. State-dict names follow the published checkpoints. Attention has no mask, and is one function in
front of several kernels: FlashAttention 3 (`flash_attn_interface`), 2 (`flash_attn`), or PyTorch's own `sdpa`.
"""

import importlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError, first_line

log = logging.getLogger(__name__)

# Standard deviation of a standard normal that is cut at ±2: sqrt(1 - 4 φ(2) / (2 Φ(2) - 1)).
_CUT = 2.0
_STD_AFTER_CUT = math.sqrt(
    1 - 2 * _CUT * math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi) / math.erf(_CUT / math.sqrt(2))
)


def trunc_normal_init_(tensor: Tensor, std: float = 1.0) -> Tensor:
    """Fill in place from a normal distribution cut at ±2 of its standard deviations, scaled to variance `std`².

    `nn.init.trunc_normal_` alone leaves 0.774 of the variance; JAX's LeCun initialisers correct for it, as HRM does.
    """
    if std == 0:
        return nn.init.zeros_(tensor)
    uncut = std / _STD_AFTER_CUT
    with torch.no_grad():
        # Drawn in fp32: a bfloat16 uniform has only 256 steps below 1, which show in the tails after erfinv.
        drawn = nn.init.trunc_normal_(tensor.float(), std=uncut, a=-_CUT * uncut, b=_CUT * uncut)
        return tensor.copy_(drawn)


def trunc_normal(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """A draw from the distribution of `trunc_normal_init_` with std 1, for use during a step.

    By the inverse of the distribution function: PyTorch's own rejects samples until none is left, which waits for the
    device and takes a number of draws that nobody knows before.
    """
    uniform = torch.rand(shape, device=device, generator=generator)  # in fp32, see above
    inside = uniform.mul_(2).sub_(1).mul_(math.erf(_CUT / math.sqrt(2)))
    return inside.erfinv_().mul_(math.sqrt(2) / _STD_AFTER_CUT).to(dtype)


# q, k, v: (B, S, heads, head_dim) -> (B, S, heads, head_dim)
AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_FLASH_MODULES = {"flash3": "flash_attn_interface", "flash2": "flash_attn"}
_FLASH_CAPABILITY = {"flash3": (9,), "flash2": range(8, 100)}  # major compute capabilities that `auto` uses them on
ATTENTION_KERNELS = ("auto", *_FLASH_MODULES, "sdpa")
HALF = (torch.float16, torch.bfloat16)


class CastedLinear(nn.Module):
    """A linear map with truncated LeCun normal weights and, if asked for, a zero bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_init_(torch.empty(out_features, in_features), std=in_features**-0.5))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.ready: Tensor | None = None  # the weight in the activations' dtype, where `weights_cast` keeps it

    def cast_weight(self, dtype: torch.dtype) -> Tensor:
        if self.ready is not None and self.ready.dtype == dtype and not torch.is_grad_enabled():
            return self.ready
        return self.weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.cast_weight(x.dtype), self.bias.to(x.dtype) if self.bias is not None else None)


@contextmanager
def weights_cast(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block, passes without gradient take weights that are cast once, here, and not in every pass.

    Casting is the same wherever it is done, so that no number changes, as long as the weights do not change within the
    block. Where they have the dtype, nothing happens.
    """
    linears = [m for m in network.modules() if isinstance(m, CastedLinear) and m.weight.dtype != dtype]
    try:
        with torch.no_grad():
            for linear in linears:
                linear.ready = linear.weight.to(dtype)
        yield
    finally:
        for linear in linears:
            linear.ready = None


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
    cos, sin = (table[: x.shape[1]].unsqueeze(-2) for table in cos_sin)
    if cos.requires_grad or sin.requires_grad:  # tables that are learned
        return _rotate(x, cos, sin)
    return _Rotary.apply(x, cos, sin)


class _Rotary(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back: one pass over it, where autograd would make one of each part."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, S, heads, head_dim); cos and sin (S, 1, head_dim), whose second halves repeat the first."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)


class ReasoningModule(nn.Module):
    """A level: its state plus what is injected into it, through a stack of blocks."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, state: Tensor, injection: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> Tensor:
        """-> the new state (B, P + S, D); with `first_only` its position 0 alone, (B, 1, D)."""
        return run_blocks(self.layers, state + injection, cos_sin, first_only)


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
) -> Tensor:
    """x (B, P + S, D) through a stack of blocks; with `first_only` only position 0 comes out, (B, 1, D)."""
    for block in blocks[:-1]:
        x = block(x, cos_sin)
    return blocks[-1](x, cos_sin, first_only)


class Block(nn.Module):
    """A post-norm Transformer block."""

    def __init__(self, hidden_size: int, num_heads: int, expansion: float, eps: float, kernel: AttentionKernel):
        super().__init__()
        self.eps = eps
        self.self_attn = Attention(hidden_size, num_heads, kernel)
        self.mlp = SwiGLU(hidden_size, expansion)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False) -> Tensor:
        attended = self.self_attn(x, cos_sin, first_only)
        x = rms_norm((x[:, :1] if first_only else x) + attended, self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


class Attention(nn.Module):
    rotate = staticmethod(apply_rotary)

    def __init__(self, hidden_size: int, num_heads: int, kernel: AttentionKernel):
        super().__init__()
        self.num_heads, self.kernel = num_heads, kernel
        self.qkv_proj = CastedLinear(hidden_size, 3 * hidden_size, bias=False)
        self.o_proj = CastedLinear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False) -> Tensor:
        """x (B, S, hidden) -> (B, S, hidden); with `first_only` (B, 1, hidden), what position 0 takes from all."""
        batch, length, hidden = x.shape
        queries = 1 if first_only else length
        if first_only:
            of_q, of_kv = self.qkv_proj.cast_weight(x.dtype).split([hidden, 2 * hidden])
            q, kv = F.linear(x[:, :1], of_q), F.linear(x, of_kv)
        else:
            q, kv = self.qkv_proj(x).split([hidden, 2 * hidden], dim=-1)
        heads = (self.num_heads, hidden // self.num_heads)
        q = q.view(batch, queries, *heads)
        k, v = kv.view(batch, length, 2, *heads).unbind(2)  # (B, S, heads, head_dim)
        if cos_sin is not None:
            q, k = self.rotate(q, cos_sin), self.rotate(k, cos_sin)
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


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention, which runs on every device and in every floating-point dtype."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _flash(name: str) -> AttentionKernel:
    flash_attn_func = importlib.import_module(_FLASH_MODULES[name]).flash_attn_func
    if not callable(flash_attn_func):
        raise TypeError("flash_attn_func is no function")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not q.is_cuda:  # the model was built on a GPU and moved
            return sdpa(q, k, v)
        out = flash_attn_func(q, k, v, causal=False)
        return out[0] if isinstance(out, tuple) else out  # FA3 returns the log-sum-exp too

    return attend


@cache
def select_attention(name: str, device_type: str, dtype: torch.dtype) -> AttentionKernel:
    """The kernel for `name`; `auto` takes FA3, then FA2, on CUDA in half precision, else SDPA. Logs each choice once.

    A package that is installed but broken is passed over with a warning. Raises `UserError` for a kernel that is not
    known, or was named but does not import or fit the device and dtype.
    """
    if name not in ATTENTION_KERNELS:
        raise UserError(f"unknown attention kernel '{name}'; choose one of {', '.join(ATTENTION_KERNELS)}")
    fits = device_type == "cuda" and dtype in HALF
    wanted = [name] if name != "auto" else []
    if name == "auto" and fits:
        major, _ = torch.cuda.get_device_capability()
        wanted = [kernel for kernel, needed in _FLASH_CAPABILITY.items() if major in needed]
    if device_type == "meta":  # nothing is computed there
        return sdpa
    if name in _FLASH_MODULES and not fits:
        raise UserError(f"arch.attention={name} needs CUDA and half precision, not {device_type} and {dtype}; use auto")
    for candidate in wanted:
        if candidate == "sdpa":
            break
        module = _FLASH_MODULES[candidate]
        try:
            kernel = _flash(candidate)
        except Exception as error:  # a package built for another PyTorch or CUDA may raise anything
            if name != "auto":
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise UserError(f"arch.attention={name}: {module} does not work here ({reason}); use auto") from None
            if not (isinstance(error, ModuleNotFoundError) and error.name == module):
                log.warning("%s is installed but broken (%s: %s)", module, type(error).__name__, first_line(error))
            continue
        log.info("attention: %s", candidate)
        return kernel
    log.info("attention: sdpa")
    return sdpa
