"""Time and peak memory of the full dataset builds: python -m benchmarks.build [options]

Builds each dataset whose source is given into a temporary folder, as a process of its own, and prints a row of
docs/benchmarks.md: wall time, peak resident memory of the process (its largest child included), size on disk.

    python -m benchmarks.build --arc dataset/raw-data/ARC-AGI/data dataset/raw-data/ConceptARC/corpus \\
        --arc2 dataset/raw-data/ARC-AGI-2/data --sudoku <folder of train.csv, test.csv> --maze <the same>

Cost: about 1 minute and 8 GB of temporary disk for an ARC build, seconds for the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Name of a build -> its command line without `--output-dir`."""
    builds = {}
    if args.sudoku:
        builds["sudoku-extreme-1k-aug-1000"] = [
            "dataset/build_sudoku_dataset.py", "--source-dir", args.sudoku, "--subsample-size", "1000",
            "--num-aug", "1000",
        ]  # fmt: skip
    if args.maze:
        builds["maze-30x30-hard-1k"] = ["dataset/build_maze_dataset.py", "--source-dir", args.maze]
        builds["maze-30x30-hard-1k --aug"] = [*builds["maze-30x30-hard-1k"], "--aug"]
    if args.arc:
        builds["arc-aug-1000"] = ["dataset/build_arc_dataset.py", "--dataset-dirs", *args.arc]
    if args.arc2:
        builds["arc-2-aug-1000"] = ["dataset/build_arc_dataset.py", "--dataset-dirs", *args.arc2]
    return builds


def measure(command: list[str]) -> dict[str, float]:
    """Run one build; -> seconds, peak_mb and disk_mb."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "dataset"
        result = measure_process([*command, "--output-dir", str(out)])
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return result | {"disk_mb": round(disk / 2**20)}


def measure_process(arguments: list[str]) -> dict[str, float]:
    """Run `python arguments…` in the repository; -> its seconds, cpu_seconds and peak_mb, its largest child included.

    On Linux peak_mb is at least what the caller holds: prepare large things in another process.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"this failed: {' '.join(arguments)}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(kilobytes / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arc", nargs="+", help="folders of ARC-AGI-1 and ConceptARC")
    parser.add_argument("--arc2", nargs="+", help="folder of ARC-AGI-2")
    parser.add_argument("--sudoku", help="folder with train.csv and test.csv")
    parser.add_argument("--maze", help="folder with train.csv and test.csv")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    with one_line_errors():
        builds = commands(args)
        if not builds:
            raise UserError("name at least one source: --arc, --arc2, --sudoku or --maze")
        results = {name: measure(command) for name, command in builds.items()}
    print("\n| build | seconds | peak memory, MB | on disk, MB |\n| --- | --- | --- | --- |")
    for name, row in results.items():
        print(f"| {name} | {row['seconds']} | {row['peak_mb']} | {row['disk_mb']} |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
