"""Running the project's commands as a user would: in processes of their own, and under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD_NO_WANDB = dict(WANDB_MODE="disabled", DISABLE_COMPILE="1", OMP_NUM_THREADS="1")


def command_environment(**env) -> dict[str, str]:
    """W&B off, one thread a process, no compilation by default; None unsets a variable."""
    settings = os.environ | ONE_THREAD_NO_WANDB | {"PYTHONPATH": str(ROOT)} | env
    return {key: value for key, value in settings.items() if value is not None}


def check_exit(done: subprocess.CompletedProcess, check: bool) -> subprocess.CompletedProcess:
    if check and done.returncode:
        raise AssertionError(f"{done.args} exited {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def run(*args, ranks: int | None = None, check: bool = True, cwd=ROOT, **env) -> subprocess.CompletedProcess:
    """`python args…`, or torchrun with `ranks` processes; further keywords are environment variables.

    Where the start itself is not the point, `tests.warm.run` does the same at a hundredth of the cost.
    """
    launcher = [sys.executable]
    if ranks is not None:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, *map(str, args)],
        cwd=cwd,
        env=command_environment(**env),
        capture_output=True,
        text=True,
        timeout=900,  # patient: what looked like a paused machine took 280 s
        check=False,
    )
    return check_exit(done, check)


def error_line(*args, run=run, **options) -> str:
    """Run a command that must fail as a user's mistake does: exit code 2 and one line on stderr; -> the line."""
    done = run(*args, check=False, **options)
    assert done.returncode == 2, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    return lines[0]
