"""`torch.compile`, block by block: the same speed as the whole model for a fraction of the compile time."""

import logging
import os

import torch
from torch import nn

from models.hrm.hrm_act_v1 import Block

log = logging.getLogger(__name__)

# On a CPU compiling costs about 20 s and saves about a sixth of a step: shorter runs are over sooner without.
CPU_MIN_STEPS = 2000


def compile_blocks(head: nn.Module, mode: str, device: torch.device, steps: int) -> bool:
    """Compile every `Block` of the model in place (state-dict keys stay), or say why not; -> whether it was done.

    `mode` is `on`, `off`, or `auto`: on CUDA, and on a CPU where `steps` is large enough. `DISABLE_COMPILE=1` wins.
    One block is tried out first, forward and backward, so that a toolchain that does not work costs a warning only.
    """
    if os.environ.get("DISABLE_COMPILE", "0") not in ("", "0") or mode == "off":
        return False
    if mode == "auto" and device.type != "cuda" and not (device.type == "cpu" and steps >= CPU_MIN_STEPS):
        return False
    inner = head.model.inner
    x = torch.ones_like(inner.empty_carry(inner.config.batch_size, device).z_H)  # no random draws: they are the run's
    cos_sin = inner.rotary_emb() if inner.rotary_emb is not None else None
    blocks = [module for module in head.modules() if isinstance(module, Block)]
    try:
        trial = torch.compile(blocks[0], dynamic=False)
        with torch.no_grad():
            trial(x, cos_sin)
        trial(x.requires_grad_(), cos_sin).sum().backward()
    except Exception as error:  # whatever the compiler stack raises: it is optional
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("torch.compile does not work here, continuing without: %s", reason)
        return False
    finally:
        head.zero_grad(set_to_none=True)
    for block in blocks:
        block.compile(dynamic=False)
    return True
