"""What a run says before its first step, and of its end: python -m pytest tests/test_outlook.py"""

import logging
import re

import pytest
import torch

from errors import UserError
from tests.in_memory import METADATA, TINY, composed
from tests.runs import PIPELINE, pretrain, refusal
from training import outlook
from training.distributed import Ranks
from training.outlook import Pace, Work, check_pace
from training.step import create_state
from training.wording import duration, moment, operations

ONE, CPU = Ranks(0, 1, 0), torch.device("cpu")


def test_a_run_says_what_it_is_about_to_do(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        pretrain(tmp_path / "run", max_minutes=1e-5)
    said = [line for line in caplog.messages if re.match("(model|data|run|work): ", line)]
    model, data, run, work = said
    assert re.fullmatch(
        r"model: HierarchicalReasoningModel_ACTV1, [\d,]+ parameters and [\d,]+ of puzzle embeddings, "
        r"on cpu \(1 thread\)", model,
    )  # fmt: skip
    examples = "200 training examples of 40 puzzles; 21 examples of its split test to evaluate on"
    assert data == f"data: {PIPELINE / 'dataset'}: sudoku of 4×4, {examples}"
    assert run == f"run: 60 steps of 8 sequences and 3 evaluations of 4 reasoning steps, to {tmp_path / 'run'}"
    assert re.fullmatch(r"work: \d+ MFLOP a step, [\d.]+ GFLOP in all, [\d.]+ GFLOP of them in evaluations", work)


def test_what_cannot_be_counted_is_no_reason_to_stop_and_changes_nothing(tmp_path, caplog, monkeypatch):
    """The run draws the same numbers, whatever counting draws."""
    counted = pretrain(tmp_path / "counted", epochs=4)

    def fails(*_, **__):
        torch.rand(7)
        raise RuntimeError("no such kernel\nfor meta")

    monkeypatch.setattr(outlook, "flops_per_step", fails)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert pretrain(tmp_path / "uncounted", epochs=4) == counted
    assert "the operations of a step cannot be counted: no such kernel" in caplog.text
    assert "work: " not in caplog.text


def test_what_is_left_of_a_run_is_counted():
    class Split:
        def __init__(self, examples):
            self.num_examples = lambda: examples

    config = composed(*TINY, "arch.halt_max_steps=3", "epochs=80", "eval_interval=8")
    state = create_state(config, METADATA, ONE, CPU)
    state.step, state.passes = 1000, 4
    work = outlook.work_left(state, config, ONE, CPU, 10, Split(50), Split(7))
    assert (work.steps, work.evaluations, work.speed) == (9000, 7, None)
    one = outlook.flops_per_step(state.head, 1, training=False)
    assert work.evaluating == pytest.approx(3 * one * (6 * 50 + 7))
    assert work.whole == pytest.approx(9000 * work.step + work.evaluating)
    assert outlook.work_left(state, config, ONE, CPU, 10, None, None).evaluations == 0
    before = torch.get_rng_state()
    on_a_gpu = outlook.work_left(state, config, ONE, torch.device("cuda"), 10, Split(50), Split(7))
    assert on_a_gpu == work and torch.equal(torch.get_rng_state(), before)


FULL_SIZE = Work(steps=260_416, evaluations=10, step=27.8e12, speed=140e9)


@pytest.mark.parametrize(
    ("work", "max_minutes", "expected"),
    [
        (FULL_SIZE, None, r"^warning: this will take at least 14,364 h \(1\.6 years\) at 140 GFLOP/s, which this CPU"),
        (FULL_SIZE, 1.7, "^warning: .*experiment=sudoku_4x4_demo"),  # 3.3 minutes: twice as fast would fit
        (FULL_SIZE, 0.2, "refused: max_minutes=0.2 is less than a single step takes: at least 3.3 min at 140 GFLOP/s"),
        (Work(100, 0, 27.8e12, speed=140e9), None, None),  # some hours
        (Work(100, 0, 1e12, speed=140e9), 1e-5, None),  # seconds: it does the step and stops
        (Work(10**9, 0, 1e9), None, None),  # small, or on a GPU: the speed was not measured
        (Work(10**9, 0), 1e-5, None),
    ],
)
def test_a_cpu_is_told_what_it_cannot_do(work, max_minutes, expected):
    try:
        said = check_pace(work, max_minutes)
    except UserError as error:
        said = f"refused: {error}"
    assert (said is None) if expected is None else re.search(expected, said)


def test_a_limit_shorter_than_a_step_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(outlook, "WORTH_MEASURING", 0)
    monkeypatch.setattr(outlook, "matrix_speed", lambda dtype: 1.0)
    assert "less than a single step takes: at least" in refusal(capsys, tmp_path / "run", max_minutes=1e-5)
    assert not (tmp_path / "run").exists()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(work: Work, *seconds: float) -> tuple[Pace, list[str], list[float]]:
    """-> after steps of so many seconds: the pace, the lines about the end, and what each next step takes at least."""
    clock = Clock()
    pace = Pace(work, clock)
    clock.now += 50  # compilation, or an evaluation
    pace.begin()
    lines, least = [], []
    for step in seconds:
        clock.now += step
        least.append(pace.note_step())
        lines.append(pace.estimate(None, "max_minutes"))
    return pace, [line for line in lines if line], least


SLOW_STEPS = (800.0, 760.0, 740.0, 750.0)


@pytest.mark.parametrize(
    ("work", "seconds", "expected"),
    [
        (Work(100, 2, 1e9, 10e9), (4, *[0.5] * 9), []),  # 4.5 seconds tell nothing yet
        (Work(100, 2, 1e9, 10e9), (4, *[0.5] * 20),
         ["after 11 steps: 500 ms a step; 50 s to go, 5.0 s of them in evaluations: until"]),
        (Work(100, 0, 1e9), (4, *[0.5] * 20), ["after 11 steps: 500 ms a step; 44 s to go: until"]),
        (Work(100, 2), (4, *[0.5] * 20), ["after 11 steps: 500 ms a step; 44 s to go and the evaluations: until"]),
        (Work(1001, 0, 1e12), SLOW_STEPS,
         ["after the first step, which may have compiled: 13 min a step; 222 h to go: until",
          "after 4 steps: 12 min a step; 208 h to go: until"]),
    ],
)  # fmt: skip
def test_the_end_is_estimated_after_the_first_steps(work, seconds, expected):
    _, lines, _ = paced(work, *seconds)
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert re.match(rf"\d\d:\d\d:\d\d {re.escape(words)} ", line)


def test_the_estimate_says_when_the_clock_ends_it():
    clock = Clock()
    pace = Pace(Work(100, 0, 1e9), clock)
    for _ in range(4):
        clock.now += 60
        pace.note_step()
    assert re.search(r"96 min to go, but max_minutes=10 ends it at ", pace.estimate(360, "max_minutes=10"))


def test_the_next_step_takes_as_long_as_the_shorter_of_the_last_two():
    assert paced(Work(9, 0), 30, 2, 3, 20, 2)[2] == [0, 2, 2, 3, 2]  # the first may have compiled, the fourth saved
    assert paced(Work(9, 0, 6e9, speed=1e9), 30, 7)[2] == [6, 7]


def test_a_run_stops_before_a_step_that_would_end_too_late(tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "note_step", lambda pace: 3600.0 if pace._mark else 0.0)
    assert pretrain(tmp_path / "run", max_minutes=30)[-1]["step"] == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (duration(0.0004), "0.4 ms"), (duration(0.0451), "45 ms"), (duration(1), "1.0 s"), (duration(9.96), "10 s"),
        (duration(99.6), "1.7 min"), (duration(793), "13 min"), (duration(36_000), "10 h"),
        (duration(1e6), "278 h"), (duration(196_250_400), "54,514 h (6.2 years)"),
        (operations(0), "0 FLOP"), (operations(999), "999 FLOP"), (operations(27.82e12), "27.8 TFLOP"),
        (operations(999.7e6), "1 GFLOP"), (operations(7.2e25), "7.2e+04 ZFLOP"), (moment(1e15), "the year 10,000"),
    ],
)  # fmt: skip
def test_numbers_in_words(value, expected):
    assert value == expected
