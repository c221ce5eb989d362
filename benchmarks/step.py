"""Time of one training step: python -m benchmarks.step [--size small|sudoku|arc|maze] [--batch N] [key=value …]

Ours is what pretrain.py does for a batch (train_step, the metrics reduced and fetched): eager, with blocks compiled,
and on CUDA also as a graph. The baseline (benchmarks/baseline.py) starts from the same weights on the same batches in
the same process; it is eager and, on CUDA or with --compile-baseline, also compiled as a whole. Before timing, the
losses of the first steps are compared: in float32, eager ones must agree to 1e-5.

`key=value` are settings of pretrain.py, such as arch.forward_dtype=float32 or log_interval=10. With --loader the
batches of the timed steps come from a made-up dataset (Sudoku: 162 MB of temporary disk) as each side loads them: on
CUDA with one worker, the baseline's a process, ours a thread; elsewhere without.

Prints the time per step, that of the first step with an empty and with a filled compiler cache (`cold`, `warm`),
operations per second and the share of the roofline (benchmarks/flops.py), and on CUDA the peak memory. Runs under
torchrun too. The target is for the fastest of ours, against the faster baseline on CUDA and the eager one on a CPU.
Cost on 2 cores: a minute and a half for the default size, a minute more with --compile-baseline.
"""

import argparse
import itertools
import logging
import math
import os
import statistics
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import loader
from benchmarks.baseline import PlainTrainer
from benchmarks.flops import measure_device, roofline
from benchmarks.report import Result, in_turns, positive, publish, timed, timing_parser
from benchmarks.sizes import SIZES, Size, config_of, default_size, forward_dtype, random_batches
from dataset.format import PuzzleDatasetMetadata
from errors import first_line, one_line_errors
from puzzle_dataset import Batch
from training.compilation import compile_blocks, compile_optimizers
from training.config import PretrainConfig
from training.cuda_graph import WARM_UP
from training.data import BATCHES_AHEAD
from training.distributed import Ranks, select_device
from training.flops import step_kernels
from training.metrics import Unread, train_metrics
from training.step import create_state, train_step

log = logging.getLogger(__name__)
CHECKED_STEPS = WARM_UP + 3  # a graph is recorded after the warm-up: three of them are replays
# Relative difference of the losses of the first steps that rounding explains; compiled kernels round differently.
TOLERANCE = {(torch.float32, False): 1e-5, (torch.float32, True): 1e-4}
HALF_TOLERANCE = 2e-2
STEPS_A_TURN = 10  # on CUDA: the host runs ahead of the device, as in training
TARGETS = {  # device, size, global batch size, with the loader
    ("cpu", "small", 64, False): 1.2,
    ("cuda", "sudoku", 768, False): 1.1,
    ("cuda", "sudoku", 96, True): 2.0,
    ("cuda", "arc", 96, False): 1.2,
}


class OurTrainer:
    """What pretrain.py calls, with the interface of `PlainTrainer`."""

    def __init__(self, config: PretrainConfig, metadata: PuzzleDatasetMetadata, ranks: Ranks, device: torch.device):
        self.config, self.device = config, device
        self.state = create_state(config, metadata, ranks, device)
        self.head = self.state.head.train()
        self.unread, self.log_interval, self.late = Unread(ranks), 1, False

    def compile(self) -> None:
        if not compile_blocks(self.head.model, "on", self.device, self.state.total_steps):
            raise RuntimeError("the blocks do not compile here")
        compile_optimizers(self.state.optimizers, self.device, self.state.total_steps)

    def step(self, batch: Batch) -> dict[str, float] | None:
        """-> the metrics, if they are looked at: every `log_interval` steps, and late, as in pretrain.py."""
        sums, lr = train_step(self.state, batch, self.config)
        self.unread.add(self.state.step, sums, lr)
        if self.state.step % self.log_interval:
            return None
        read = [train_metrics(v, self.config.global_batch_size, lr) for _, v, lr in self.unread.take(not self.late)]
        return read[-1] if read else None

    def replays(self, batch: Batch) -> bool:
        """After the warm-up: True if steps are launched as a graph, False if recording one has failed."""
        graphs = self.state.graphs or {}
        return bool(graphs) and all(graph.ready(batch) for graph in graphs.values())


class Kind(NamedTuple):
    trainer: type[PlainTrainer | OurTrainer]
    compilations: int = 0  # first steps that compile; two: with an empty cache, then with a full one
    graph: bool = False


# The order matters: a way that measures its compile time empties the compiler's memory. After that, blocks are compiled
# again sooner than a whole model, and a graph must not outlive its kernels.
WAYS = {
    "baseline": Kind(PlainTrainer),
    "eager": Kind(OurTrainer),
    "blocks compiled": Kind(OurTrainer, compilations=2),
    "baseline, compiled": Kind(PlainTrainer, compilations=2),
    "blocks compiled, CUDA graph": Kind(OurTrainer, compilations=1, graph=True),
}
BASELINES = [name for name, kind in WAYS.items() if kind.trainer is PlainTrainer]
OURS = [name for name, kind in WAYS.items() if kind.trainer is OurTrainer]


