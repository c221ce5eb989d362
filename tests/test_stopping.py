"""Ending a run before its epochs are used up: python -m pytest tests/test_stopping.py"""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

import evaluate
import pretrain as pretrain_module
from dataset.format import SplitWriter, write_identifiers
from evaluators import search
from tests.interrupted import signal_in_evaluation
from tests.launch import ROOT
from tests.runs import LIGHT, here, lines_with, pretrain, read_metrics
from training.config import EarlyStop
from training.distributed import Ranks
from training.stopping import SIGNALS, WINDOW, EarlyStopping, Stopped, StopRequest

ONE = Ranks(0, 1, 0)


def test_the_training_accuracy_is_that_of_the_sequences_of_the_window():
    early = EarlyStopping(EarlyStop(train_exact_accuracy=0.9), ONE)
    for _ in range(50):
        early.note_step(count=1, exact=0)
    for _ in range(WINDOW - 51):
        early.note_step(count=9, exact=9)
    assert early.reason() is None  # the window is not full
    early.note_step(count=9, exact=9)
    # 450 of 500 sequences, though only half of the steps went well
    assert early.reason() == "90.0% of the training sequences of the last 100 steps were exactly right"
    early.note_step(count=3, exact=0)  # 450 of 502: a step of one sequence left the window
    assert early.reason() is None
    for _ in range(WINDOW):
        early.note_step(count=0, exact=0)
    assert early.reason() is None


