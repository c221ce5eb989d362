"""`torch.compile`, block by block: the same speed as the whole model for a fraction of the compile time."""

import logging
import os

import torch
from torch import nn

from models.hrm.hrm_act_v1 import Block

log = logging.getLogger(__name__)

# On a CPU compiling costs 15 to 30 s and saves a sixth (hidden size 64) to a third (128) of a step. It pays within a
# run from about this much work on, in steps × rows × positions × weights of the blocks: 1,750 steps of the demo, 90 at
# hidden size 128 and batch 64. Counted, not timed: the same run must not compile here and there not.
CPU_MIN_WORK = 5e11
EVALUATION = 3 / 8  # of a training step's operations, for a reasoning step without gradients (benchmarks/flops.py)


def compile_blocks(head: nn.Module, mode: str, device: torch.device, steps: float, rows: int | None = None) -> bool:
    """Compile every `Block` of the model in place (state-dict keys stay), or say why not; -> whether it was done.

    `mode` is `on`, `off`, or `auto`: on CUDA, and on a CPU where it pays within `steps` training steps, or what takes
    as long, of batches of `rows` (default: training's). `DISABLE_COMPILE=1` wins. One block is tried out first, forward
    and backward, so that a toolchain that does not work costs a warning only.
    """
    if os.environ.get("DISABLE_COMPILE", "0") not in ("", "0") or mode == "off":
        return False
    inner = head.model.inner
    rows = rows or inner.config.batch_size
    if mode == "auto" and not pays(head, device, steps * rows):
        return False
    x = torch.ones_like(inner.empty_carry(rows, device).z_H)  # no random draws: they are the run's
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


def pays(head: nn.Module, device: torch.device, sequences: float) -> bool:
    """Whether compiling saves more time than it takes, for so many sequences of all steps together."""
    if device.type != "cpu":
        return device.type == "cuda"
    inner = head.model.inner
    positions = inner.puzzle_emb_len + inner.config.seq_len
    weights = sum(p.numel() for level in (inner.H_level, inner.L_level) for p in level.parameters())
    return sequences * positions * weights >= CPU_MIN_WORK
