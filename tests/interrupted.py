"""Runs that are killed or stopped on the way, and whether they end like one that was not."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import pretrain
from tests.launch import ROOT, command_environment
from tests.runs import LIGHT, PIPELINE, load, reference_overrides
from tests.waiting import wait_for
from tests.warm import Started


def eager_weights() -> Path:
    """The reference run's first weights, with a Q head that halts as soon as exploration allows it.

    Without such a head every sequence goes to the last step, whatever the random generators say.
    """
    weights = load(PIPELINE / "init_checkpoint.pt")
    weights["model.inner.q_head.bias"] = torch.tensor([20.0, 0.0])
    path = Path(FOLDER.name) / "eager"
    torch.save(weights, path)
    return path


FOLDER = tempfile.TemporaryDirectory()
# States between and at evaluations.
CHANGES = LIGHT | {
    "load_checkpoint": eager_weights(), "arch.halt_exploration_prob": 0.5, "arch.halt_extra_steps": 2,
    "checkpoint_interval": 7, "resume": "true",
}  # fmt: skip


def start(folder: Path, ranks: int | None = None, **changes) -> Started:
    return Started("pretrain.py", *reference_overrides(folder, **CHANGES | changes), ranks=ranks)


def start_torchrun(folder: Path, ranks: int, **changes) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*launcher, "pretrain.py", *reference_overrides(folder, **CHANGES | changes)],
        cwd=ROOT, env=command_environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@contextmanager
def signal_in_evaluation() -> Iterator[None]:
    """Every evaluation in this process is reached by a SIGTERM."""
    evaluate = pretrain.evaluate_split

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "evaluate_split", interrupted)
        yield


def wait_until(process: Started | subprocess.Popen, condition: Callable[[], bool]) -> None:
    def it_came() -> bool:
        if condition():
            return True
        assert process.poll() is None, process.communicate()
        return False

    wait_for(it_came, "the moment to interrupt", seconds=200, pause=0.001)


def wait_for_step(process: Started | subprocess.Popen, folder: Path, step: int) -> None:
    path = folder / "metrics.jsonl"
    wait_until(process, lambda: path.exists() and path.read_bytes().count(b"\n") >= step)


def wait_for_a_save(process: Started | subprocess.Popen, folder: Path) -> None:
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
        process.kill()


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    checkpoints = sorted(path.name for path in one.glob("step_*"))
    assert len(checkpoints) >= 3
    assert checkpoints == sorted(path.name for path in other.glob("step_*"))
    for name in checkpoints:
        first, second = load(one / name), load(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
