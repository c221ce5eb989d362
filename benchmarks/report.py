"""Timing two or more ways to do the same, and what a benchmark prints and writes: a Markdown table and JSON.

The ways are timed in turn, A B B A A B …, so that other work on the machine affects all of them. A figure is the median
with its quartiles; a ratio is the baseline's median over ours.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from training.distributed import DEVICES, device_name, processor_name


@dataclass
class Result:
    """One row: the seconds of each repetition, for the baseline and for this code."""

    part: str
    what: str
    baseline: list[float]
    ours: list[float]
    target: float | None = None  # what the ratio should reach
    details: dict[str, float | str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return statistics.median(self.baseline) / statistics.median(self.ours)


def in_turns(
    ways: dict[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """-> seconds of each call of each way, after one that is not counted; `before` is not timed."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + repeats):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            before(name)
            seconds = timed(ways[name], device)
            if turn:
                times[name].append(seconds)
    return times


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has done its work: by CUDA events on CUDA, else by the clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def milliseconds(seconds: list[float]) -> str:
    low, middle, high = 1e3 * np.percentile(seconds, (25, 50, 75))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 3 if middle < 1 else 2
    return f"{middle:.{digits}f} ms ({low:.{digits}f}–{high:.{digits}f})"


def table(results: list[Result]) -> str:
    lines = ["| part | what | baseline | this code | ratio | target |", "| --- | --- | --- | --- | --- | --- |"]
    for row in results:
        cells = [row.part, row.what, milliseconds(row.baseline), milliseconds(row.ours), f"{row.ratio:.3g}×"]
        lines.append(f"| {' | '.join(cells)} | {'' if row.target is None else f'{row.target:.3g}×'} |")
    lines.append("")
    for row in results:
        values = (f"{key} {value if isinstance(value, str) else f'{value:.4g}'}" for key, value in row.details.items())
        lines += [f"- {row.part}, {row.what}: {'; '.join(values)}"] if row.details else []
    return "\n".join(lines)


def machine(device: torch.device) -> dict[str, str]:
    """The machine and software with which the figures were measured."""
    load = os.getloadavg()
    rows = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *module_and_arguments()]),
        "processor": f"{processor_name()}, {available_cores()} cores, {torch.get_num_threads()} threads",
        "load": " ".join(f"{value:.1f}" for value in load),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
    }
    if device.type == "cuda":
        rows["device"] = f"{device_name(device)}, CUDA {torch.version.cuda}"
    if load[0] > available_cores() + 1:
        rows["note"] = "this machine is busy with other work: expect noise"
    return rows


def module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [*(["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]), *sys.argv[1:]]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def publish(results: list[Result], device: torch.device, json_path: Path | None) -> None:
    """Print the machine and the table, and write both as JSON if a path is given. Only the first rank does anything."""
    if os.environ.get("RANK", "0") != "0":
        return
    about = machine(device)
    print("\n" + "\n".join(f"{key}: {value}" for key, value in about.items()) + "\n\n" + table(results))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) | {"ratio": row.ratio} for row in results]
        json_path.write_text(json.dumps({"machine": about, "results": rows}, indent=1))
        print(f"\nwritten: {json_path}")


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options that all these commands have."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--toy", action="store_true", help="small enough for a test: shows that it runs, no more")
    options.add_argument("--device", default="auto", choices=DEVICES, help="where it runs (default: auto)")
    return options


def timing_parser(doc: str, repeats: int | None = None) -> argparse.ArgumentParser:
    """With the options of those whose `Result`s are published, too."""
    options = parser(doc)
    options.add_argument("--repeats", type=positive, default=repeats, help="timed repetitions of each way")
    options.add_argument("--json", type=Path, help="also write the results here")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
