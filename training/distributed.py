"""The one place that knows about ranks. One process is the same code with a world of size 1."""

import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from errors import UserError
from training import launcher

DEVICES = ("auto", "cuda", "mps", "cpu")


def select_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if name not in DEVICES:
        raise UserError(f"device={name!a:.50} is unknown; it is one of {', '.join(DEVICES)}")
    if not available[name]:
        usable = ", ".join(device for device, there in available.items() if there)
        raise UserError(f"device={name} is not available to this PyTorch ({torch.__version__}); usable here: {usable}")
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            f"lower --nproc-per-node to that"
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def device_name(device: torch.device) -> str:
    """What a record says of the device. The results of a CPU depend on the vector instructions that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = [processor_name()] + ([torch.backends.cpu.get_cpu_capability()] if device.type == "cpu" else [])
    return f"{device.type} ({', '.join(about)})"


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # another system than Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.processor() or platform.machine())


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> "Ranks":
        """What torchrun says, or a world of one."""
        get = os.environ.get
        return cls(int(get("RANK", 0)), int(get("WORLD_SIZE", 1)), int(get("LOCAL_RANK", 0)))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def connect(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.world_size > 1:
            # With two backends, the tensor's device decides; PyTorch gives objects and barriers to the CPU's. So a vote
            # does not wait for the kernels that the GPU still has to run.
            with launcher.watched():
                dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def close(self) -> None:
        """Disconnect at the end of a run without an error; after an error, torchrun ends the other ranks."""
        if self.world_size > 1:
            # gloo's threads drop their last tensors after the call that used them has returned; a process that leaves
            # just then aborts. By the end of a barrier they are done.
            dist.barrier()
            dist.destroy_process_group()

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """What ranks work together in. One that finds that another has ended says so in a line."""
        self.connect(device)
        try:
            yield
            self.close()
        except RuntimeError as error:
            lost = re.search(r"Connection \w+ by peer( \[\S+\]:\d+)?", str(error))  # in gloo's words
            if self.world_size == 1 or lost is None:
                raise
            raise UserError(f"another rank has ended, and its own output says why ({lost[0]})") from error

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank has set it; the answer is the same on all ranks."""
        if self.world_size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32, device="cpu")
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return votes.bool().tolist()

    def broadcast_object(self, value: Any) -> Any:
        """Give every rank rank 0's value."""
        if self.world_size == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_main(self, call: Callable[[], Any]) -> Any:
        """Give every rank what rank 0's `call()` returns.

        A `UserError` there, or an error of the operating system, ends all ranks: the others leave with its exit code,
        and the line is printed once.
        """
        value, error = None, None
        if self.is_main:
            try:
                value = call()
            except (UserError, OSError) as its:
                error = its
        value, failed = self.broadcast_object((value, error is not None))
        if not failed:
            return value
        raise SystemExit(2) if error is None else error

    def gather_objects(self, value: Any) -> list[Any]:
        """Give every rank the values of all, in order."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def broadcast_module(self, module: nn.Module) -> None:
        """Give every rank rank 0's parameters and saved buffers."""
        if self.world_size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def sum_to_main(self, values: Tensor) -> Tensor:
        """The sum over the ranks, on rank 0; on other ranks the content is undefined."""
        if self.world_size > 1:
            dist.reduce(values, dst=0)
        return values

    def sum_gradients_of(self, module: nn.Module) -> nn.Module:
        """What to call in place of `module`, so that `backward()` leaves sums over the ranks in its gradients.

        This is PyTorch's DistributedDataParallel, which sends gradients during the backward pass; a step that is
        recorded has `GradientSum` instead. It would average them, but the loss is already divided by the global batch,
        so `_sum_bucket` sums them instead. Puzzle embeddings are not parameters; `SparseSignSGD` gathers their
        gradients itself.
        """
        if self.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        with warnings.catch_warnings():  # the option that newer versions want instead would send the buffers once
            warnings.simplefilter("ignore", FutureWarning)
            # The search for unused parameters keeps the buckets as they are: they would be laid out anew after the
            # first step, and with three or more ranks a resumed run would add in another order than one that went on.
            # Each rank then warns once that it found none, past Python's filters.
            parallel = DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
        parallel.register_comm_hook(None, _sum_bucket)
        return parallel


class GradientSum:
    """Sums gradients over the ranks in one call after the backward pass, for a step whose two halves are CUDA graphs.

    `collect` ends the first half and `give_back` begins the second; both work on the device alone and always at the
    same addresses. `exchange` between them is the only one that needs the other ranks.
    """

    def __init__(self, module: nn.Module):
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._flat = torch.cat([torch.zeros_like(p).flatten() for p in self._parameters] or [torch.empty(0)])

    def collect(self) -> None:
        """Raises `UserError` for a parameter without a gradient: the other ranks may have one."""
        if any(p.grad is None for p in self._parameters):
            raise UserError(
                "a step leaves weights without a gradient, which cuda_graph=on cannot sum over several ranks; "
                "use cuda_graph=off"
            )
        if self._parameters:
            torch.cat([p.grad.flatten() for p in self._parameters], out=self._flat)

    def exchange(self) -> None:
        if self._parameters:
            dist.all_reduce(self._flat)

    def give_back(self) -> None:
        parts = self._flat.split([p.numel() for p in self._parameters])
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part.view_as(p)


def _sum_bucket(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
