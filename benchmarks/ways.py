"""The ways to take a training step that are compared: the baseline's and ours, from the same weights and batches.

Ours is what pretrain.py does for a batch (train_step, the metrics reduced and fetched): eager, with its blocks
compiled, and as a CUDA graph.
"""

import argparse
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from benchmarks.baseline import PlainTrainer
from benchmarks.report import timed
from benchmarks.sizes import Size, metadata_of
from dataset.format import PuzzleDatasetMetadata
from puzzle_dataset import Batch
from training.compilation import compile_blocks
from training.config import PretrainConfig
from training.cuda_graph import WARM_UP
from training.distributed import Ranks
from training.metrics import Unread, train_metrics
from training.state import create_state
from training.step import train_step

log = logging.getLogger(__name__)
CHECKED_STEPS = WARM_UP + 3  # a graph is recorded after the warm-up: three of them are replays
# Relative difference of the losses of the first steps that rounding explains; compiled kernels round otherwise.
TOLERANCE = {(torch.float32, False): 1e-5, (torch.float32, True): 1e-4}
HALF_TOLERANCE = 2e-2


class OurTrainer:
    """The same interface as `PlainTrainer`, on what pretrain.py calls."""

    def __init__(
        self,
        config: PretrainConfig,
        metadata: PuzzleDatasetMetadata,
        ranks: Ranks,
        device: torch.device,
    ):
        self.config, self.ranks, self.device = config, ranks, device
        self.state = create_state(config, metadata, ranks, device)
        self.head = self.state.head
        self.unread, self.log_interval, self.late = Unread(ranks), 1, False
        self.head.train()

    def compile(self) -> None:
        if not compile_blocks(self.head, "on", self.device, self.state.total_steps):
            raise RuntimeError("the blocks do not compile here")

    def step(self, batch: Batch) -> dict[str, float] | None:
        """-> the metrics, where they are looked at: every `log_interval` steps, and `late` as in pretrain.py."""
        sums, lr = train_step(self.state, batch, self.config)
        self.unread.add(self.state.step, sums, lr)
        if self.state.step % self.log_interval:
            return None
        read = [train_metrics(v, self.config.global_batch_size, lr) for _, v, lr in self.unread.take(not self.late)]
        return read[-1] if read else None

    def replays(self, batch: Batch) -> bool:
        """After the warm-up: whether steps are launched as a graph, or recording one has failed."""
        graphs = self.state.graphs or {}
        return bool(graphs) and all(graph.ready(batch) for graph in graphs.values())


class Kind(NamedTuple):
    trainer: type[PlainTrainer | OurTrainer]
    compiled: bool = False
    graph: bool = False

    @property
    def compilations(self) -> int:
        """In how many of the first steps: with an empty cache and with a full one. With a graph it is full already."""
        return 0 if not self.compiled else 1 if self.graph else 2


# In this order: a way that measures its compile time empties the compiler's memory. After it, blocks are compiled again
# sooner than a whole model, and a graph must not outlive its kernels.
WAYS = {
    "baseline": Kind(PlainTrainer),
    "eager": Kind(OurTrainer),
    "blocks compiled": Kind(OurTrainer, compiled=True),
    "baseline, compiled": Kind(PlainTrainer, compiled=True),
    "blocks compiled, CUDA graph": Kind(OurTrainer, compiled=True, graph=True),
}
BASELINES = [name for name, kind in WAYS.items() if kind.trainer is PlainTrainer]
OURS = [name for name, kind in WAYS.items() if kind.trainer is OurTrainer]


@dataclass
class Way:
    """A trainer after its first steps, and what was seen of them."""

    trainer: PlainTrainer | OurTrainer
    losses: list[dict[str, float]] = field(default_factory=list)
    first_steps: list[float] = field(default_factory=list)  # seconds
    peak: float = 0.0  # bytes on a CUDA device, without what other ways keep
    times: list[float] = field(default_factory=list)  # seconds a step


def prepare(
    name: str, config: PretrainConfig, size: Size, batches: list[Batch], ranks: Ranks, device: torch.device
) -> Way:
    """Build it from the seed's weights and take the first steps."""
    kind, before = WAYS[name], allocated(device)
    config = config.model_copy(update={"cuda_graph": "on" if kind.graph else "off"})
    torch.manual_seed(0)
    way = Way(kind.trainer(config, metadata_of(size), ranks, device))

    def step(number: int) -> None:
        if number < kind.compilations:
            way.trainer.compile()
        way.losses.append(way.trainer.step(batches[number % len(batches)]))

    for number in range(CHECKED_STEPS):
        if number < kind.compilations and not kind.graph:
            torch.compiler.reset()
        if number == WARM_UP:  # nothing is compiled any more; a graph is recorded, which takes the memory it will have
            reset_peak(device)
        torch.manual_seed(number)  # the same exploration in every way
        way.first_steps.append(timed(lambda number=number: step(number), device))
    way.peak = peak(device) - before
    if kind.graph and not way.trainer.replays(batches[0]):
        raise RuntimeError("the step could not be recorded")
    return way


def build_ways(
    config: PretrainConfig,
    size: Size,
    batches: list[Batch],
    args: argparse.Namespace,
    ranks: Ranks,
    device: torch.device,
    among: Collection[str] = tuple(WAYS),
) -> dict[str, Way]:
    """All that run here, of those that `args.compile` and `args.compile_baseline` ask for."""
    cuda = device.type == "cuda"
    wanted = {
        "baseline, compiled": cuda if args.compile_baseline is None else args.compile_baseline,
        "blocks compiled": args.compile,
        "blocks compiled, CUDA graph": args.compile and cuda,
    }
    ways = {}
    for name in (name for name in WAYS if name in among and wanted.get(name, True)):
        try:
            ways[name] = prepare(name, config, size, batches, ranks, device)
        except Exception as error:
            if not WAYS[name].compiled:
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log.warning("'%s' is left out: %s", name, reason)  # what torch.compile raises may be anything
    return ways


def compared_steps(name: str) -> int:
    """How many of the first steps must be the baseline's: a model compiled as a whole draws other random numbers."""
    return 1 if name == "baseline, compiled" else CHECKED_STEPS


def largest_difference(name: str, way: Way, baseline: Way) -> float:
    """Of the losses of the compared steps, relative to the baseline's."""
    pairs = list(zip(way.losses, baseline.losses, strict=True))[: compared_steps(name)]
    return max(
        abs(ours[key] - plain[key]) / abs(plain[key]) for ours, plain in pairs for key in plain if key.endswith("loss")
    )


def check_same_losses(name: str, way: Way, baseline: Way, dtype: torch.dtype) -> float:
    """-> the largest relative difference; raises `AssertionError` where it is not rounding."""
    difference = largest_difference(name, way, baseline)
    allowed = TOLERANCE.get((dtype, WAYS[name].compiled), HALF_TOLERANCE)
    assert difference <= allowed, f"the losses of '{name}' differ from the baseline's by {difference:.1e} > {allowed}"
    return difference


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Bytes since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
