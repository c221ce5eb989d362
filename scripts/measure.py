"""Time and peak memory of one of the project's commands, as one line of JSON: python -m scripts.measure COMMAND…

    python -m scripts.measure dataset/build_sudoku_dataset.py --source-dir … --output-dir …
    python -m scripts.measure -m evaluators.arc dataset=… predictions=…

`seconds` are by the clock, `cpu_seconds` those of all its threads, `peak_mb` is resident memory; children count too.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]


def measure(*arguments: object) -> dict[str, float]:
    """Run `python arguments…` in the repository.

    On Linux the peak is at least what the caller holds, so prepare large things in another process.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"this failed: {' '.join(map(str, arguments))}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(kilobytes / 1024)}


def main() -> None:
    with one_line_errors():
        if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
            print(__doc__)
            raise SystemExit(0 if len(sys.argv) > 1 else 2)
        print(json.dumps(measure(*sys.argv[1:])))


if __name__ == "__main__":
    main()
