"""Time of one training step: python -m benchmarks.step [--size small|sudoku|arc|maze] [--batch N] [options]

Ours is what pretrain.py does for a batch: eager, with its blocks compiled, and on CUDA as a graph too. The baseline
(benchmarks/baseline.py) starts from the same weights on the same batches in the same process; it is eager, and on CUDA,
or with --compile-baseline, compiled as a whole too. Before timing, the losses of the first steps are compared: in
float32 eager ones must agree to 1e-5. See benchmarks/ways.py.

With --loader the batches of the timed steps come from a made-up dataset (Sudoku: 162 MB of temporary disk) as each side
loads them: on CUDA with one worker, the baseline's a process, ours a thread; elsewhere without.

Prints the time a step, first steps with an empty and with a filled compiler cache (`cold`, `warm`), operations a second
and the share of the roofline (benchmarks/flops.py), on CUDA the peak memory. Under torchrun with several ranks too. The
target stands with the fastest of ours, against the faster baseline on CUDA and the eager one on a CPU.
Cost on 2 cores: a minute and a half for the default size, a minute more with --compile-baseline.
"""

import argparse
import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import loader
from benchmarks.baseline import PlainDataset, PlainTrainer
from benchmarks.flops import Device, count_parameters, describe_device, roofline, step_kernels, total
from benchmarks.report import Result, in_turns, parser, positive, publish
from benchmarks.sizes import SIZES, config_of, random_batches, write_dataset
from benchmarks.ways import BASELINES, OURS, WAYS, OurTrainer, Way, build_ways, check_same_losses
from errors import one_line_errors
from puzzle_dataset import Batch, PuzzleDataset
from training.data import BATCHES_AHEAD
from training.distributed import Ranks, select_device

STEPS_A_TURN = 10  # on CUDA: the host runs ahead of the device, as in training
TARGETS = {  # device, size, global batch size, with the loader
    ("cpu", "small", 64, False): 1.2,
    ("cuda", "sudoku", 768, False): 1.1,
    ("cuda", "sudoku", 96, True): 2.0,
    ("cuda", "arc", 96, False): 1.2,
}


def run(args: argparse.Namespace, ranks: Ranks, device: torch.device) -> list[Result]:
    name = args.size or ("toy" if args.toy else "sudoku" if device.type == "cuda" else "small")
    results = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", scratch)  # empty, so that `cold` is what it says
        figures = describe_device(device, args.dtype)
        for batch in [args.batch] if args.batch else SIZES[name].batches:
            results += measure(name, batch, args, ranks, device, figures, Path(scratch))
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    return results


def measure(
    name: str,
    batch: int,
    args: argparse.Namespace,
    ranks: Ranks,
    device: torch.device,
    figures: Device,
    scratch: Path,
) -> list[Result]:
    """The rows of one batch size."""
    size = SIZES[name]
    config = config_of(size, batch, f"arch.forward_dtype={args.dtype}")
    config.check_ranks(ranks.world_size)
    local = batch // ranks.world_size
    made_up = list(itertools.islice(random_batches(size, local, device, seed=ranks.rank), 4))
    ways = build_ways(config, size, made_up, args, ranks, device)
    head = ways["eager"].trainer.head
    dtype = head.model.inner.forward_dtype
    differences = {}
    if ranks.is_main:  # the others do not have the sums
        differences = {w: check_same_losses(w, ways[w], ways["baseline"], dtype) for w in ways if w != "baseline"}

    if args.loader:
        streams = loaded_batches(name, batch, args, ranks, device, scratch)
    else:
        streams = {kind: itertools.cycle(made_up) for kind in (PlainTrainer, OurTrainer)}
    time_ways(ways, streams, args, device, desc=f"step, {name}, batch {batch}")

    count = count_parameters(head)
    kernels = {f: list(step_kernels(head.model.config, local, count, fused=f, size=dtype.itemsize)) for f in (0, 1)}
    limits = {bool(fused): roofline(kernels[fused], figures) for fused in kernels}
    label = f"{name}, batch {batch}, {str(dtype).removeprefix('torch.')}"
    label += ", real loader" if args.loader else ""
    label += f", log_interval {args.log_interval}" if args.log_interval > 1 else ""
    results = rows(label, ways, differences, total(kernels[True]).flops, limits)
    results[0].details["device"] = figures.source
    target = TARGETS.get((device.type, name, batch, args.loader))
    results[list(pairs(ways)).index(judged_pair(ways, device))].target = target
    return results


