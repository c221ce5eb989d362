"""Stopping and going on, byte for byte: python -m pytest tests/test_resume.py"""

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pretrain as pretrain_module
from errors import UserError
from evaluators.figures import FIGURES
from files import locked, put_in_place
from tests import warm
from tests.in_memory import composed
from tests.interrupted import CHANGES, assert_same_run, kill_three_times, start, wait_for_step
from tests.launch import ROOT, command_environment
from tests.runs import LIGHT, PIPELINE, edit_manifest, pretrain, read_metrics, reference_overrides, refusal
from training.config import RETIRED_ARCH_KEYS, load_config
from training.resume import (
    CHECKPOINT_OR_ITS_WORK,
    Schedule,
    check_metrics,
    check_same_run,
    find_state,
    later_checkpoints,
    read_state,
    saved_states,
    set_aside,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert len(pretrain(folder, **CHANGES)) == 63
    return folder


@pytest.mark.apart
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
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    stopped = read_metrics(folder)[-1]["step"]
    assert stopped < 60
    assert f"stopped (SIGTERM) at step {stopped}; to go on: the same command with resume=true" in output
    assert (folder / f"state_{stopped}").is_dir()
    pretrain(folder, **CHANGES)
    assert_same_run(folder, uninterrupted)


@pytest.mark.apart
def test_a_run_whose_terminal_is_closed_saves(tmp_path):
    """With a display that can no longer be written."""
    words = reference_overrides(tmp_path / "run", **CHANGES | {"epochs": 4000, "eval_interval": 2000})
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "pretrain.py", *words], command_environment())
    shown = b""
    while shown.count(b"step/s") < 5:
        shown += os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    last = read_metrics(tmp_path / "run")[-1]["step"]
    assert last < 4000 and read_state(tmp_path / f"run/state_{last}").progress.step == last


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
        read_state(folder / f"state_{step}")
    assert not list(folder.glob(".*")), "half a state takes the space that is missing"
    grow()
    pretrain(folder, **CHANGES)
    assert_same_run(folder, uninterrupted)


def test_a_state_written_twice_is_there_at_every_moment(tmp_path, monkeypatch):
    """Before and after an evaluation the same step is saved; a kill between the two renames loses nothing."""
    place, new = tmp_path / "state_20", tmp_path / ".state_20.tmp"
    for folder in (place, new):
        folder.mkdir()
    rename = Path.rename
    seen = []
    monkeypatch.setattr(Path, "rename", lambda *args: (rename(*args), seen.append(saved_states(tmp_path))))
    put_in_place(new, place, aside=tmp_path / "state_20.old")
    assert [[path.name for path in states] for states in seen] == [["state_20.old"], ["state_20", "state_20.old"]]
    assert [path.name for path in tmp_path.iterdir()] == ["state_20"]


def test_metrics_that_are_read_late_are_the_same(tmp_path, uninterrupted):
    """Six steps at a time, with evaluations and states in between, and a stop on the way."""
    late = CHANGES | {"log_interval": 6, "keep_last": 100}
    pretrain(tmp_path / "run", **late | {"max_minutes": 1e-5})
    assert read_metrics(tmp_path / "run")[-1]["step"] == 1
    pretrain(tmp_path / "run", **late)
    assert_same_run(tmp_path / "run", uninterrupted)
    states = {int(path.name.removeprefix("state_")) for path in (tmp_path / "run").glob("state_*")}
    assert states == {1, *range(7, 60, 7), 20, 40, 60}


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


def as_an_earlier_version_left_it(manifest: dict) -> None:
    """Without digests, without the dataset's identity, and without values that came later."""
    for key in ("sha256", "metrics_sha256"):
        del manifest[key]
    for key in ("evaluated", "held", "recent", "since_best", "ended_early"):
        del manifest["progress"][key]
    for key in [key for key in manifest["fixed"] if key.startswith("content.")]:
        del manifest["fixed"][key]
    manifest["files"] = [*manifest["files"]]


