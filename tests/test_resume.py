"""Stopping and going on, byte for byte: python -m pytest tests/test_resume.py"""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from files import put_in_place
from tests import warm
from tests.interrupted import CHANGES, assert_same_run, kill_three_times, start, wait_for_step
from tests.runs import PIPELINE, pretrain, read_metrics, reference_overrides, refusal
from training.config import RETIRED_ARCH_KEYS
from training.resume import Schedule, complete_states


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert len(pretrain(folder, **CHANGES)) == 63
    return folder


@pytest.mark.slow
def test_killed_three_times_at_random(tmp_path, uninterrupted):
    kill_three_times(tmp_path / "run", ranks=None, before=50)
    pretrain(tmp_path / "run", **CHANGES)
    assert_same_run(tmp_path / "run", uninterrupted)
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if "train/lr" in line]
    assert steps == list(range(1, 61))


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for_step(process, folder, 11)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stopped = read_metrics(folder)[-1]["step"]
    assert stopped < 60
    assert f"stopped (SIGTERM) at step {stopped}; to go on: the same command with resume=true" in output
    assert (folder / f"state_{stopped}").is_dir()
    pretrain(folder, **CHANGES)
    assert_same_run(folder, uninterrupted)


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
    subprocess.run(["umount", "--lazy", folder], check=True)  # metrics.jsonl of the run that failed is still open


def test_a_disk_that_fills_loses_nothing_that_was_complete(small_disk, uninterrupted, capsys):
    disk, grow = small_disk
    folder = disk / "run"
    line = refusal(capsys, folder, **CHANGES | {"keep_last": 100})
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
    place, new = tmp_path / "state_20", tmp_path / ".state_20.tmp"
    for folder in (place, new):
        folder.mkdir()
        (folder / "manifest.json").write_text('{"files": []}')
    rename = Path.rename
    seen = []
    monkeypatch.setattr(Path, "rename", lambda *args: (rename(*args), seen.append(complete_states(tmp_path))))
    put_in_place(new, place, aside=tmp_path / "state_20.old")
    assert [[path.name for path in states] for states in seen] == [["state_20.old"], ["state_20", "state_20.old"]]
    assert [path.name for path in tmp_path.iterdir()] == ["state_20"]


def test_metrics_that_are_read_late_are_the_same(tmp_path, uninterrupted):
    """Six steps at a time, with evaluations and states in between, and a stop on the way."""
    late = CHANGES | {"log_interval": 6, "keep_last": 100}
    pretrain(tmp_path / "run", **late | {"max_minutes": 1e-5})
    assert read_metrics(tmp_path / "run")[-1]["step"] == 6
    pretrain(tmp_path / "run", **late)
    assert_same_run(tmp_path / "run", uninterrupted)
    states = {int(path.name.removeprefix("state_")) for path in (tmp_path / "run").glob("state_*")}
    assert states == {6, *range(7, 60, 7), 20, 40, 60}


def test_the_clock_stops_a_run(tmp_path, capsys):
    pretrain(tmp_path / "run", max_minutes=1e-5)
    farewell = "stopped (max_minutes=1e-05) at step 1; to go on: the same command with resume=true checkpoint_path='{}'"
    assert capsys.readouterr().out.splitlines()[-1] == farewell.format(tmp_path / "run")
    assert (tmp_path / "run/state_1/manifest.json").exists()


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run that stands at step 1, with one state."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    pretrain(folder, **CHANGES | {"checkpoint_interval": 2, "max_minutes": 1e-5})
    assert [path.name for path in folder.glob("state_*")] == ["state_1"]
    return folder


@pytest.fixture
def stopped(tmp_path, stopped_once):
    """The same to go on with."""
    return shutil.copytree(stopped_once, tmp_path / "run")


def test_an_incomplete_state_is_passed_over(stopped, caplog):
    fake = stopped / "state_9"
    fake.mkdir()
    (fake / "manifest.json").write_text(json.dumps({"files": ["model.pt", "rank_0.pt"]}))
    pretrain(stopped, **CHANGES | {"max_minutes": 1e-5})
    assert f"{fake} is not complete (no model.pt, rank_0.pt); passing over it" in caplog.messages
    assert read_metrics(stopped)[-1]["step"] == 2


def edit_manifest(state: Path, change) -> None:
    manifest = json.loads((state / "manifest.json").read_text())
    change(manifest)
    (state / "manifest.json").write_text(json.dumps(manifest))


def test_a_state_of_an_earlier_version_goes_on(stopped):
    """With a hyper-parameter that is no more and did nothing, and without one that had its default of today."""
    retired = {f"arch.{key}": 4 for key in RETIRED_ARCH_KEYS}

    def earlier(manifest):
        del manifest["fixed"]["arch.q_target"]
        manifest["fixed"] |= retired

    edit_manifest(stopped / "state_1", earlier)
    pretrain(stopped, **CHANGES | {"max_minutes": 1e-5})
    assert read_metrics(stopped)[-1]["step"] == 2
    assert not retired.keys() & json.loads((stopped / "state_2/manifest.json").read_text())["fixed"].keys()


