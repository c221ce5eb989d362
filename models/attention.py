"""Scaled dot-product attention without a mask: one function, several kernels behind it.

FlashAttention 3 (`flash_attn_interface`), FlashAttention 2 (`flash_attn`), or PyTorch's own `sdpa`.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError

log = logging.getLogger(__name__)

# q, k, v: (B, S, heads, head_dim) -> (B, S, heads, head_dim)
AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_FLASH_MODULES = {"flash3": "flash_attn_interface", "flash2": "flash_attn"}
_FLASH_CAPABILITY = {"flash3": (9,), "flash2": range(8, 100)}  # major compute capabilities that `auto` uses them on
ATTENTION_KERNELS = ("auto", *_FLASH_MODULES, "sdpa")


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention; runs on every device and in every floating dtype."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


@cache
def _flash(name: str) -> AttentionKernel:
    flash_attn_func = importlib.import_module(_FLASH_MODULES[name]).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not q.is_cuda:  # the model was built on a GPU and moved
            return sdpa(q, k, v)
        out = flash_attn_func(q, k, v, causal=False)
        return out[0] if isinstance(out, tuple) else out  # FA3 returns the log-sum-exp too

    return attend


@cache
def select_attention(name: str, device_type: str, dtype: torch.dtype) -> AttentionKernel:
    """The kernel for `name`; `auto` takes FA3, then FA2, on CUDA in half precision, else SDPA. Logged once a choice.

    Raises `UserError` where a kernel is named that is not known or installed, or does not fit device and dtype.
    """
    if name not in ATTENTION_KERNELS:
        raise UserError(f"unknown attention kernel '{name}'; choose one of {', '.join(ATTENTION_KERNELS)}")
    fits = device_type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    wanted = [name] if name != "auto" else []
    if name == "auto" and fits:
        major, _ = torch.cuda.get_device_capability()
        wanted = [kernel for kernel, needed in _FLASH_CAPABILITY.items() if major in needed]
    if name in _FLASH_MODULES and not fits:
        raise UserError(f"arch.attention={name} needs CUDA and half precision, not {device_type} and {dtype}; use auto")
    for candidate in wanted:
        if candidate == "sdpa":
            break
        try:
            kernel = _flash(candidate)
        except ImportError as error:
            if name != "auto":
                module = _FLASH_MODULES[candidate]
                raise UserError(f"arch.attention={name}: {module} does not import ({error}); use auto") from None
            continue
        log.info("attention: %s", candidate)
        return kernel
    log.info("attention: sdpa")
    return sdpa