def time_ways(
    ways: dict[str, Way],
    streams: dict[type, Iterator[Batch]],
    args: argparse.Namespace,
    device: torch.device,
    desc: str,
) -> None:
    """Fill in the `times`. What a loader read ahead while another way had its turn is taken off before."""
    ours = [way.trainer for name, way in ways.items() if name in OURS]
    for trainer in ours:
        trainer.log_interval, trainer.late = args.log_interval, True
    steps = STEPS_A_TURN if device.type == "cuda" else 1
    steps = -(-steps // args.log_interval) * args.log_interval

    def turn(name: str) -> None:
        trainer = ways[name].trainer
        for batch in itertools.islice(streams[type(trainer)], steps):
            trainer.step(batch)

    def before(name: str) -> None:
        if args.loader and device.type == "cuda":
            loader.drain(streams[type(ways[name].trainer)], 2 * BATCHES_AHEAD)

    calls = {name: lambda name=name: turn(name) for name in ways}
    for name, seconds in in_turns(calls, args.repeats, device, before=before, desc=desc).items():
        ways[name].times = [value / steps for value in seconds]


def loaded_batches(
    name: str, batch: int, args: argparse.Namespace, ranks: Ranks, device: torch.device, scratch: Path
) -> dict[type, Iterator[Batch]]:
    """Endless streams on the device, of the trainers that they are for; checked to be the same where they must be."""
    size, folder = SIZES[name], scratch / f"{name}-{batch}"
    shape = "sudoku" if size.seq_len == 81 else "arc"
    folder.mkdir()
    write_dataset(folder, "train", size, *loader.shapes(args.toy)[shape])

    def opened(kind: type[PuzzleDataset]) -> PuzzleDataset:
        return loader.open_dataset(kind, folder, loader.EPOCHS[shape], batch, ranks)

    if shape == "sudoku":
        loader.check_same_loading(opened(PuzzleDataset), opened(PlainDataset))
    workers = 1 if device.type == "cuda" else 0
    streams = {
        PlainTrainer: loader.plain_loader(opened(PlainDataset), workers, device),
        OurTrainer: loader.our_loader(opened(PuzzleDataset), workers, device),
    }
    next(streams[PlainTrainer])  # forks its worker before ours has a thread
    return {kind: moved(stream, device) for kind, stream in streams.items()}


def moved(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield {name: field.to(device) for name, field in batch.items()}


def pairs(ways: dict[str, Way]) -> Iterator[tuple[str, str]]:
    """Each of ours with each baseline."""
    return ((ours, baseline) for ours in OURS for baseline in BASELINES if ours in ways and baseline in ways)


def rows(
    label: str, ways: dict[str, Way], differences: dict[str, float], flops: float, limits: dict[bool, float]
) -> list[Result]:
    results = []
    for ours, baseline in pairs(ways):
        against = "eager" if baseline == "baseline" else "compiled as a whole"
        row = Result("step", f"{label}: {ours} against a plain port, {against}", ways[baseline].times, ways[ours].times)
        row.details["losses differ by"] = differences.get(ours, math.nan)
        row.details |= speed(ways[ours], flops, limits) | first_steps("", ours, ways[ours])
        row.details |= first_steps("baseline ", baseline, ways[baseline])
        if ways[ours].peak:
            row.details |= {"peak GB": ways[ours].peak / 2**30, "baseline peak GB": ways[baseline].peak / 2**30}
        results.append(row)
    return results


def judged_pair(ways: dict[str, Way], device: torch.device) -> tuple[str, str]:
    """The fastest of ours, and the baseline that a target is about."""

    def fastest(among: list[str]) -> str:
        return min((name for name in among if name in ways), key=lambda name: statistics.median(ways[name].times))

    return fastest(OURS), fastest(BASELINES) if device.type == "cuda" else "baseline"


def speed(way: Way, flops: float, limits: dict[bool, float]) -> dict[str, float | str]:
    seconds = statistics.median(way.times)
    return {
        "TFLOP a step": flops / 1e12,
        "TFLOP/s": flops / seconds / 1e12,
        "share of the roofline": f"{limits[False] / seconds:.0%} of {1e3 * limits[False]:.3g} ms with separate "
        f"element-wise kernels, {limits[True] / seconds:.0%} of {1e3 * limits[True]:.3g} ms fully fused",
    }


def first_steps(prefix: str, name: str, way: Way) -> dict[str, str]:
    if WAYS[name].compilations < 2:
        return {}
    cold, warm = way.first_steps[:2]
    return {f"{prefix}first step": f"{cold:.1f} s cold, {warm:.1f} s warm"}


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = parser(doc)
    args.add_argument("--size", choices=SIZES, help="default: sudoku on CUDA, else small")
    args.add_argument("--batch", type=positive, help="global batch size (default: those of the size)")
    args.add_argument("--loader", action="store_true", help="batches from the real loaders, not from memory")
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
