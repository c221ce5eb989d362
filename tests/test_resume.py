"""Stopping and going on, byte for byte: python -m pytest tests/test_resume.py"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.launch import ROOT, error_line, run
from tests.runs import load, pretrain, read_metrics, reference_overrides

# Exploration on, so that the random generators matter; states between and at evaluations.
CHANGES = {"load_checkpoint": None, "arch.halt_exploration_prob": 0.5, "checkpoint_interval": 7, "resume": "true"}
ENVIRONMENT = os.environ | dict(WANDB_MODE="disabled", DISABLE_COMPILE="1", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))


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


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Until metrics.jsonl has as many lines, or the process has ended."""
    deadline = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.002)


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    checkpoints = sorted(path.name for path in one.glob("step_*"))
    assert checkpoints == sorted(path.name for path in other.glob("step_*"))
    for name in checkpoints:
        first, second = load(one / name), load(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert len(pretrain(folder, **CHANGES)) == 63
    return folder


@pytest.mark.slow
def test_killed_three_times_at_random(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    rng = random.Random(os.environ.get("KILL_SEED", "0"))
    for target in sorted(rng.sample(range(2, 60), 3)):
        process = start(folder)
        wait_for_step(process, folder, target)
        time.sleep(rng.random() * 0.02)  # somewhere within a step, an evaluation or a save
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    pretrain(folder, **CHANGES)
    assert_same_run(folder, uninterrupted)
    steps = [line["step"] for line in read_metrics(folder) if "train/lr" in line]
    assert steps == list(range(1, 61))


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for_step(process, folder, 11)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    stopped = read_metrics(folder)[-1]["step"]
    assert stopped < 60
    assert f"stopped (SIGTERM) at step {stopped}; to go on: the same command with resume=true" in output
    assert (folder / f"state_{stopped}").is_dir()
    pretrain(folder, **CHANGES)
    assert_same_run(folder, uninterrupted)


def test_the_clock_stops_a_run(tmp_path):
    done = run("pretrain.py", *reference_overrides(tmp_path / "run", max_minutes=1e-5))
    assert "stopped (max_minutes=1e-05) at step 1" in done.stdout
    assert (tmp_path / "run/state_1/manifest.json").exists()


@pytest.fixture
def stopped(tmp_path):
    """A run that stands at step 2, with one state."""
    folder = tmp_path / "run"
    run("pretrain.py", *reference_overrides(folder, **CHANGES | {"checkpoint_interval": 2, "max_minutes": 1e-5}))
    assert [path.name for path in folder.glob("state_*")] == ["state_1"]
    return folder


def test_an_incomplete_state_is_passed_over(stopped):
    fake = stopped / "state_9"
    fake.mkdir()
    (fake / "manifest.json").write_text(json.dumps({"world_size": 1}))
    done = run("pretrain.py", *reference_overrides(stopped, **CHANGES | {"max_minutes": 1e-5}))
    assert "state_9 is not complete (no model.pt, optimizers.pt, rank_0.pt); passing over it" in done.stdout
    assert read_metrics(stopped)[-1]["step"] == 2


def test_what_cannot_be_resumed_is_refused_by_name(stopped):
    def line(**changes):
        return error_line("pretrain.py", *reference_overrides(stopped, **CHANGES | changes))

    assert "arch.halt_max_steps (was 4, is 5)" in line(**{"arch.halt_max_steps": 5})
    assert "seed (was 7, is 8)" in line(seed=8)
    assert "global_batch_size (was 8, is 4)" in line(global_batch_size=4)
    assert "holds no complete training state" in line(resume=stopped / "nowhere")


@pytest.mark.slow
def test_another_number_of_ranks_restarts_the_sequences(stopped):
    done = run("pretrain.py", *reference_overrides(stopped, **CHANGES), ranks=2)
    assert "was saved by 1 ranks, now there are 2: every sequence starts afresh" in done.stdout
    assert read_metrics(stopped)[-1]["step"] == 60


def test_old_states_are_removed_and_checkpoints_kept(uninterrupted):
    assert sorted(path.name for path in uninterrupted.glob("state_*")) == ["state_56", "state_60"]
    assert sorted(path.name for path in uninterrupted.glob("step_*")) == ["step_20", "step_40", "step_60"]
    assert not list(uninterrupted.glob(".*"))
