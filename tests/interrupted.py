"""Runs that are killed or stopped on the way, and whether they end as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.launch import ONE_THREAD_NO_WANDB, ROOT
from tests.runs import load, reference_overrides

# Exploration on, so that the random generators matter; states between and at evaluations.
CHANGES = {"load_checkpoint": None, "arch.halt_exploration_prob": 0.5, "checkpoint_interval": 7, "resume": "true"}
ENVIRONMENT = os.environ | ONE_THREAD_NO_WANDB | {"PYTHONPATH": str(ROOT)}


def command(folder: Path, ranks: int | None, **changes) -> list[str]:
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "pretrain.py", *reference_overrides(folder, **CHANGES | changes)]


def start(folder: Path, ranks: int | None = None, **changes) -> subprocess.Popen:
    return subprocess.Popen(
        command(folder, ranks, **changes), cwd=ROOT, env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def workers(process: subprocess.Popen) -> list[int]:
    """Under torchrun its ranks, in their order (of Linux only)."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def kill(process: subprocess.Popen, ranks: int | None) -> None:
    """As when the machine fails: every process at once, without a chance to say anything."""
    for pid in [*(workers(process) if ranks else []), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    path = folder / "metrics.jsonl"
    wait_until(process, lambda: path.exists() and path.read_bytes().count(b"\n") >= step)


def wait_for_a_save(process: subprocess.Popen, folder: Path) -> None:
    wait_until(process, lambda: any(folder.glob(".state_*.tmp")))


def kill_three_times(folder: Path, ranks: int | None, before: int, **changes) -> None:
    """At random moments, the second time within a save; KILL_SEED gives other moments."""
    rng = random.Random(os.environ.get("KILL_SEED", "0"))
    targets = sorted(rng.sample(range(2, before), 3))
    for target in targets:
        process = start(folder, ranks, **changes)
        wait_for_step(process, folder, target)
        if target == targets[1]:
            wait_for_a_save(process, folder)
        else:
            time.sleep(rng.random() * 0.02)  # somewhere within a step, an evaluation or a save
        kill(process, ranks)


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    checkpoints = sorted(path.name for path in one.glob("step_*"))
    assert len(checkpoints) >= 3
    assert checkpoints == sorted(path.name for path in other.glob("step_*"))
    for name in checkpoints:
        first, second = load(one / name), load(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