def test_a_state_of_an_earlier_version_goes_on(stopped):
    """With a hyper-parameter that is no more and did nothing, and without one that had its default of today."""
    retired = {f"arch.{key}": 4 for key in RETIRED_ARCH_KEYS}

    def earlier(manifest):
        as_an_earlier_version_left_it(manifest)
        del manifest["fixed"]["arch.q_target"]
        manifest["fixed"] |= retired

    edit_manifest(stopped / "state_1", earlier)
    pretrain(stopped, **CHANGES | {"max_minutes": 1e-5})
    assert read_metrics(stopped)[-1]["step"] == 2
    saved = json.loads((stopped / "state_2/manifest.json").read_text())
    assert not retired.keys() & saved["fixed"].keys()
    assert re.fullmatch("[0-9a-f]{16,32}", saved["fixed"]["content.train"])


def test_a_state_from_before_there_was_a_kernel_goes_on_with_any(tmp_path):
    config = composed("arch.mixing=torch", experiment="trm_sudoku_mlp")
    fixed = {f"arch.{key}": value for key, value in config.arch.model_dump().items()} | {"optimizer": config.optimizer}
    fixed["eval_interval"] = 1
    before = {key: value for key, value in fixed.items() if key != "arch.mixing"}
    check_same_run(tmp_path, SimpleNamespace(fixed=before), fixed, config)
    with pytest.raises(UserError, match=r"another arch\.mixing \(was triton, is torch\)"):
        check_same_run(tmp_path, SimpleNamespace(fixed=before | {"arch.mixing": "triton"}), fixed, config)


def found(run: Path, **changes):
    """What `resume=true` would go on from."""
    config = load_config(str(run / "all_config.yaml"))
    return find_state(config.model_copy(update={"checkpoint_path": str(run), "resume": True} | changes))


@pytest.fixture
def two_states(tmp_path, uninterrupted) -> Path:
    return shutil.copytree(uninterrupted, tmp_path / "run", ignore=shutil.ignore_patterns("step_*"))


def flip_a_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    path.write_bytes(data)


FILES = ("model.pt", "optimizers.pt", "rank_0.pt", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_or_says_nothing(two_states, name, caplog):
    path = two_states / "state_60" / name
    whole = path.read_bytes()
    before = found(two_states)
    assert before.path.name == "state_60" and before.passed_over == []
    for place in random.Random(0).sample(range(8 * len(whole)), 40):
        caplog.clear()
        flip_a_bit(path, place)
        after = found(two_states)
        if after.path.name == "state_60":  # white space of the manifest
            assert name == "manifest.json" and after == before
        else:
            assert (after.path.name, after.passed_over) == ("state_56", [two_states / "state_60"])
            assert str(path) in caplog.text and "passing over this state" in caplog.text
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["of another state", "cut short", "missing", "empty", "a folder"])
def test_what_is_not_the_file_that_was_saved_is_passed_over(two_states, name, damage, caplog):
    path = two_states / "state_60" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "of another state":
        shutil.copy(two_states / "state_56" / name, path)
    elif damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    assert found(two_states).path.name == "state_56"
    assert f"{two_states / 'state_60'}" in caplog.text
    with pytest.raises(UserError, match=re.escape(str(two_states / "state_60"))):
        found(two_states, resume=str(two_states / "state_60"))


MANIFESTS = {
    "step before the first": lambda m: m["progress"].update(step=-5),
    "another step": lambda m: m["progress"].update(step=10**9),
    "a step in words": lambda m: m["progress"].update(step="60"),
    "batches never taken": lambda m: m["progress"].update(batches=10**6),
    "an evaluation to come": lambda m: m["progress"].update(evaluated=61),
    "a best that is none": lambda m: m["progress"].update(best=[1]),
    "a value that is none": lambda m: m["progress"]["best"].update(value=float("nan")),
    "no metrics": lambda m: m.update(metrics_bytes=0),
    "metrics to the middle of a line": lambda m: m.update(metrics_bytes=m["metrics_bytes"] - 10),
    "more metrics than there are": lambda m: m.update(metrics_bytes=10**9),
    "a rank too many": lambda m: m.update(world_size=2),
    "no rank": lambda m: m.update(world_size=0),
    "no model": lambda m: m["files"].remove("model.pt") if type(m["files"]) is list else m["files"].pop("model.pt"),
    "no progress": lambda m: m.pop("progress"),
}


