"""Whether a long run grows: memory, open files and threads of a training run at several of its steps (Linux).

    OMP_NUM_THREADS=1 python -m scripts.measure_growth steps=3000

A small HRM on 4×4 Sudokus that it makes, with states, evaluations and averaged weights, as rows of a table.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic import Field

from errors import UserError, one_line_errors
from training.options import StrictModel, from_cli

ROOT = Path(__file__).resolve().parents[1]
BATCH, PUZZLES = 32, 64


class GrowthConfig(StrictModel):
    steps: int = Field(ge=100, description="training steps, to the nearest multiple of 20")


def command(folder: Path, steps: int) -> list[str]:
    interval = max(1, round(steps * BATCH / PUZZLES / 10))  # in epochs: ten evaluations in all
    epochs = 10 * interval
    return [
        sys.executable, "pretrain.py", f"data_path={folder / 'data'}", f"checkpoint_path={folder / 'run'}",
        f"global_batch_size={BATCH}", f"epochs={epochs}", f"eval_interval={interval}", "checkpoint_interval=50",
        "ema_decay=0.99", "arch.hidden_size=32", "arch.num_heads=2", "compile=off", "device=cpu",
    ]  # fmt: skip


def held(pid: int) -> tuple[float, int, int]:
    """-> (resident memory in MB, open files, threads) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    return int(values["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(values["Threads"])


def measure(steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [
            "dataset/build_sudoku_dataset.py",
            "--generate",
            "--size",
            4,
            "--num-train",
            PUZZLES,
            "--num-test",
            PUZZLES,
        ]
        build += ["--output-dir", folder / "data"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, *map(str, build)], cwd=ROOT, check=True, **quiet)
        metrics = folder / "run/metrics.jsonl"
        print("| step | memory, MB | open files | threads |\n| ---: | ---: | ---: | ---: |")
        environment = os.environ | {"WANDB_MODE": "disabled"}
        with subprocess.Popen(command(folder, steps), cwd=ROOT, env=environment, **quiet) as run:
            due = [steps * share // 10 for share in range(1, 10)]
            while run.poll() is None:
                lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
                if due and lines >= due[0]:
                    print("| {} | {:.1f} | {} | {} |".format(due.pop(0), *held(run.pid)), flush=True)
                time.sleep(0.2)
        if run.returncode:
            raise UserError("the run failed: try its command by hand")


def main() -> None:
    with one_line_errors():
        measure(from_cli(GrowthConfig, sys.argv[1:], __doc__).steps)


if __name__ == "__main__":
    main()