@dataclass
class Way:
    """A trainer after its first steps, and what was seen of them."""

    trainer: PlainTrainer | OurTrainer
    losses: list[dict[str, float]] = field(default_factory=list)
    first_steps: list[float] = field(default_factory=list)  # seconds
    peak: float = 0.0  # bytes on a CUDA device, without those that other ways hold
    times: list[float] = field(default_factory=list)  # seconds per step


def prepare(
    name: str, config: PretrainConfig, size: Size, batches: list[Batch], ranks: Ranks, device: torch.device
) -> Way:
    """Build a way from the seed's weights and take its first steps."""
    kind, cuda = WAYS[name], device.type == "cuda"
    config = config.model_copy(update={"cuda_graph": "on" if kind.graph else "off"})
    before = torch.cuda.memory_allocated(device) if cuda else 0
    torch.manual_seed(0)
    way = Way(kind.trainer(config, size.metadata, ranks, device))

    def step(number: int) -> None:
        if number < kind.compilations:
            way.trainer.compile()
        way.losses.append(way.trainer.step(batches[number % len(batches)]))

    for number in range(CHECKED_STEPS):
        if number < kind.compilations and not kind.graph:
            torch.compiler.reset()
        if number == WARM_UP and cuda:  # nothing is compiled any more; recording a graph takes the memory it will have
            torch.cuda.reset_peak_memory_stats(device)
        torch.manual_seed(number)  # the same exploration in every way
        way.first_steps.append(timed(lambda number=number: step(number), device))
    if cuda:
        way.peak = torch.cuda.max_memory_allocated(device) - before
    assert not kind.graph or way.trainer.replays(batches[0]), "the step was not replayed"
    return way


def build_ways(
    config: PretrainConfig,
    size: Size,
    batches: list[Batch],
    ranks: Ranks,
    device: torch.device,
    *,
    compiled: bool,
    compiled_baseline: bool | None = None,
    among: Collection[str] = tuple(WAYS),
) -> dict[str, Way]:
    """All ways that run here, including compiled ones if asked for; None means on CUDA."""
    cuda = device.type == "cuda"
    wanted = {
        "baseline, compiled": cuda if compiled_baseline is None else compiled_baseline,
        "blocks compiled": compiled,
        "blocks compiled, CUDA graph": compiled and cuda,
    }
    ways = {}
    for name in (name for name in WAYS if name in among and wanted.get(name, True)):
        try:
            ways[name] = prepare(name, config, size, batches, ranks, device)
        except Exception as error:
            if not WAYS[name].compilations:
                raise
            log.warning("'%s' is left out: %s", name, first_line(error))  # what torch.compile raises may be anything
    return ways


def compared_steps(name: str) -> int:
    """How many first steps must equal the baseline's: a model compiled as a whole draws other random numbers."""
    return 1 if name == "baseline, compiled" else CHECKED_STEPS


def largest_difference(name: str, way: Way, baseline: Way) -> float:
    """Largest difference of the losses of the compared steps, relative to the baseline's."""
    pairs = list(zip(way.losses, baseline.losses, strict=True))[: compared_steps(name)]
    return max(
        abs(ours[key] - plain[key]) / abs(plain[key]) for ours, plain in pairs for key in plain if key.endswith("loss")
    )


def check_same_losses(name: str, way: Way, baseline: Way, dtype: torch.dtype) -> float:
    """-> the largest relative difference; raises `AssertionError` if it is more than rounding."""
    difference = largest_difference(name, way, baseline)
    allowed = TOLERANCE.get((dtype, WAYS[name].compilations > 0), HALF_TOLERANCE)
    assert difference <= allowed, f"the losses of '{name}' differ from the baseline's by {difference:.1e} > {allowed}"
    return difference


