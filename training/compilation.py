"""`torch.compile`, block by block: the same speed as the whole model for a fraction of the compile time."""

import logging
import os
from collections.abc import Iterable

import torch
from torch import nn

from errors import first_line
from models.act import ACTModel
from models.adam_atan2 import AdamATan2

log = logging.getLogger(__name__)

# On a CPU compiling costs 15 to 30 s and saves a sixth (hidden size 64) to a third (128) of a step. It pays within a
# run of at least this much work, in steps × rows × positions × weights of the blocks: at batch 64, 1,750 steps of an
# HRM of hidden size 64 on 4×4 Sudokus, 90 of one of 128 on 9×9. Work is counted, not timed, so that a run makes the
# same choice on every machine.
CPU_MIN_WORK = 5e11
# Compiling AdamATan2 takes 7 s on the host of an H200, and saves it 0.6 ms a step at 27 million weights.
OPTIMIZER_MIN_STEPS = 20_000
EVALUATION = 3 / 8  # of a training step's operations, for a reasoning step without gradients (training/flops.py)


def compile_blocks(model: ACTModel, mode: str, device: torch.device, steps: float, rows: int | None = None) -> bool:
    """Compile what the architecture names, in place (state-dict keys stay), or say why not; -> whether it was done.

    `mode` is `on`, `off`, or `auto`: on CUDA, and on a CPU if it pays within `steps` training steps (or as much other
    work) on batches of `rows` (default: training's). `DISABLE_COMPILE=1` overrides it. One module is tried out first,
    forward and backward, so that a broken toolchain costs no more than a warning.
    """
    modules = model.inner.compiled_modules()
    if os.environ.get("DISABLE_COMPILE", "0") not in ("", "0") or mode == "off" or not modules:
        return False
    rows = rows or model.data.batch_size
    if mode == "auto" and not pays(model, device, steps * rows):
        return False
    torch._dynamo.config.optimize_ddp = False  # a block is one graph, even if gradients are summed over ranks
    if torch.__version__ < "2.5":
        # Newer ones do it anyway: blocks of one class share a graph, 5 of them and not 33, and one that was made of
        # `CastedLinear.ready` is good for the next step's.
        torch._dynamo.config.inline_inbuilt_nn_modules = True
    try:
        _try_out(model, modules[0], rows, device)
    except Exception as error:  # whatever the compiler stack raises: it is optional
        log.warning("torch.compile does not work here, continuing without: %s", first_line(error))
        return False
    finally:
        model.zero_grad(set_to_none=True)
    for module in modules:
        module.compile(dynamic=False)
    return True


def compile_optimizers(optimizers: Iterable[torch.optim.Optimizer], device: torch.device, steps: float) -> None:
    """Compile AdamATan2 where the model's blocks do compile: 7 passes over the weights in place of 22.

    On CUDA alone, in a run that is long enough for it to pay. It is tried out first, on a few numbers, so that what the
    compiler cannot do costs no more than a warning.
    """
    if device.type != "cuda" or steps < OPTIMIZER_MIN_STEPS:
        return
    for optimizer in (one for one in optimizers if isinstance(one, AdamATan2)):
        few = torch.nn.Parameter(torch.ones(8, device=device))
        few.grad = torch.ones_like(few)
        trial = AdamATan2([few])
        try:
            trial.compile()
            trial.step()
        except Exception as error:  # whatever the compiler stack raises: it is optional
            log.warning("the optimizer does not compile here, continuing without: %s", first_line(error))
            return
        optimizer.compile()


def pays(model: ACTModel, device: torch.device, sequences: float) -> bool:
    """Whether compiling saves more time than it takes, over `sequences`, those of all steps together."""
    if device.type != "cpu":
        return device.type == "cuda"
    weights = sum(p.numel() for module in model.inner.compiled_modules() for p in module.parameters())
    return sequences * model.inner.positions * weights >= CPU_MIN_WORK


class _Tried(Exception):
    """Raised to leave a reasoning step once a module of it has been tried out."""


def _try_out(model: ACTModel, module: nn.Module, rows: int, device: torch.device) -> None:
    """Compile `module` where a reasoning step first calls it, so that training finds what was compiled, and run it
    forward and backward. No random number of the run is used up."""

    def instead(_: nn.Module, args: tuple, kwargs: dict) -> None:
        handle.remove()
        trial = torch.compile(module, dynamic=False)
        with torch.no_grad():
            trial(*args, **kwargs)
        with torch.enable_grad():
            out = trial(*map(_leaf, args), **{name: _leaf(value) for name, value in kwargs.items()})
            (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
        raise _Tried

    data = {
        "inputs": torch.zeros(rows, model.data.seq_len, dtype=torch.int32, device=device),
        "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32, device=device),
    }
    handle = module.register_forward_pre_hook(instead, with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            everything = torch.ones(rows, dtype=torch.bool, device=device)
            model.inner(model.inner.reset_carry(everything, model.inner.empty_carry(rows, device)), data)
    except _Tried:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"a reasoning step does not call its {type(module).__name__}")


def _leaf(value):
    """The value, requiring a gradient if it can have one, as in training."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if is_float else value
