"""Ranks that fail, are killed or stopped together: python -m pytest tests/test_ranks.py"""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

import pytest

from errors import UserError
from tests import warm
from tests.flattering import flattering_run
from tests.interrupted import CHANGES, assert_same_run, kill_three_times, start, start_torchrun, wait_for_step
from tests.launch import run
from tests.runs import pretrain, read_metrics, reference_overrides, refusal
from tests.waiting import wait_for
from tests.warm import Started
from training import run_folder
from training.distributed import Ranks
from training.predictions import writing_predictions


@pytest.mark.apart
def test_two_ranks_killed_three_times_at_random(tmp_path):
    changes = CHANGES | {"epochs": 8, "eval_interval": 2}  # 40 steps
    kill_three_times(tmp_path / "run", ranks=2, before=32, **changes)
    for name in ("run", "whole"):
        warm.run("pretrain.py", *reference_overrides(tmp_path / name, **changes), ranks=2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "train/lr" in line] == list(range(1, 41))


@pytest.mark.apart
def test_a_signal_stops_all_ranks_at_one_step(tmp_path):
    """To one rank first, then to torchrun, which passes it on."""
    folder = tmp_path / "run"
    process = start(folder, 2)
    wait_for_step(process, folder, 11)
    process.send_signal(signal.SIGUSR1, rank=1)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert_stopped(folder, 11, "a signal to another rank", output)

    process = start_torchrun(folder, 2)
    wait_for_step(process, folder, 31)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0, output  # torchrun itself fails on a signal
    assert_stopped(folder, 31, "SIGTERM", output)


def assert_stopped(folder: Path, earliest: int, why: str, output: str) -> None:
    stopped = read_metrics(folder)[-1]["step"]
    assert earliest <= stopped < 60
    assert f"stopped ({why}) at step {stopped}; to go on" in output
    assert json.loads((folder / f"state_{stopped}/manifest.json").read_text())["world_size"] == 2


def test_predictions_that_rank_0_may_not_write_end_the_others_quietly(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "broadcast_object", lambda ranks, value: (None, "another process writes them"))
    with pytest.raises(SystemExit) as end, writing_predictions(tmp_path / "step_1", Ranks(1, 2, 1)):
        pass
    assert end.value.code == 2


@pytest.mark.parametrize("step", ["create", "record_environment", "write_best"])
def test_a_run_folder_that_rank_0_cannot_prepare_is_told_to_the_others(tmp_path, capsys, monkeypatch, step):
    changes, told = {"epochs": 4, "eval_interval": 2, "resume": "true"}, []
    if step == "write_best":
        pretrain(tmp_path / "run", **changes)

    def from_main(ranks, call):
        try:
            return call()
        except UserError as error:
            told.append(str(error))
            raise

    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(Ranks, "from_main", from_main)
    monkeypatch.setattr(run_folder, step, fail)
    assert refusal(capsys, tmp_path / "run", **changes) == "error: the disk is full"
    assert told == ["the disk is full"]


@pytest.mark.apart
def test_a_rank_that_raises_ends_the_job_with_its_own_traceback_last(tmp_path):
    start = time.monotonic()
    done = run("-m", "tests.test_ranks", "train_step", *reference_overrides(tmp_path / "run"), ranks=2, check=False)
    assert time.monotonic() - start < 60  # starting up included; gloo alone would wait for 30 minutes
    assert done.returncode != 0
    report = done.stderr[done.stderr.rindex("Root Cause") :]
    assert "rank      : 1 " in report
    assert "RuntimeError: this rank is broken" in report
    assert "in breaking_step" in report


REFUSED, FULL = UserError("no room"), OSError(errno.ENOSPC, "no room")
NO_PREDICTIONS = "cannot write predictions to {}/step_60_preds: no room; set output_dir"
# What fails on rank 0 -> its error, its line, and whether the other rank has one that leads to it
FAULTS = {
    "pretrain.save_weights": (REFUSED, "no room", False),
    "training.metrics.MetricsLog.write": (REFUSED, "no room", False),
    "training.metrics.MetricsLog.sync": (FULL, "no room", False),
    "training.run_folder.record_end": (REFUSED, "no room", False),
    "training.predictions.put_in_place": (FULL, NO_PREDICTIONS, False),
    "dataset.arrays.NpyStream.append": (FULL, NO_PREDICTIONS, True),
    "evaluate.table": (FULL, "no room", True),  # at the very end
}


@pytest.mark.apart
@pytest.mark.parametrize("fault", FAULTS)
def test_what_one_rank_cannot_write_ends_all_of_them_in_a_line(tmp_path, fault):
    _, line, told = FAULTS[fault]
    if fault.startswith(("training.predictions", "dataset", "evaluate")):
        checkpoint = flattering_run(tmp_path)
        folder, words = checkpoint.parent, [f"checkpoint={checkpoint}"]
    else:
        folder, words = tmp_path, reference_overrides(tmp_path / "run", epochs=2, eval_interval=2)
    ranks = Started("-m", "tests.test_ranks", fault, *words, ranks=2)
    wait_for(lambda: ranks.poll() is not None, "the end of both ranks", pause=0.1)  # `communicate` would kill the other
    err = ranks.communicate()[1]
    assert (ranks.poll(), "Traceback" in err) == (2, False), err
    lines = [one[one.index("error: ") :] for one in err.splitlines() if "error: " in one]
    others = [one for one in lines if one.startswith("error: another rank has ended, ")]
    assert [one for one in lines if one not in others] == [f"error: {line.format(folder)}"], err
    assert len(others) == told, err


def break_rank_0(fault: str) -> None:
    def fail(*_, **__):
        raise FAULTS[fault][0]

    place, name = fault.rsplit(".", 1)
    if os.environ["RANK"] == "0":
        setattr(resolve_name(place), name, fail)


def break_rank_1_in_the_third_step(command) -> None:
    train_step = command.train_step

    def breaking_step(state, *args):
        if os.environ["RANK"] == "1" and state.step == 2:
            raise RuntimeError("this rank is broken")
        return train_step(state, *args)

    command.train_step = breaking_step


if __name__ == "__main__":  # pretrain.py or evaluate.py, of which something fails on one rank
    import evaluate
    import pretrain as pretrain_command

    fault = sys.argv.pop(1)
    if fault in FAULTS:
        break_rank_0(fault)
    else:
        break_rank_1_in_the_third_step(pretrain_command)
    command = evaluate if sys.argv[1].startswith("checkpoint=") else pretrain_command
    command.main()
