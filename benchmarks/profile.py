"""Where the time of a training step goes: python -m benchmarks.profile [--size sudoku|trm|arc|maze|small] [--batch N]

Profiles 5 steps of ours, in the last of the ways of benchmarks/step.py that works here: on CUDA compiled blocks as a
CUDA graph, on a CPU eager, or compiled with --compile. Prints the 15 kernels (on a CPU: operators, each without those
that it calls) that take the most time, and on CUDA the share of a step in which the device waits for the host to launch
work; that step is timed without the profiler, which slows the host down. Leaves profile-<size>-<batch>.json.gz in --out
for a trace viewer such as Perfetto.

Cost: on 2 cores a minute; on an H100 the compile time, about half a minute for each batch size.
"""

import argparse
import gzip
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import in_turns, parser, positive
from benchmarks.sizes import SIZES, config_of, default_size, random_batches
from benchmarks.step import OURS, build_ways
from errors import one_line_errors
from training.distributed import Ranks, select_device

STEPS, SHOWN = 5, 15
ON_THE_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the profiler's trace


class Spent(NamedTuple):
    calls: int
    microseconds: float


class Slice(NamedTuple):
    """Something that the device did; times are in microseconds."""

    name: str
    start: float
    end: float


def device_slices(trace: dict) -> list[Slice]:
    """What ran on the device, from a trace in Chrome's format."""
    events = (event for event in trace["traceEvents"] if event.get("cat") in ON_THE_DEVICE)
    return [Slice(event["name"], event["ts"], event["ts"] + event["dur"]) for event in events]


def busy(slices: Iterable[Slice]) -> float:
    """Microseconds in which anything ran; streams may overlap."""
    total, until = 0.0, float("-inf")
    for piece in sorted(slices, key=lambda piece: piece.start):
        total += max(0.0, piece.end - max(piece.start, until))
        until = max(until, piece.end)
    return total


def by_name(slices: Iterable[Slice]) -> dict[str, Spent]:
    spent: dict[str, Spent] = {}
    for piece in slices:
        before = spent.get(piece.name, Spent(0, 0.0))
        spent[piece.name] = Spent(before.calls + 1, before.microseconds + piece.end - piece.start)
    return spent


def measure(name: str, batch: int, args: argparse.Namespace, device: torch.device) -> None:
    size = SIZES[name]
    batches = list(itertools.islice(random_batches(size, batch, device), STEPS))
    compiled = device.type == "cuda" if args.compile is None else args.compile
    ways = build_ways(config_of(size, batch), size, batches, Ranks(0, 1, 0), device, among=OURS, compiled=compiled)
    last, way = ways.popitem()
    ways.clear()
    way.trainer.late = True

    def steps() -> None:
        for batch in batches:
            way.trainer.step(batch)

    seconds = statistics.median(in_turns({"": steps}, 3, device)[""]) / STEPS
    print(f"\n{name}, batch {batch}, {last}: {1e3 * seconds:.4g} ms a step")
    profiler = record(steps, device)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"profile-{name}-{batch}.json.gz"
    profiler.export_chrome_trace(str(path))
    if device.type == "cuda":
        slices = device_slices(json.loads(gzip.decompress(path.read_bytes())))
        assert slices, "the profiler saw nothing on the device"
        print(idle_line(busy(slices) / STEPS / 1e6, seconds))
        spent = by_name(slices)
    else:
        spent = {event.key: Spent(event.count, event.self_cpu_time_total) for event in profiler.key_averages()}
    print(table(spent))


def record(steps: Callable[[], None], device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        # CUPTI and CUDA graphs do not survive its teardown; torch.profiler sets these for the compiler's graphs only.
        os.environ |= {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
    with profile(activities=activities) as profiler:
        steps()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return profiler


def idle_line(busy_seconds: float, step_seconds: float) -> str:
    idle = max(0.0, 1 - busy_seconds / step_seconds)
    return f"The device is busy for {1e3 * busy_seconds:.4g} ms of it; {idle:.1%} of a step is bound by the host."


def table(spent: dict[str, Spent]) -> str:
    """A table of the time that `STEPS` steps took."""
    longest = sorted(spent.items(), key=lambda item: -item[1].microseconds)
    others = [value for _, value in longest[SHOWN:]]
    rest = Spent(sum(value.calls for value in others), sum(value.microseconds for value in others))
    total = sum(value.microseconds for value in spent.values())
    lines = ["| kernel | calls a step | ms a step | share |", "| --- | --- | --- | --- |"]
    for name, (calls, microseconds) in [*longest[:SHOWN], (f"{len(others)} others", rest)]:
        label = name.replace("|", "/")[:100]
        time = f"{microseconds / STEPS / 1e3:.4g} | {microseconds / total:.1%}"
        lines.append(f"| `{label}` | {calls / STEPS:g} | {time} |")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, help="default: sudoku on CUDA, else small")
    options.add_argument("--batch", type=positive, help="global batch size (default: those of the size)")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    options.add_argument("--out", type=Path, default=Path("."), help="folder for the traces (default: here)")
    args = options.parse_args()
    with one_line_errors():
        device = select_device(args.device)
        name = args.size or default_size(args.toy, device)
        for batch in [args.batch] if args.batch else SIZES[name].batches:
            measure(name, batch, args, device)


if __name__ == "__main__":
    main()
