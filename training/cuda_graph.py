"""A step as CUDA graphs: recorded once, then launched as a whole instead of kernel by kernel.

A graph holds addresses, so all that it reads and writes must stay in place: weights, optimiser states, the carry, and
the batch, which is copied to where the recorded one lay. Random draws are the same as without a graph: PyTorch advances
the generator with every replay. If recording fails the run ends: PyTorch's stream, generator and memory pool are then
still those of the recording, and the next step would compute something else.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from errors import UserError, first_line
from puzzle_dataset import Batch
from training.distributed import Ranks

log = logging.getLogger(__name__)

WARM_UP = 3  # steps before recording: they compile, choose kernels and make the optimisers' states
Recorder = Callable[[Callable[[], None]], Callable[[], None]]  # what to record -> what replays it


def uses_graph(mode: str, device: torch.device, ranks: Ranks | None = None) -> bool:
    """Whether to use graphs. `auto`: on CUDA with one rank, as with several it has not been measured yet.

    Raises `UserError` if `on` is not possible.
    """
    if mode == "on" and device.type != "cuda":
        raise UserError(f"cuda_graph=on needs a CUDA device, not {device.type}; use auto")
    alone = ranks is None or ranks.world_size == 1
    return mode == "on" or (mode == "auto" and device.type == "cuda" and alone)


def record_on_cuda(call: Callable[[], None]) -> Callable[[], None]:
    """Record what `call` launches, without running it. Other threads, such as the one that reads ahead, may go on."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


class Graph:
    """Something that is called again and again and works on the same tensors each time."""

    def __init__(self, what: str, record: Recorder = record_on_cuda):
        self._what, self._record = what, record
        self._waited = 0
        self._replay: Callable[[], None] | None = None

    def ready(self, call: Callable[[], None]) -> bool:
        """Whether `replay` can stand in for `call`, which is recorded once the warm-up is over."""
        if self._replay is None:
            if self._waited < WARM_UP:
                self._waited += 1
            else:
                self._make(call)
        return self._replay is not None

    def replay(self) -> None:
        self._replay()

    def _make(self, call: Callable[[], None]) -> None:
        try:
            self._replay = self._record(call)
            log.info("%s is a CUDA graph", self._what)
        except Exception as error:  # of CUDA, of a kernel's library, of the compiler
            raise UserError(
                f"{self._what} cannot be recorded as a CUDA graph ({first_line(error)}); set cuda_graph=off, and "
                f"resume=true if the run had saved a state"
            ) from error


class StepGraph:
    """A training step, from a batch to metrics, in two halves: up to a rank's gradients, and from those of all ranks.

    With one rank it is one graph. With several there is one for each half, and between them `exchange`, which is not
    recorded: what NCCL does while it is depends on its version, and a mistake there is a hang.
    """

    def __init__(
        self,
        gradients: Callable[[Batch], dict[str, Tensor]],
        exchange: Callable[[], None] | None,
        update: Callable[[], None],
        record: Recorder = record_on_cuda,
    ):
        """`exchange` is None with one rank."""
        self._gradients, self._exchange = gradients, exchange
        if exchange is None:
            self._parts = [(Graph("a training step", record), lambda: (self._find(), update()))]
        else:
            self._parts = [
                (Graph("the first half of a training step", record), self._find),
                (Graph("the second half of a training step", record), update),
            ]
        self._batch: Batch = {}
        self._names: list[str] = []
        self._values = torch.empty(0)  # the metrics of the last replay

    def ready(self, batch: Batch) -> bool:
        if not self._batch:
            self._batch = {name: field.clone() for name, field in batch.items()}
        ready = [graph.ready(call) for graph, call in self._parts]  # all of them count the warm-up
        return all(ready)

    def replay(self, batch: Batch) -> dict[str, Tensor]:
        """-> the step's metrics."""
        for name, field in batch.items():
            self._batch[name].copy_(field)
        for number, (graph, _) in enumerate(self._parts):
            if number:
                self._exchange()
            graph.replay()
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))

    def _find(self) -> None:
        metrics = self._gradients(self._batch)
        self._names = list(metrics)
        self._values = torch.stack([value.to(torch.float64) for value in metrics.values()])
