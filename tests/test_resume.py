"""Stopping and going on, byte for byte: python -m pytest tests/test_resume.py"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.launch import ONE_THREAD_NO_WANDB, ROOT, run
from tests.runs import PIPELINE, load, pretrain, read_metrics, reference_overrides

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


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    checkpoints = sorted(path.name for path in one.glob("step_*"))
    assert len(checkpoints) >= 3
    assert checkpoints == sorted(path.name for path in other.glob("step_*"))
    for name in checkpoints:
        first, second = load(one / name), load(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing interrupted, by the number of ranks."""
    folders = {}

    def run_whole(ranks: int | None) -> Path:
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("whole") / "run"
            assert len(pretrain(folders[ranks], ranks, **CHANGES)) == 63
        return folders[ranks]

    return run_whole


@pytest.fixture
def uninterrupted(whole):
    return whole(None)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [None, 2])
def test_killed_three_times_at_random(tmp_path, whole, ranks):
    folder = tmp_path / "run"
    rng = random.Random(os.environ.get("KILL_SEED", "0"))
    targets = sorted(rng.sample(range(2, 50), 3))
    for target in targets:
        process = start(folder, ranks)
        wait_for_step(process, folder, target)
        if target == targets[1]:
            wait_for_a_save(process, folder)
        else:
            time.sleep(rng.random() * 0.02)  # somewhere within a step, an evaluation or a save
        kill(process, ranks)
    pretrain(folder, ranks, **CHANGES)
    assert_same_run(folder, whole(ranks))
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


@pytest.mark.slow
def test_a_signal_under_torchrun_stops_all_ranks_at_one_step(tmp_path, whole):
    """To one rank first, then to torchrun, which passes it on."""
    folder = tmp_path / "run"
    for target, number in ((11, signal.SIGUSR1), (31, signal.SIGTERM)):
        process = start(folder, 2)
        wait_for_step(process, folder, target)
        to_a_rank = number == signal.SIGUSR1
        os.kill(workers(process)[1] if to_a_rank else process.pid, number)
        output, _ = process.communicate(timeout=60)
        stopped = read_metrics(folder)[-1]["step"]
        assert target <= stopped < 60
        why = "a signal to another rank" if to_a_rank else "SIGTERM"
        assert f"stopped ({why}) at step {stopped}; to go on" in output
        assert (process.returncode == 0) == to_a_rank, output  # torchrun itself fails on a signal
        assert json.loads((folder / f"state_{stopped}/manifest.json").read_text())["world_size"] == 2
    pretrain(folder, 2, **CHANGES)
    assert_same_run(folder, whole(2))


