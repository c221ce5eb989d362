"""Weight initialisation; sending numbers to a device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Standard deviation of a standard normal that is cut at ±2: sqrt(1 - 4 φ(2) / (2 Φ(2) - 1)).
_CUT = 2.0
_STD_AFTER_CUT = math.sqrt(
    1 - 2 * _CUT * math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi) / math.erf(_CUT / math.sqrt(2))
)


def trunc_normal_init_(tensor: Tensor, std: float = 1.0) -> Tensor:
    """Fill in place with a normal cut at 2 of its own standard deviations, whose variance after the cut is `std`².

    `nn.init.trunc_normal_` alone leaves 0.774 of the variance; JAX's LeCun initialisers correct for it, as HRM does.
    """
    if std == 0:
        return nn.init.zeros_(tensor)
    uncut = std / _STD_AFTER_CUT
    with torch.no_grad():
        # Drawn in fp32: a bfloat16 uniform has only 256 steps below 1, and the tails of erfinv show it.
        drawn = nn.init.trunc_normal_(tensor.float(), std=uncut, a=-_CUT * uncut, b=_CUT * uncut)
        return tensor.copy_(drawn)


def send_(place: Tensor, values: Sequence[float]) -> None:
    """Write numbers into `place`, in stream order: the host does not wait for the device."""
    place.copy_(torch.tensor(values, dtype=place.dtype, pin_memory=place.is_cuda), non_blocking=True)
