"""Time of one training step: python -m benchmarks.step [--size small|sudoku|arc|maze] [--batch N] [options]

Ours is what pretrain.py does for a batch (train_step, the metrics reduced and fetched), eager and with its blocks
compiled. The baseline (benchmarks/baseline.py) starts from the same weights on the same batches in the same process; it
is eager on a CPU, and on CUDA, or with --compile-baseline, compiled as a whole too. Before timing, the losses of the
first steps are compared: in float32 eager ones must agree to 1e-5.

Prints the time a step, first steps with an empty and with a filled compiler cache (`cold`, `warm`), operations a second
and the share of the roofline (benchmarks/flops.py), on CUDA the peak memory. Under torchrun with several ranks too.
Cost on 2 cores: a minute and a half for the default size, a minute more with --compile-baseline.
"""

import argparse
import logging
import math
import os
import statistics
import tempfile
from dataclasses import dataclass, field

import torch

from benchmarks.baseline import PlainTrainer
from benchmarks.flops import Device, count_parameters, describe_device, roofline, step_kernels, total
from benchmarks.report import Result, in_turns, parser, positive, publish, timed
from benchmarks.sizes import SIZES, Size, config_of, metadata_of, random_batches
from dataset.common import PuzzleDatasetMetadata
from errors import one_line_errors
from puzzle_dataset import Batch
from training.compilation import compile_blocks
from training.config import PretrainConfig
from training.distributed import Ranks, select_device
from training.metrics import Unread, train_metrics
from training.state import create_state
from training.step import train_step

log = logging.getLogger(__name__)
CHECKED_STEPS = 4
# Relative difference of the losses of the first steps that rounding explains; compiled kernels round otherwise.
TOLERANCE = {(torch.float32, False): 1e-5, (torch.float32, True): 1e-4}
HALF_TOLERANCE = 2e-2
TARGET = {"small": 1.2}


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


# name -> (class, compiled)
WAYS = {
    "baseline": (PlainTrainer, False),
    "baseline, compiled": (PlainTrainer, True),
    "eager": (OurTrainer, False),
    "blocks compiled": (OurTrainer, True),
}


@dataclass
class Way:
    """A trainer after its first steps, and what was seen of them."""

    trainer: PlainTrainer | OurTrainer
    losses: list[dict[str, float]]
    first_steps: list[float]  # seconds
    memory: int  # bytes that it keeps on a CUDA device
    times: list[float] = field(default_factory=list)
    peak: float = 0.0  # bytes, on CUDA


def prepare(
    name: str, config: PretrainConfig, size: Size, batches: list[Batch], ranks: Ranks, device: torch.device
) -> Way:
    """Build it from the seed's weights and take the first steps, of which two compile: cold, and from the cache."""
    kind, compiled = WAYS[name]
    before = allocated(device)
    torch.manual_seed(0)
    trainer = kind(config, metadata_of(size), ranks, device)
    losses, seconds = [], []

    def step(number: int) -> None:
        if compiled and number < 2:
            trainer.compile()
        losses.append(trainer.step(batches[number % len(batches)]))

    for number in range(CHECKED_STEPS):
        if compiled and number < 2:
            torch.compiler.reset()
        torch.manual_seed(number)  # the same exploration in every way
        seconds.append(timed(lambda number=number: step(number), device))
    return Way(trainer, losses, seconds, allocated(device) - before)


def check_same_losses(name: str, way: Way, baseline: Way, dtype: torch.dtype) -> float:
    """-> the largest relative difference; raises `AssertionError` where it is not rounding.

    A model compiled as a whole draws other random numbers, so that only its first step is the same.
    """
    compiled = WAYS[name][1]
    steps = 1 if name == "baseline, compiled" else CHECKED_STEPS
    difference = 0.0
    for ours, theirs in list(zip(way.losses, baseline.losses, strict=True))[:steps]:
        for key in (key for key in theirs if key.endswith("loss")):
            difference = max(difference, abs(ours[key] - theirs[key]) / abs(theirs[key]))
    allowed = TOLERANCE.get((dtype, compiled), HALF_TOLERANCE)
    assert difference <= allowed, f"the losses of '{name}' differ from the baseline's by {difference:.1e} > {allowed}"
    return difference


def run(args: argparse.Namespace, ranks: Ranks, device: torch.device) -> list[Result]:
    name = args.size or ("toy" if args.toy else "sudoku" if device.type == "cuda" else "small")
    size = SIZES[name]
    results = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)  # empty, so that `cold` is what it says
        figures = describe_device(device, args.dtype)
        for batch in [args.batch] if args.batch else size.batches:
            results += measure(name, size, batch, args, ranks, device, figures)
        if os.environ["TORCHINDUCTOR_CACHE_DIR"] == cache:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    return results