@pytest.fixture
def small_disk(tmp_path):
    """Grows when called."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a tmpfs needs root")

    mount("size=1500k")
    yield folder, lambda: mount("remount", "size=50m")
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_loses_nothing_that_was_complete(small_disk, uninterrupted):
    disk, grow = small_disk
    folder = disk / "run"
    done = run("pretrain.py", *reference_overrides(folder, **CHANGES | {"keep_last": 100}), check=False)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(("error: cannot save the training state in ", "error: cannot write "))
    assert "No space left on device" in line
    states = sorted(int(path.name.split("_")[1]) for path in folder.glob("state_*"))
    assert states[0] == 7
    assert states[-1] < 60
    for step in states:
        torch.load(folder / f"state_{step}/model.pt", weights_only=True)
    assert not list(folder.glob(".*")), "half a state takes the space that is missing"
    grow()
    pretrain(folder, **CHANGES)
    assert_same_run(folder, uninterrupted)


def test_a_state_written_twice_is_there_at_every_moment(tmp_path, monkeypatch):
    """Before and after an evaluation the same step is saved; a kill between the two renames loses nothing."""
    from training import checkpoint

    place, new = tmp_path / "state_20", tmp_path / ".state_20.tmp"
    for folder in (place, new):
        folder.mkdir()
        (folder / "manifest.json").write_text('{"files": []}')
    rename = Path.rename
    seen = []
    monkeypatch.setattr(
        Path, "rename", lambda *args: (rename(*args), seen.append(checkpoint.complete_states(tmp_path)))
    )
    checkpoint._take_the_place(new, place)
    assert [[path.name for path in states] for states in seen] == [["state_20.old"], ["state_20", "state_20.old"]]
    assert [path.name for path in tmp_path.iterdir()] == ["state_20"]


def test_the_clock_stops_a_run(tmp_path):
    done = run("pretrain.py", *reference_overrides(tmp_path / "run", max_minutes=1e-5))
    assert "stopped (max_minutes=1e-05) at step 1" in done.stdout
    assert (tmp_path / "run/state_1/manifest.json").exists()


@pytest.fixture
def stopped(tmp_path):
    """A run that stands at step 2, with one state."""
    folder = tmp_path / "run"
    pretrain(folder, **CHANGES | {"checkpoint_interval": 2, "max_minutes": 1e-5})
    assert [path.name for path in folder.glob("state_*")] == ["state_1"]
    return folder


def test_an_incomplete_state_is_passed_over(stopped):
    fake = stopped / "state_9"
    fake.mkdir()
    (fake / "manifest.json").write_text(json.dumps({"files": ["model.pt", "rank_0.pt"]}))
    done = run("pretrain.py", *reference_overrides(stopped, **CHANGES | {"max_minutes": 1e-5}))
    assert "state_9 is not complete (no model.pt, rank_0.pt); passing over it" in done.stdout
    assert read_metrics(stopped)[-1]["step"] == 2


def test_what_cannot_be_resumed_is_refused_by_name(stopped, capsys):
    def line(**changes):
        with pytest.raises(SystemExit):
            pretrain(stopped, **CHANGES | changes)
        return capsys.readouterr().err

    assert "arch.halt_max_steps (was 4, is 5)" in line(**{"arch.halt_max_steps": 5})
    assert "seed (was 7, is 8)" in line(seed=8)
    assert "global_batch_size (was 8, is 4)" in line(global_batch_size=4)
    data = stopped.parent / "data"
    shutil.copytree(PIPELINE / "dataset", data)
    description = data / "train/dataset.json"
    description.write_text(
        description.read_text().replace('"num_puzzle_identifiers": 1', '"num_puzzle_identifiers": 2')
    )
    assert re.search(r"another data \(was [0-9a-f]{16}, is [0-9a-f]{16}\)", line(data_path=data))
    assert "holds no complete training state" in line(resume=stopped / "nowhere")


def test_a_run_may_branch_off_into_another_folder(stopped, uninterrupted):
    branch = stopped.parent / "branch"
    pretrain(branch, **CHANGES | {"resume": stopped, "lr_min_ratio": 1.0})
    lines, whole = read_metrics(branch), read_metrics(uninterrupted)
    assert [line["step"] for line in lines] == [line["step"] for line in whole]
    assert lines[0] == whole[0]
    assert lines[-2]["train/lr"] == 1e-3 > whole[-2]["train/lr"]
    assert read_metrics(stopped) == lines[:1]


@pytest.mark.slow
def test_another_number_of_ranks_restarts_the_sequences(stopped):
    done = run("pretrain.py", *reference_overrides(stopped, **CHANGES), ranks=2)
    assert "was saved by 1 ranks, now there are 2: every sequence starts afresh" in done.stdout
    assert read_metrics(stopped)[-1]["step"] == 60


def test_old_states_are_removed_and_checkpoints_kept(uninterrupted):
    assert sorted(path.name for path in uninterrupted.glob("state_*")) == ["state_56", "state_60"]
    assert sorted(path.name for path in uninterrupted.glob("step_*")) == ["step_20", "step_40", "step_60"]
    assert not list(uninterrupted.glob(".*"))