def run(args: argparse.Namespace, ranks: Ranks, device: torch.device) -> list[Result]:
    name = args.size or default_size(args.toy, device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", scratch)  # empty, so that `cold` is what it says
        batches = [args.batch] if args.batch else SIZES[name].batches
        results = [row for batch in batches for row in measure(name, batch, args, ranks, device, Path(scratch))]
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    return results


def measure(
    name: str, batch: int, args: argparse.Namespace, ranks: Ranks, device: torch.device, scratch: Path
) -> list[Result]:
    """Time one batch size; -> its rows."""
    size = SIZES[name]
    config = config_of(size, batch, *args.overrides)
    config.check_ranks(ranks.world_size)
    local = batch // ranks.world_size
    made_up = list(itertools.islice(random_batches(size, local, device, seed=ranks.rank), 4))
    ways = build_ways(
        config, size, made_up, ranks, device, compiled=args.compile, compiled_baseline=args.compile_baseline
    )
    head = ways["eager"].trainer.head
    dtype = forward_dtype(head)
    label = ", ".join([name, f"batch {batch}", str(dtype).removeprefix("torch."), *args.overrides])
    differences = {}
    if ranks.is_main:  # the others do not have the sums
        differences = {w: check_same_losses(w, ways[w], ways["baseline"], dtype) for w in ways if w != "baseline"}

    streams = (itertools.cycle(made_up), itertools.cycle(made_up))
    if args.loader:
        label += ", real loader"
        streams = loaded_batches(name, batch, args.toy, ranks, device, scratch)
    streams = dict(zip((PlainTrainer, OurTrainer), streams, strict=True))
    time_ways(ways, streams, args, config.log_interval, device)

    figures, kernels = measure_device(device, dtype), step_kernels(head, local)
    results = []
    for ours, baseline in pairs(ways):
        against = "eager" if baseline == "baseline" else "compiled as a whole"
        row = Result("step", f"{label}: {ours} against a plain port, {against}", ways[baseline].times, ways[ours].times)
        row.details["losses differ by"] = differences.get(ours, math.nan)
        row.details |= speed(ways[ours], sum(kernel.flops for kernel in kernels), roofline(kernels, head, figures))
        for whose, way in (("", ours), ("baseline ", baseline)):
            if WAYS[way].compilations == 2:
                row.details[f"{whose}first step"] = "{:.1f} s cold, {:.1f} s warm".format(*ways[way].first_steps[:2])
            if device.type == "cuda":
                row.details[f"{whose}peak GB"] = ways[way].peak / 2**30
        if (ours, baseline) == judged_pair(ways, device):
            row.target = TARGETS.get((device.type, name, batch, args.loader))
        results.append(row)
    results[0].details["device"] = figures.source
    return results


def time_ways(
    ways: dict[str, Way],
    streams: dict[type, Iterator[Batch]],
    args: argparse.Namespace,
    log_interval: int,
    device: torch.device,
) -> None:
    """Fill in the `times`. What a loader read ahead during another way's turn is taken off first."""
    for name in OURS:
        if name in ways:
            ways[name].trainer.log_interval, ways[name].trainer.late = log_interval, True
    steps = STEPS_A_TURN if device.type == "cuda" else 1
    steps = -(-steps // log_interval) * log_interval

    def turn(name: str) -> None:
        trainer = ways[name].trainer
        for batch in itertools.islice(streams[type(trainer)], steps):
            trainer.step(batch)

    def before(name: str) -> None:
        if args.loader and device.type == "cuda":
            loader.drain(streams[type(ways[name].trainer)], 2 * BATCHES_AHEAD)

    calls = {name: lambda name=name: turn(name) for name in ways}
    for name, seconds in in_turns(calls, args.repeats, device, before).items():
        ways[name].times = [value / steps for value in seconds]


def loaded_batches(
    name: str, batch: int, toy: bool, ranks: Ranks, device: torch.device, scratch: Path
) -> list[Iterator[Batch]]:
    """Endless streams of batches on the device, the baseline's and ours."""
    shape = "sudoku" if SIZES[name].seq_len == 81 else "arc"
    folder = loader.write_shape(shape, scratch / f"{name}-{batch}", toy)
    streams = loader.loader_streams(shape, folder, batch, 1 if device.type == "cuda" else 0, device, ranks)
    next(streams[0])  # forks its worker before ours has a thread
    return [({key: field.to(device) for key, field in batch.items()} for batch in stream) for stream in streams]


def pairs(ways: dict[str, Way]) -> Iterator[tuple[str, str]]:
    """Yield each of ours with each baseline."""
    return ((ours, baseline) for ours in OURS for baseline in BASELINES if ours in ways and baseline in ways)


def judged_pair(ways: dict[str, Way], device: torch.device) -> tuple[str, str]:
    """The fastest of ours, and the baseline that a target is about."""

    def fastest(among: list[str]) -> str:
        return min((name for name in among if name in ways), key=lambda name: statistics.median(ways[name].times))

    return fastest(OURS), fastest(BASELINES) if device.type == "cuda" else "baseline"


def speed(way: Way, flops: float, limit: float) -> dict[str, float | str]:
    seconds = statistics.median(way.times)
    share = f"{limit / seconds:.0%} of {1e3 * limit:.3g} ms"
    return {"TFLOP a step": flops / 1e12, "TFLOP/s": flops / seconds / 1e12, "share of the roofline": share}


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = timing_parser(doc, repeats=5)
    args.add_argument("overrides", nargs="*", metavar="key=value", help="settings of pretrain.py")
    args.add_argument("--size", choices=SIZES, help="default: sudoku on CUDA, else small")
    args.add_argument("--batch", type=positive, help="global batch size (default: those of the size)")
    args.add_argument("--loader", action="store_true", help="take batches from the real loaders, not from memory")
    yes_or_no = argparse.BooleanOptionalAction
    args.add_argument("--compile", action=yes_or_no, default=True, help="time ours with compiled blocks too")
    args.add_argument("--compile-baseline", action=yes_or_no, help="time the baseline compiled as a whole too")
    return args


def main() -> None:
    args = options().parse_args()
    with one_line_errors():
        ranks = Ranks.from_environment()
        device = select_device(args.device, ranks.local_rank)
        with ranks.connected(device):
            publish(run(args, ranks, device), device, args.json)


if __name__ == "__main__":
    main()