def measure(
    name: str, size: Size, batch: int, args: argparse.Namespace, ranks: Ranks, device: torch.device, figures: Device
) -> list[Result]:
    config = config_of(size, batch, f"arch.forward_dtype={args.dtype}")
    config.check_ranks(ranks.world_size)
    local = batch // ranks.world_size
    source = random_batches(size, local, device, seed=ranks.rank)
    batches = [next(source) for _ in range(4)]
    ways = build_ways(config, size, batches, args, ranks, device)
    dtype = ways["baseline"].trainer.head.model.inner.forward_dtype
    differences = {}
    if ranks.is_main:  # the others do not have the sums
        differences = {w: check_same_losses(w, ways[w], ways["baseline"], dtype) for w in ways if w != "baseline"}
    for way in ("eager", "blocks compiled"):
        if way in ways:
            ways[way].trainer.log_interval, ways[way].trainer.late = args.log_interval, True

    def a_turn(trainer: PlainTrainer | OurTrainer) -> None:
        for number in range(args.log_interval):
            trainer.step(batches[number % len(batches)])

    calls = {name: lambda way=way: a_turn(way.trainer) for name, way in ways.items()}
    times = in_turns(calls, args.repeats, device, desc=f"step, {name}, batch {batch}")
    for way, seconds in times.items():
        ways[way].times = [value / args.log_interval for value in seconds]
        ways[way].peak = peak_memory(ways[way], calls[way], device)
    kernels = {
        fused: list(
            step_kernels(
                ways["eager"].trainer.head.model.config,
                local,
                count_parameters(ways["eager"].trainer.head),
                fused=fused,
                size=dtype.itemsize,
            )
        )
        for fused in (True, False)
    }
    flops = total(kernels[True]).flops
    limits = {fused: roofline(kernels[fused], figures) for fused in kernels}
    label = f"{name}, batch {batch}, {str(dtype).removeprefix('torch.')}"
    if args.log_interval > 1:
        label += f", log_interval {args.log_interval}"
    return rows(label, ways, differences, flops, limits, figures, TARGET.get(name))


def build_ways(
    config: PretrainConfig,
    size: Size,
    batches: list[Batch],
    args: argparse.Namespace,
    ranks: Ranks,
    device: torch.device,
) -> dict[str, Way]:
    whole = device.type == "cuda" if args.compile_baseline is None else args.compile_baseline
    wanted = {"baseline, compiled": whole, "blocks compiled": args.compile}
    ways = {}
    for name in WAYS:
        if not wanted.get(name, True):
            continue
        try:
            ways[name] = prepare(name, config, size, batches, ranks, device)
        except Exception as error:
            if not WAYS[name][1]:
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log.warning("'%s' is left out: %s", name, reason)  # what torch.compile raises may be anything
    return ways


def rows(
    label: str,
    ways: dict[str, Way],
    differences: dict[str, float],
    flops: float,
    limits: dict[bool, float],
    figures: Device,
    target: float | None,
) -> list[Result]:
    """Each of ours against each baseline; the details stand with the first."""
    results = []
    for ours in ("eager", "blocks compiled"):
        for baseline in ("baseline", "baseline, compiled"):
            if ours not in ways or baseline not in ways:
                continue
            against = "eager" if baseline == "baseline" else "compiled as a whole"
            row = Result(
                "step",
                f"{label}: {ours} against a plain port, {against}",
                ways[baseline].times,
                ways[ours].times,
                target if ours == "blocks compiled" and baseline == "baseline" else None,
            )
            row.details["losses differ by"] = differences.get(ours, math.nan)
            row.details |= speed(ways[ours], flops, limits) | first_steps("", ours, ways[ours])
            row.details |= first_steps("baseline ", baseline, ways[baseline])
            if ways[ours].peak:
                row.details |= {"peak GB": ways[ours].peak / 2**30, "baseline peak GB": ways[baseline].peak / 2**30}
            results.append(row)
    if results:
        results[0].details["device"] = figures.source
    return results


def speed(way: Way, flops: float, limits: dict[bool, float]) -> dict[str, float | str]:
    seconds = statistics.median(way.times)
    return {
        "TFLOP a step": flops / 1e12,
        "TFLOP/s": flops / seconds / 1e12,
        "share of the roofline": f"{limits[False] / seconds:.0%} of {1e3 * limits[False]:.3g} ms with separate "
        f"element-wise kernels, {limits[True] / seconds:.0%} of {1e3 * limits[True]:.3g} ms fully fused",
    }


def first_steps(prefix: str, name: str, way: Way) -> dict[str, str]:
    if not WAYS[name][1]:
        return {}
    cold, warm = way.first_steps[:2]
    return {f"{prefix}first step": f"{cold:.1f} s cold, {warm:.1f} s warm"}


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(way: Way, call, device: torch.device) -> float:
    """What it keeps and what a step adds, in bytes, without what the other ways keep."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = allocated(device)
    call()
    torch.cuda.synchronize(device)
    return way.memory + torch.cuda.max_memory_allocated(device) - before


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = parser(doc)
    args.add_argument("--size", choices=SIZES, help="default: sudoku on CUDA, else small")
    args.add_argument("--batch", type=positive, help="global batch size (default: those of the size)")
    args.add_argument("--log-interval", type=positive, default=1, help="steps between looks at the metrics, ours only")
    args.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of the forward pass")
    yes_or_no = argparse.BooleanOptionalAction
    args.add_argument("--compile", action=yes_or_no, default=True, help="also ours with compiled blocks")
    args.add_argument("--compile-baseline", action=yes_or_no, help="also the baseline compiled as a whole")
    args.set_defaults(repeats=5)
    return args


def main() -> None:
    args = options().parse_args()
    with one_line_errors():
        ranks = Ranks.from_environment()
        device = select_device(args.device, ranks.local_rank)
        ranks.connect(device)
        publish(run(args, ranks, device), device, args.json)
        ranks.close()


if __name__ == "__main__":
    main()