def test_a_named_state_that_is_damaged_is_refused(stopped, capsys):
    state = stopped / "state_1"
    model = state / "model.pt"
    model.write_bytes(model.read_bytes()[:1000])
    for resume in ("true", state):
        line = refusal(capsys, stopped, **CHANGES | {"resume": resume})
        assert f"{model} is damaged (" in line
        assert line.endswith("remove its folder to resume from an older state")
    model.unlink()
    line = refusal(capsys, stopped, **CHANGES | {"resume": state})
    assert line == f"error: resume={state} is not a complete state; name another, or the run folder for its newest"


FIXED = {
    "arch.halt_max_steps (was 4, is 5)": {"arch.halt_max_steps": 5},
    "ema_decay (was None, is 0.5)": {"ema_decay": 0.5},
    "eval_interval (was 4, is 2)": {"eval_interval": 2},  # the passes would have other batches
    "freeze (was None, is weights)": {"freeze": "weights"},
    "global_batch_size (was 8, is 4)": {"global_batch_size": 4},
    "seed (was 7, is 8)": {"seed": 8},
}


@pytest.mark.parametrize("message", FIXED)
def test_what_makes_a_state_meaningless_cannot_change(stopped_once, capsys, message):
    line = refusal(capsys, stopped_once, **CHANGES | FIXED[message])
    assert f"{stopped_once}/state_1 cannot be resumed with another {message}" in line
    assert line.endswith("restore these, or start a new run with load_checkpoint")


def test_other_data_cannot_be_gone_on_with(tmp_path, stopped_once, capsys):
    data = shutil.copytree(PIPELINE / "dataset", tmp_path / "data")
    description = data / "train/dataset.json"
    description.write_text(
        description.read_text().replace('"num_puzzle_identifiers": 1', '"num_puzzle_identifiers": 2')
    )
    line = refusal(capsys, stopped_once, **CHANGES | {"data_path": data})
    assert re.search(r"another data \(was [0-9a-f]{16}, is [0-9a-f]{16}\)", line)


def test_a_state_that_is_not_there_is_refused(stopped_once, capsys):
    line = refusal(capsys, stopped_once, **CHANGES | {"resume": stopped_once / "nowhere"})
    assert "holds no complete training state" in line


def test_states_are_due_by_steps_and_by_the_minutes_since_the_last_one(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("training.resume.time.monotonic", lambda: now)
    schedule = Schedule(SimpleNamespace(checkpoint_interval=None, checkpoint_minutes=2))
    due = []
    for step, now in enumerate((1000, 1119, 1121, 1240, 1242), start=1):  # noqa: B007, read above
        due.append(schedule.due(step))
        if due[-1]:
            schedule.saved()
    assert due == [False, False, True, False, True]
    by_steps = Schedule(SimpleNamespace(checkpoint_interval=3, checkpoint_minutes=None))
    assert [step for step in range(1, 10) if by_steps.due(step)] == [3, 6, 9]


def test_a_run_that_left_no_state_starts_again(tmp_path, uninterrupted):
    """Killed before its first one, with the same command."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/lr": 0.5}\n')
    pretrain(folder, **CHANGES | {"max_minutes": 1e-5})
    assert read_metrics(folder) == read_metrics(uninterrupted)[:1]


def test_the_run_of_wandb_goes_on_but_a_branch_is_another(stopped):
    edit_manifest(stopped / "state_1", lambda manifest: manifest["progress"].update(wandb_id="earlier"))
    stop = CHANGES | {"max_minutes": 1e-5}
    branch = stopped.parent / "branch"
    pretrain(branch, **stop | {"resume": stopped})
    pretrain(stopped, **stop)
    found = [json.loads((folder / "state_2/manifest.json").read_text()) for folder in (stopped, branch)]
    assert [manifest["progress"]["wandb_id"] for manifest in found] == ["earlier", None]


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
    done = warm.run("pretrain.py", *reference_overrides(stopped, **CHANGES | {"max_minutes": 1e-5}), ranks=2)
    assert "was saved by 1 ranks, now there are 2: every sequence starts afresh" in done.stdout
    assert read_metrics(stopped)[-1]["step"] == 2
    assert json.loads((stopped / "state_2/manifest.json").read_text())["world_size"] == 2


def test_old_states_are_removed_and_checkpoints_kept(uninterrupted):
    assert sorted(path.name for path in uninterrupted.glob("state_*")) == ["state_56", "state_60"]
    assert sorted(path.name for path in uninterrupted.glob("step_*")) == ["step_20", "step_40", "step_60"]
    assert not list(uninterrupted.glob(".*"))