@pytest.mark.parametrize("version", ["earlier", "edited", "saved so"])
@pytest.mark.parametrize("change", MANIFESTS)
def test_an_impossible_manifest_is_passed_over(two_states, version, change):
    state = two_states / "state_60"
    if version == "earlier":
        edit_manifest(state, as_an_earlier_version_left_it)
    assert found(two_states).path == state
    edit_manifest(state, MANIFESTS[change], digest=version == "saved so")
    assert found(two_states).path.name == "state_56"


@pytest.mark.parametrize("version", ["earlier", "this"])
def test_a_run_goes_on_only_with_its_metrics(two_states, version):
    if version == "earlier":
        for state in saved_states(two_states):
            edit_manifest(state, as_an_earlier_version_left_it)
    metrics = two_states / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    last_two_ways = {"shortened": b"".join(lines[:-1]), "cut in a line": b"".join(lines)[:-5]}
    for content in last_two_ways.values():
        metrics.write_bytes(content)
        assert found(two_states).path.name == "state_56"
    others = {"emptied": b"", "another run's": b'{"step": 1}\n' * 200}
    for content in others.values():
        metrics.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl has not the lines that it had at step 60; restore it, or"):
            found(two_states)
    metrics.unlink()
    with pytest.raises(UserError, match="has not the lines"):
        found(two_states)
    branch = found(two_states, resume=str(two_states / "state_60"), checkpoint_path=str(two_states / "branch"))
    assert (branch.path.name, branch.manifest.metrics_bytes) == ("state_60", 0)


def test_a_changed_line_of_the_metrics_is_found(two_states):
    manifest = found(two_states).manifest
    flip_a_bit(two_states / "metrics.jsonl", 300)
    with pytest.raises(UserError, match="has not the lines"):
        check_metrics(two_states, manifest, needed=True)


