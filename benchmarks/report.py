"""Timing two or more ways to do the same, and what a benchmark prints and writes: a Markdown table and JSON.

The ways are timed in turns, A B B A A B …, so that what else a machine does falls on all of them. A figure is the
median with its quartiles; a ratio is the baseline's median over ours.
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

from training.metrics import progress_bar


@dataclass
class Result:
    """One row: seconds of each repetition, of the baseline and of this code."""

    part: str
    what: str
    baseline: list[float]
    ours: list[float]
    target: float | None = None  # what the ratio should reach
    details: dict[str, float | str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return statistics.median(self.baseline) / statistics.median(self.ours)

    def as_dict(self) -> dict:
        return asdict(self) | {"ratio": self.ratio}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    return tuple(np.percentile(values, (25, 50, 75)).tolist())


def in_turns(
    ways: dict[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    warm_up: int = 1,
    before: Callable[[str], object] = lambda name: None,
    desc: str | None = "measure",
) -> dict[str, list[float]]:
    """-> seconds of each call of each way; device events on CUDA, the clock elsewhere. `before` is not timed.

    Without `desc` there is no progress bar.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    bar = progress_bar(
        range(warm_up + repeats),
        total=warm_up + repeats,
        desc=desc or "",
        unit="turn",
        enabled=is_main() and desc is not None,
        leave=False,
    )
    for turn in bar:
        for name in names if turn % 2 else names[::-1]:
            before(name)
            seconds = timed(ways[name], device)
            if turn >= warm_up:
                times[name].append(seconds)
    return times


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, to the end of what it put on the device."""
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


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def milliseconds(values: list[float]) -> str:
    low, middle, high = (1e3 * value for value in quartiles(values))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 3 if middle < 1 else 2
    return f"{middle:.{digits}f} ms ({low:.{digits}f}–{high:.{digits}f})"


def table(results: list[Result]) -> str:
    lines = ["| part | what | baseline | this code | ratio | target |", "| --- | --- | --- | --- | --- | --- |"]
    for row in results:
        target = "" if row.target is None else f"{row.target:.3g}×"
        lines.append(
            f"| {row.part} | {row.what} | {milliseconds(row.baseline)} | {milliseconds(row.ours)} "
            f"| {row.ratio:.3g}× | {target} |"
        )
    notes = [f"- {row.part}, {row.what}: {describe(row.details)}" for row in results if row.details]
    return "\n".join([*lines, "", *notes])


def describe(details: dict[str, float | str]) -> str:
    return "; ".join(f"{key} {value if isinstance(value, str) else f'{value:.4g}'}" for key, value in details.items())


def machine(device: torch.device) -> dict[str, str]:
    """Where and with what the figures were measured."""
    rows = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *module_and_arguments()]),
        "processor": f"{cpu_name()}, {available_cores()} cores, {torch.get_num_threads()} threads",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
    }
    if device.type == "cuda":
        rows["device"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return rows


def module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [*(["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]), *sys.argv[1:]]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def publish(results: list[Result], device: torch.device, json_path: Path | None) -> None:
    """Print the machine and the table; write both as JSON where a path is given."""
    if not is_main():
        return
    about = machine(device)
    if os.getloadavg()[0] > available_cores() + 1:
        about["note"] = "this machine is busy with other work: expect noise"
    print("\n" + "\n".join(f"{key}: {value}" for key, value in about.items()) + "\n\n" + table(results))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"machine": about, "results": [row.as_dict() for row in results]}, indent=1))
        print(f"\nwritten: {json_path}")


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all of these commands have."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=positive, help="timed repetitions of each way")
    options.add_argument("--toy", action="store_true", help="small enough for a test: shows that it runs, no more")
    options.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    options.add_argument("--json", type=Path, help="also write the results here")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