@pytest.fixture
def handlers():
    """Of signals, put back after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_a_reason_to_stop_until_the_run_is_over_and_then_nothing(handlers):
    for number in SIGNALS:
        request = StopRequest(None, ONE)
        request.check()
        signal.raise_signal(number)
        with pytest.raises(Stopped, match=number.name):
            request.check()
    StopRequest(None, ONE).done()
    # Ignored by the process, not by Python: it takes its own handlers down before it ends.
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}


def test_a_run_under_nohup_outlives_its_terminal(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest(None, ONE)
    signal.raise_signal(signal.SIGHUP)
    request.check()


def test_a_run_stops_after_so_many_minutes(handlers, monkeypatch):
    now = 500.0
    monkeypatch.setattr("training.stopping.time.monotonic", lambda: now)
    request = StopRequest(2.5, ONE)
    now += 149
    request.check()
    now += 2
    with pytest.raises(Stopped, match=r"^max_minutes=2\.5$"):
        request.check()


def test_a_step_that_would_end_too_late_is_not_begun(handlers, monkeypatch):
    now = 500.0
    monkeypatch.setattr("training.stopping.time.monotonic", lambda: now)
    request = StopRequest(10, ONE)
    now += 400
    request.note_step(199)
    assert request.reason is None
    request.note_step(201)
    assert request.reason == "max_minutes=10"
    request.note_step(0)  # an evaluation, which is looked at batch by batch
    assert request.reason is None


def test_patience_counts_evaluations():
    patient, endless = EarlyStopping(EarlyStop(patience=3), ONE), EarlyStopping(EarlyStop(), ONE)
    for improved, reason in ((True, False), (False, False), (False, False), (False, True), (True, False)):
        patient.note_evaluation(improved)
        endless.note_evaluation(improved=False)
        assert (patient.reason() == "no better eval/exact_accuracy in 3 evaluations") is reason
    assert endless.reason() is None


def test_a_run_out_of_patience_ends_and_goes_on_when_given_more(tmp_path, capsys):
    changes = LIGHT | {"eval_interval": 1, "resume": "true"}
    # Evaluations are five steps apart; nothing is solved, so that the first stays the best.
    expected = f"finished: {tmp_path / 'run/step_15'} (no better eval/exact_accuracy in 2 evaluations)"
    for _ in range(2):  # the second start finds that it has ended
        lines = pretrain(tmp_path / "run", **changes | {"early_stop.patience": 2})
        assert capsys.readouterr().out.splitlines()[-1] == expected
        assert [line["step"] for line in lines_with(lines, "eval/")] == [5, 10, 15]
    pretrain(tmp_path / "run", **changes | {"early_stop.patience": 3})
    pretrain(tmp_path / "patient", **changes | {"early_stop.patience": 3})
    assert read_metrics(tmp_path / "run")[-1]["step"] == 20
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "patient/metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """40 puzzles of four tokens whose answer is the input."""
    path = tmp_path_factory.mktemp("easy")
    tokens = np.random.default_rng(0).integers(1, 6, (40, 4))
    for split in ("train", "test"):
        writer = SplitWriter(path, split, seq_len=4)
        one_each = np.ones(40, np.int32)
        writer.append(tokens, tokens, puzzle_identifiers=0 * one_each, puzzle_sizes=one_each, group_sizes=one_each)
        writer.finish(vocab_size=6, num_puzzle_identifiers=1)
    write_identifiers(path, [])
    return path


@pytest.fixture(scope="module")
def learning(easy) -> dict:
    """The changes of a run that learns them in 150 steps, with one evaluation at its end."""
    changes = {"data_path": easy, "load_checkpoint": None, "lr": 1e-2, "lr_min_ratio": 1, "epochs": 30}
    return changes | {"eval_interval": 30, "arch.H_cycles": 1, "arch.L_cycles": 1, "arch.q_target": "off"}


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory, learning) -> list[dict]:
    """The lines of that run where no rule ends it."""
    return pretrain(tmp_path_factory.mktemp("unstopped") / "run", **learning)


def test_a_learned_training_set_ends_the_run_between_evaluations(tmp_path, learning, unstopped, capsys):
    changes = learning | {"resume": "true", "early_stop.train_exact_accuracy": 0.8}
    lines = pretrain(tmp_path / "run", **changes)
    stopped = lines[-1]["step"]
    assert WINDOW <= stopped < 150
    assert [line["step"] for line in lines_with(lines, "eval/")] == [stopped]
    farewell = rf"finished: {tmp_path}/run/step_{stopped} \((8|9)\d\.\d% of the training sequences of the last 100 .*\)"
    assert re.fullmatch(farewell, capsys.readouterr().out.splitlines()[-1])
    assert (tmp_path / f"run/step_{stopped}").exists()
    # Lifted, the run is what it would have been, but for that evaluation.
    resumed = pretrain(tmp_path / "run", **learning, resume="true")
    assert resumed.pop(stopped) == lines[-1]
    assert resumed == unstopped
    assert resumed[-1]["step"] == 150


@pytest.fixture(scope="module")
def reached_late(unstopped) -> float:
    """A share of right sequences that the window reaches for the first time after it is full, and before the end."""
    sums = [(line["train/count"], line["train/exact_accuracy"]) for line in lines_with(unstopped, "train/")]
    counts = np.array([max(count, 1) if count else 0 for count, _ in sums])
    windows = [slice(step - WINDOW, step) for step in range(WINDOW, len(sums) + 1)]
    right = np.array([share * count for (_, share), count in zip(sums, counts, strict=True)])
    shares = np.array([right[window].sum() / counts[window].sum() for window in windows])
    best = np.maximum.accumulate(shares)
    (new,) = np.nonzero(best[10:40] > best[9:39])
    return float(best[9 + new[0] : 11 + new[0]].mean())


@pytest.fixture(scope="module")
def seldom(tmp_path_factory, learning, reached_late) -> tuple[dict, list[dict]]:
    """The changes of a run that looks at its metrics every 6 steps and ends early, and its lines."""
    changes = learning | {"log_interval": 6, "resume": "true", "early_stop.train_exact_accuracy": reached_late}
    return changes, pretrain(tmp_path_factory.mktemp("seldom") / "whole", **changes)


@pytest.mark.parametrize("before", [1, 4, 8])
def test_a_stop_between_two_looks_does_not_change_where_a_run_ends(tmp_path, seldom, monkeypatch, before):
    """The state then knows the metrics of steps of which an uninterrupted run does not know at its next look."""
    changes, whole = seldom
    stop_at = whole[-1]["step"] - before
    step = pretrain_module.train_step

    def signalled(state, *args):
        done = step(state, *args)
        if state.step == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "train_step", signalled)
        assert pretrain(tmp_path / "run", **changes)[-1]["step"] == stop_at
    assert pretrain(tmp_path / "run", **changes) == whole


def test_a_launcher_that_is_gone_is_a_reason_to_stop(handlers, monkeypatch):
    stop = StopRequest(None, ONE)
    monkeypatch.setattr("os.getppid", lambda: 7)
    for launched_by, gone in ((None, False), (7, False), (8, True)):
        monkeypatch.setattr("training.launcher._LAUNCHER", launched_by)
        assert stop.asked() == gone
    assert stop.reason == "torchrun is gone"


def test_a_rank_that_waits_for_others_ends_when_its_launcher_is_gone():
    """A child of a shell that ends at once, as a rank of a torchrun that is killed while the ranks find each other."""
    waits = "from training import launcher\nimport os, time\nprint(os.getpid(), flush=True)\n"
    waits += "with launcher.watched(): time.sleep(60)"
    shell = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(waits)} & sleep 2"],
        cwd=ROOT, env=os.environ | {"TORCHELASTIC_RUN_ID": "7"}, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    # `run` has returned because the child, which holds stdout, has ended too: long before its 60 seconds.
    assert int(shell.stdout)


@pytest.mark.parametrize(("command", "work"), [(search, "run_search"), (evaluate, "evaluate_checkpoint")])
def test_a_rank_at_work_ends_when_its_launcher_is_gone(command, work, tmp_path, monkeypatch):
    """Else it would hold the folder of a search that is to go on."""
    seen, watching = [], []

    @contextmanager
    def watched():
        watching.append(True)
        yield
        watching.clear()

    monkeypatch.setattr("training.launcher.watched", watched)
    monkeypatch.setattr(command, work, lambda *_: seen.append(list(watching)))
    (tmp_path / "step_1").touch()
    here(command.main, f"checkpoint={tmp_path / 'step_1'}", "device=cpu")
    assert (seen, watching) == ([[True]], [])


def test_several_ranks_vote_at_the_same_steps(handlers, monkeypatch):
    two = StopRequest(None, Ranks(1, 2, 1))
    monkeypatch.setattr(Ranks, "any", lambda self, *flags: [True])  # the other rank has got a signal
    assert [step for step in range(1, 31) if two.asked_after(step)] == [10, 20, 30]
    assert [step for step in range(1, 4) if StopRequest(None, ONE).asked_after(step)] == [1, 2, 3]


def test_a_state_saved_by_the_clock_does_not_change_where_a_run_ends(tmp_path, learning, reached_late):
    """Also when it goes on from the states just before its end, which have seen more metrics than the run had."""
    changes = learning | {"early_stop.train_exact_accuracy": reached_late}
    whole = pretrain(tmp_path / "whole", **changes)
    stopped = whole[-1]["step"]
    assert WINDOW + 2 < stopped < 150
    clocked = pretrain(tmp_path / "clocked", checkpoint_minutes=1e-9, keep_last=200, **changes)
    assert clocked == whole
    for step in range(stopped - 3, stopped):
        resumed = pretrain(tmp_path / str(step), resume=tmp_path / f"clocked/state_{step}", **changes)
        assert resumed == whole


def test_a_pass_that_a_rule_has_ended_is_over_for_a_resumed_run_too(tmp_path, learning):
    """A signal comes between that end and the evaluation that belongs to it."""
    changes = learning | {"resume": "true", "early_stop.train_exact_accuracy": 0.8}
    with signal_in_evaluation():
        lines = pretrain(tmp_path / "run", **changes)
    stopped = lines[-1]["step"]
    assert WINDOW <= stopped < 150
    assert pretrain(tmp_path / "run", **changes)[:-1] == lines
    evaluation = read_metrics(tmp_path / "run")[-1]
    assert evaluation["step"] == stopped
    assert "eval/accuracy" in evaluation


def test_steps_that_were_held_back_count_in_a_resumed_run_when_it_looks_again():
    early, resumed = (EarlyStopping(EarlyStop(train_exact_accuracy=0.5), ONE) for _ in range(2))
    for _ in range(WINDOW):
        early.note_step(count=1, exact=0)
    early.holding = True
    for _ in range(WINDOW // 2):
        early.note_step(count=1, exact=1)
    resumed.load_progress(early.progress())
    assert resumed.reason() is None
    resumed.count_held()
    assert resumed.reason() == "50.0% of the training sequences of the last 100 steps were exactly right"


def test_a_state_of_an_earlier_version_may_lack_what_is_saved_now():
    early = EarlyStopping(EarlyStop(patience=1), ONE)
    early.load_progress({"since_best": 1})
    assert early.reason() is not None
    assert early.progress() == {"ended_early": False, "since_best": 1, "recent": [], "held": []}