def test_states_that_a_run_does_not_go_on_from_are_not_its_newest(two_states, uninterrupted, caplog):
    """Else the next states would be taken for the oldest, and removed."""
    flip_a_bit(two_states / "state_60/model.pt", 5000)
    pretrain(two_states, **CHANGES)
    for name in ("step_60", "metrics.jsonl"):
        assert (two_states / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert sorted(path.name for path in two_states.glob("state_*")) == ["state_56", "state_60", "state_60.aside"]
    with pytest.raises(UserError, match="damaged"):
        read_state(two_states / "state_60.aside")


def test_a_run_that_is_named_in_another_way_is_the_same_run(two_states, monkeypatch):
    flip_a_bit(two_states / "state_60/model.pt", 5000)
    (two_states.parent / "link").symlink_to(two_states)
    monkeypatch.chdir(two_states.parent)
    for name in ("link", "run", "./run/../link", str(two_states)):
        state = found(two_states, resume=name)
        assert (state.path.name, [path.name for path in state.passed_over]) == ("state_56", ["state_60"])


def test_checkpoints_of_a_future_that_was_left_are_set_aside(tmp_path, uninterrupted):
    """Else the Hub would get the newest of them, whose learning rates were others."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    pretrain(run, **CHANGES | {"resume": run / "state_56", "max_minutes": 1e-5})
    assert sorted(path.name for path in run.glob("step_*")) == ["step_20", "step_40", "step_60.aside"]
    assert sorted(path.name for path in run.glob("state_*")) == ["state_56", "state_57", "state_60.aside"]


def test_what_was_made_with_a_checkpoint_is_set_aside_with_it(tmp_path):
    """Else it would be taken for the work of the checkpoint that comes in its place."""
    suffixes = ("", "_ema", "_preds", "_ema_preds", "_all_preds.0", "_ema_all_preds.12", "_search", "_ema_search")
    for step in (100, 200):
        for suffix in (*suffixes, ".aside", "_of_mine.txt", "_preds.aside"):
            (tmp_path / f"step_{step}{suffix}").touch()
    assert {path.name for path in later_checkpoints(tmp_path, 100)} == {f"step_200{suffix}" for suffix in suffixes}


@pytest.mark.parametrize("state", ["state_56", "state_60"])
def test_a_run_cannot_go_on_to_an_earlier_end(two_states, capsys, state):
    """It would be past it, and never over."""
    line = refusal(capsys, two_states, **CHANGES | {"resume": two_states / state, "epochs": 8})
    assert f"{two_states / state} is of epoch 12, which is behind epochs=8; give epochs=12 or more, or go on" in line


def test_a_run_can_be_made_shorter(stopped, uninterrupted):
    assert pretrain(stopped, **CHANGES | {"epochs": 4})[-1]["step"] == 20
    assert pretrain(stopped, **CHANGES | {"epochs": 4})[-1]["step"] == 20, "it was finished"


def test_the_best_of_a_future_that_was_left_is_no_longer_the_best(tmp_path):
    """Else evaluate.py would look for a checkpoint that is not there."""
    run = tmp_path / "run"
    asked = LIGHT | {"epochs": 4, "eval_interval": 2, "checkpoint_interval": 5, "keep_last": 9}
    pretrain(run, **asked)
    assert json.loads((run / "best.json").read_text())["step"] in (10, 20)
    pretrain(run, **asked | {"resume": run / "state_15", "max_minutes": 1e-5})
    assert json.loads((run / "best.json").read_text())["checkpoint"] == "step_10"
    pretrain(run, **asked | {"resume": run / "state_5", "max_minutes": 1e-5})
    assert not list(run.glob("step_10")) and not (run / "best.json").exists()


def test_a_run_goes_on_without_the_run_that_its_weights_came_from(tmp_path, uninterrupted):
    weights, run = tmp_path / "weights", tmp_path / "run"
    shutil.copy(CHANGES["load_checkpoint"], weights)
    pretrain(run, **CHANGES | {"load_checkpoint": weights, "max_minutes": 1e-5})
    weights.unlink()
    pretrain(run, **CHANGES | {"load_checkpoint": weights})
    assert_same_run(run, uninterrupted)


def test_states_on_another_disk_are_the_runs_own(two_states, uninterrupted):
    elsewhere = two_states.parent / "scratch"
    (two_states / "state_60").rename(elsewhere)
    (two_states / "state_60").symlink_to(elsewhere)
    assert found(two_states).path == two_states / "state_60"
    assert found(two_states).manifest.metrics_bytes == (uninterrupted / "metrics.jsonl").stat().st_size
    pretrain(two_states, **CHANGES | {"epochs": 16, "keep_last": 1})
    assert [path.name for path in saved_states(two_states)] == ["state_80"] and elsewhere.exists()


def test_a_run_killed_between_its_first_checkpoint_and_its_first_state_goes_on(tmp_path, monkeypatch):
    changes = {key: value for key, value in CHANGES.items() if key != "checkpoint_interval"} | {"epochs": 8}
    whole = pretrain(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "save_checkpoints", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            pretrain(tmp_path / "run", **changes)
    (tmp_path / "run/step_20").write_bytes(b"half a checkpoint's life")
    assert pretrain(tmp_path / "run", **changes) == whole
    for name in ("step_20", "step_40", "best.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_state_that_was_set_aside_before_is_kept(tmp_path):
    for name in ("state_60.aside", "state_60"):
        (tmp_path / name).mkdir()
    set_aside([tmp_path / "state_60"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state_60.aside", "state_60.aside1"]


def test_what_lies_beside_the_states_is_mended_or_refused_before_a_step_is_made(two_states, capsys, caplog):
    """best.json is made anew from the state; a list of starts that cannot be read does not cost the run."""
    best = (two_states / "best.json").read_bytes()
    (two_states / json.loads(best)["checkpoint"]).touch()
    (two_states / "best.json").write_text("{")
    (two_states / "environment.json").write_text("null")
    pretrain(two_states, **CHANGES)
    assert (two_states / "best.json").read_bytes() == best
    assert len(json.loads((two_states / "environment.json").read_text())) == 1
    assert (two_states / "environment.json.damaged").read_text() == "null"
    assert "environment.json is no list; a new one is begun" in caplog.text
    (two_states / "checkpoints.json").write_text("{")
    assert "checkpoints.json is not JSON" in refusal(capsys, two_states, **CHANGES)


def test_no_two_processes_train_in_one_folder(stopped, capsys):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with locked(stopped / ".lock", "trains there"):
        line = refusal(capsys, stopped, **CHANGES)
    assert re.search(rf"another process trains in {stopped}: process \d+ on \S+; wait for it or end it", line)
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["losses.py", "metrics.jsonl", "environment.json"])
def test_a_folder_with_somebodys_files_is_not_taken_for_a_run(tmp_path, capsys, name):
    (tmp_path / name).write_text("theirs")
    line = refusal(capsys, tmp_path, **CHANGES)
    assert f"{tmp_path} is no run folder, but holds {name}, which the run would overwrite; choose another" in line
    assert [path.name for path in tmp_path.iterdir()] == [name]


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


def without_passes_of_its_own(manifest: dict) -> None:
    """As an earlier version wrote it: what was configured, not how long a pass was."""
    manifest["fixed"]["eval_interval"] = None


@pytest.mark.parametrize("version", ["earlier", "this"])
def test_a_pass_that_is_as_long_as_the_run_cannot_become_longer(tmp_path, capsys, version):
    """It would have other batches, and a finished one would count as the whole of a run that has more epochs."""
    run, once = tmp_path / "run", LIGHT | {"epochs": 4, "eval_interval": "null", "resume": "true"}
    pretrain(run, **once | {"max_minutes": 1e-5})
    if version == "earlier":
        edit_manifest(run / "state_1", without_passes_of_its_own)
    for changes in ({"epochs": 8}, {"eval_interval": 2}):
        line = refusal(capsys, run, **once | changes)
        now = "2" if "eval_interval" in changes else "8: null means all epochs"
        assert f"{run}/state_1 cannot be resumed with another eval_interval (was 4, is {now}); restore these" in line
    whole = pretrain(run, **once)
    if version == "earlier":
        edit_manifest(run / "state_20", without_passes_of_its_own)
    assert "eval_interval (was 4, is 8" in refusal(capsys, run, **once | {"epochs": 8})
    assert pretrain(run, **once) == whole, "it was finished"
    assert pretrain(run, **once | {"epochs": 8, "eval_interval": 4})[-1]["step"] == 40


def test_a_pass_of_an_earlier_version_whose_config_is_gone_has_the_epochs_of_now(stopped, capsys):
    edit_manifest(stopped / "state_1", without_passes_of_its_own)
    (stopped / "all_config.yaml").unlink()
    stop = CHANGES | {"max_minutes": 1e-5}
    assert "eval_interval (was 12, is 4)" in refusal(capsys, stopped, **stop)
    assert pretrain(stopped, **stop | {"eval_interval": "null"})[-1]["step"] == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_was_rebuilt_cannot_be_gone_on_with(tmp_path, stopped_once, capsys, split):
    """The same number of puzzles of the same size: only their content tells."""
    data = shutil.copytree(PIPELINE / "dataset", tmp_path / "data")
    labels = np.load(data / split / "all__labels.npy")
    np.save(data / split / "all__labels.npy", labels[::-1])
    line = refusal(capsys, stopped_once, **CHANGES | {"data_path": data})
    assert f"another dataset ({data}/{split} holds other puzzles than it did: it was rebuilt or changed)" in line


@pytest.mark.parametrize(("key", "value"), [("q_target", "every_n"), ("forward_dtype", "float16")])
def test_a_run_with_a_value_that_no_longer_exists_is_told_what_to_do(stopped, capsys, key, value):
    edit_manifest(stopped / "state_1", lambda manifest: manifest["fixed"].update({f"arch.{key}": value}))
    line = refusal(capsys, stopped, **CHANGES)
    assert f"was trained with arch.{key}={value}, which no longer exists" in line
    assert line.endswith("start a new run from its weights: load_checkpoint=<its run>/step_<n>")


def test_other_data_cannot_be_gone_on_with(tmp_path, stopped_once, capsys):
    data = shutil.copytree(PIPELINE / "dataset", tmp_path / "data")
    for split in ("train", "test"):
        text = (data / split / "dataset.json").read_text()
        text = text.replace('"num_puzzle_identifiers": 1', '"num_puzzle_identifiers": 2')
        (data / split / "dataset.json").write_text(text)
    line = refusal(capsys, stopped_once, **CHANGES | {"data_path": data})
    assert re.search(r"another data \(was [0-9a-f]{16}, is [0-9a-f]{16}\)", line)


def test_a_state_that_is_not_there_is_refused(stopped_once, capsys):
    line = refusal(capsys, stopped_once, **CHANGES | {"resume": stopped_once / "nowhere"})
    assert line.endswith("it holds no training state; name a run folder or a state_<n> in it")


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
    (folder / "all_config.yaml").write_text("seed: 7")
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/lr": 0.5}\n')
    pretrain(folder, **CHANGES | {"max_minutes": 1e-5})
    assert read_metrics(folder) == read_metrics(uninterrupted)[:1]


def test_a_state_that_is_a_link_to_nowhere_is_passed_over(tmp_path):
    """The disk that it was moved to is gone."""
    run = tmp_path / "run"
    pretrain(run, epochs=4)
    (run / "state_99").symlink_to(tmp_path / "gone")
    lines = pretrain(run, epochs=8, resume="true")
    assert lines[-1]["step"] == 40 and (run / "state_99.aside").is_symlink()


def test_figures_are_known_by_their_names():
    assert all(CHECKPOINT_OR_ITS_WORK.fullmatch(f"step_7_ema_{name}.json") for name in FIGURES)


def test_a_branch_has_no_best_that_is_another_runs(tmp_path):
    """Else no command would find a checkpoint in its folder."""
    run, branch = tmp_path / "run", tmp_path / "branch"
    asked = LIGHT | {"epochs": 4, "eval_interval": 2, "lr": 1e-9}  # nothing gets better
    pretrain(run, **asked)
    assert json.loads((run / "best.json").read_text())["checkpoint"] == "step_10"
    pretrain(branch, **asked | {"resume": run / "state_20", "epochs": 6})
    pretrain(branch, **asked | {"resume": "true", "epochs": 8})
    assert sorted(path.name for path in branch.glob("step_*")) == ["step_30", "step_40"]
    assert not (branch / "best.json").exists()


def test_a_branch_of_what_is_over_is_refused(tmp_path, uninterrupted, capsys):
    """It would say that it is finished, and have nothing."""
    line = refusal(capsys, tmp_path / "branch", **CHANGES | {"resume": uninterrupted})
    assert line.endswith(
        "/state_60 is of a run that is over, with nothing left to do; raise epochs, or change early_stop"
    )
    assert not (tmp_path / "branch").exists()


def test_what_was_best_on_other_puzzles_does_not_count(tmp_path, caplog):
    run, asked = tmp_path / "run", LIGHT | {"epochs": 4, "eval_interval": 2, "lr": 1e-9, "resume": "true"}
    pretrain(run, **asked | {"eval_max_examples": 1})
    best = json.loads((run / "best.json").read_text())
    assert best["step"] == 10
    pretrain(run, **asked | {"eval_max_examples": 2, "epochs": 6})
    said = (
        "evaluated was the split test, 1 examples of each set, from here on the split test, 2 examples of each set is"
    )
    assert f"{said}: the best so far no longer counts" in caplog.messages
    assert json.loads((run / "best.json").read_text())["step"] == 30
    caplog.clear()
    pretrain(run, **asked | {"eval_max_examples": 2, "epochs": 8})
    assert json.loads((run / "best.json").read_text())["step"] == 30
    assert not [message for message in caplog.messages if "no longer counts" in message]


def test_a_run_that_ended_early_on_other_puzzles_has_a_branch(tmp_path):
    """That nothing got better there says nothing of these."""
    asked = {"epochs": 8, "eval_interval": 2, "lr": 1e-9, "early_stop.patience": 1}
    assert pretrain(tmp_path / "run", **asked | {"eval_max_examples": 1})[-1]["step"] == 20
    branch = tmp_path / "branch"
    assert pretrain(branch, **asked | {"eval_max_examples": 2, "resume": tmp_path / "run"})[-1]["step"] == 40
    assert json.loads((branch / "best.json").read_text())["step"] == 30


def test_what_was_made_with_a_checkpoint_that_is_replaced_is_set_aside(tmp_path):
    """Else it would be taken for the work of the new one; that of an equal one stays."""
    run, asked = tmp_path / "run", LIGHT | {"epochs": 4, "eval_interval": 2, "keep_last": 9}
    asked["checkpoint_every_eval"] = "true"
    pretrain(run, **asked)
    for name in ("step_10_preds", "step_20_search", "step_20_all_preds.0", "step_20_ema_preds", "step_20_scaling.png"):
        (run / name).mkdir()
    shutil.rmtree(run / "state_20")
    pretrain(run, **asked | {"resume": "true"})
    assert not list(run.glob("*.aside"))
    shutil.rmtree(run / "state_20")
    pretrain(run, **asked | {"resume": "true", "lr": 3e-4})
    assert sorted(path.name for path in run.glob("*.aside")) == [
        "step_20_all_preds.0.aside", "step_20_scaling.png.aside", "step_20_search.aside"
    ]  # fmt: skip
    assert (run / "step_10_preds").exists() and (run / "step_20_ema_preds").exists()


@pytest.mark.parametrize("name", ["checkpoint", "model.safetensors"])
def test_a_published_checkpoint_keeps_its_config(tmp_path, capsys, name):
    run = tmp_path / "published"
    run.mkdir()
    for file in (name, "all_config.yaml"):
        (run / file).write_text("theirs")
    for resume in ("true", "false"):
        line = refusal(capsys, run, **CHANGES | {"resume": resume})
        assert f"checkpoint_path={run} holds {name}, a checkpoint that was published; choose another, and start" in line
    assert (run / "all_config.yaml").read_text() == "theirs"


def test_a_full_disk_under_stdout_does_not_end_a_run(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    words = reference_overrides(tmp_path / "run", epochs=2, eval_interval=1)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "pretrain.py", *words]
        subprocess.run(command, cwd=ROOT, env=command_environment(), stdout=full, stderr=subprocess.DEVNULL, check=True)
    assert (tmp_path / "run/step_10").exists()


def test_a_branch_that_left_no_state_branches_off_again(stopped, capsys):
    """Not from the first step, which `resume=true` would begin with."""
    branch = stopped.parent / "branch"
    asked = CHANGES | {"resume": stopped / "state_1", "max_minutes": 1e-5}
    pretrain(branch, **asked)
    shutil.rmtree(branch / "state_2")  # as if it had been killed before
    line = refusal(capsys, branch, **asked | {"resume": "true"})
    assert line.endswith(f"has no training state of its own yet; give resume={stopped / 'state_1'} again")
    assert "already holds a run" in refusal(capsys, branch, **asked | {"resume": stopped})
    assert [line["step"] for line in pretrain(branch, **asked)] == [1, 2]


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


@pytest.mark.apart
def test_another_number_of_ranks_restarts_the_sequences(stopped):
    done = warm.run("pretrain.py", *reference_overrides(stopped, **CHANGES | {"max_minutes": 1e-5}), ranks=2)
    assert "was saved by 1 ranks, now there are 2: every sequence starts afresh" in done.stdout
    assert read_metrics(stopped)[-1]["step"] == 2
    assert json.loads((stopped / "state_2/manifest.json").read_text())["world_size"] == 2


def test_old_states_are_removed_and_checkpoints_kept(uninterrupted):
    assert sorted(path.name for path in uninterrupted.glob("state_*")) == ["state_56", "state_60"]
    assert sorted(path.name for path in uninterrupted.glob("step_*")) == ["step_20", "step_40", "step_60"]
    assert not list(uninterrupted.glob(".*"))
