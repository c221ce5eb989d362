"""Memory that a model asks for and that is not there, refused before it is taken.

An operating system hands out more memory than it has, and kills the process when it is used: nobody then says why.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from errors import UserError

REMEDY = (
    "choose a smaller model (arch.hidden_size, arch.puzzle_emb_ndim), smaller batches, or a dataset with a smaller "
    "vocabulary or fewer puzzles"
)
WORTH_ASKING = 1 << 28  # bytes; for less the question would take longer than it is worth
_BY_SHAPE = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}


def available_memory(device: torch.device) -> int | None:
    """Bytes that a new tensor on the device may have at most; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type not in ("cpu", "mps"):
        return None
    limits = [_of_the_host(), _of_the_container()]
    return min((limit for limit in limits if limit is not None), default=None)


def _of_the_host() -> int | None:
    with suppress(OSError, ValueError, IndexError):  # not Linux
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_the_container() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups 2 and 1
        with suppress(OSError, ValueError):
            return int(Path("/sys/fs/cgroup", name).read_text())
    return None


def check_available(size: float, what: str, device: torch.device, remedy: str = REMEDY) -> None:
    """Raise `UserError`, ended by `remedy`, if the device does not have this many bytes for `what`."""
    if size < WORTH_ASKING:
        return
    there = available_memory(device)
    if there is not None and size > there:
        raise UserError(f"{what}: {size / 1e9:,.1f} GB, but {device} has {there / 1e9:,.1f} GB to give; {remedy}")


class CheckedAllocations(TorchFunctionMode):
    """A context for building a module: one that the device has no memory for is refused before it is taken.

    `build` builds the same module. It is called, on the device `meta`, where tensors have shapes alone, once the module
    turns out to be large. `what` names the module.
    """

    def __init__(self, device: torch.device, build: Callable[[], nn.Module], what: str):
        super().__init__()
        self._device, self._build, self._what = device, build, what
        self._taken, self._whole_is_checked = 0, device.type == "meta"

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        shape = _shape_of(function, args, kwargs)
        if shape is not None:
            size = math.prod(shape) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
            self._taken += size
            if self._taken >= WORTH_ASKING and not self._whole_is_checked:
                self._whole_is_checked = True
                self._check_whole()
            check_available(size, f"{self._what} asks for a tensor of {_in_words(shape)}", self._device)
        return function(*args, **kwargs)

    def _check_whole(self) -> None:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                module = self._build()
        except Exception:  # an architecture that computes with values, or a size beyond 64 bits: each tensor tells
            return
        tensors = {name: (t.numel() * t.element_size(), t.shape) for name, t in _tensors_of(module)}
        name, (_, shape) = max(tensors.items(), key=lambda item: item[1][0])
        whole = sum(size for size, _ in tensors.values())
        check_available(whole, f"{self._what} needs memory (most for {name}, {_in_words(shape)})", self._device)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _in_words(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _shape_of(function: Any, args: tuple, kwargs: dict) -> tuple[int, ...] | None:
    """The shape of the new tensor that a call makes; None for a call that makes none, or a small one."""
    if function is torch.arange and len(args) == 1 and isinstance(args[0], int):
        return args
    if function not in _BY_SHAPE:
        return None
    shape = kwargs.get("size", args)
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        (shape,) = shape
    return tuple(shape) if all(isinstance(length, int) for length in shape) else None
