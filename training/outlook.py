"""What a run is about to do, in a few lines before its first step, and when it will be over, in one line after it.

Work is counted in floating-point operations (training/flops.py). On a CPU, where a full-size model takes months, it is
also compared with what this CPU reaches in a matrix product: no step is faster than that.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import torch

from errors import UserError, first_line
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset
from training.config import PretrainConfig
from training.distributed import Ranks
from training.flops import META, count_parameters, flops_per_step
from training.step import TrainState
from training.wording import counted, duration, moment, operations

log = logging.getLogger(__name__)

TOO_LONG = 100 * 3600  # seconds on a CPU, after which there is a warning
REFUSED_STEP = 60  # seconds: a shorter step is worth waiting for, whatever max_minutes says
WORTH_MEASURING = 1e11  # operations of a step; a CPU does fewer in a second
SOON = 5  # seconds of training after which the end is estimated
SLOW = 30  # seconds of a first step that is worth a line of its own


@dataclass(frozen=True)
class Work:
    """What is left to do, over all ranks. Operations are None, and seconds 0, where they are not known."""

    steps: int
    evaluations: int
    step: float | None = None  # operations of a training step
    evaluating: float = 0.0  # operations of all evaluations
    speed: float | None = None  # operations a second that the device does not exceed

    @property
    def whole(self) -> float | None:
        return None if self.step is None else self.steps * self.step + self.evaluating

    @property
    def least_seconds(self) -> float:
        """Of a step."""
        return 0.0 if self.step is None or self.speed is None else self.step / self.speed


def work_left(
    state: TrainState,
    config: PretrainConfig,
    ranks: Ranks,
    device: torch.device,
    passes: int,
    eval_data: PuzzleDataset | None,
    test_data: PuzzleDataset | None,
) -> Work:
    """Count what a run of so many passes still has to do. Takes some tenths of a second."""
    steps, passes = state.total_steps - state.step, passes - state.passes
    evaluated = passes * eval_data.num_examples() if eval_data is not None else 0
    evaluated += test_data.num_examples() if test_data is not None else 0
    evaluations = (passes if eval_data is not None else 0) + (test_data is not None)
    try:
        with torch.random.fork_rng(devices=[]):  # whatever an architecture draws, the run begins with the same numbers
            head = countable(state.head, config, device)
            step = flops_per_step(head, config.global_batch_size)
            segment = flops_per_step(head, 1, training=False) if evaluated else 0
    except Exception as error:  # an architecture that computes with values, or an old PyTorch: it is only for show
        log.info("the operations of a step cannot be counted: %s", first_line(error))
        return Work(steps, evaluations)
    speed = None
    if device.type == "cpu" and step >= WORTH_MEASURING:
        speed = ranks.world_size * matrix_speed(getattr(config.arch, "forward_dtype", "auto"))
    return Work(steps, evaluations, step, evaluated * config.arch.halt_max_steps * segment, speed)


def countable(head: ACTLossHead, config: PretrainConfig, device: torch.device) -> ACTLossHead:
    """The head, or on CUDA one like it without values: a GPU's kernels of attention cannot be counted."""
    if device.type != "cuda":
        return head
    with META:
        like = config.arch.build(**head.model.data.model_dump())
    return like.requires_grad_(config.freeze is None)


def describe(
    work: Work,
    head: ACTLossHead,
    config: PretrainConfig,
    ranks: Ranks,
    device: torch.device,
    train_data: PuzzleDataset,
    eval_data: PuzzleDataset | None,
) -> list[str]:
    """The lines that a run prints before its first step."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        where += f" ({counted(torch.get_num_threads(), 'thread')})"
    if ranks.world_size > 1:
        where = f"{ranks.world_size} × {where}"
    parameters = f"{count_parameters(head):,} parameters"
    if head.model.puzzle_emb is not None:
        parameters += f" and {head.model.puzzle_emb.weights.numel():,} of puzzle embeddings"
    evaluated = "nothing is evaluated"
    if eval_data is not None:
        evaluated = f"{counted(eval_data.num_examples(), 'example')} of its split {eval_data.split} to evaluate on"
    steps = f"{counted(work.steps, 'step')} of {counted(config.global_batch_size, 'sequence')}"
    lines = [
        f"model: {config.arch.name.rpartition('@')[2]}, {parameters}, on {where}",
        f"data: {config.data_path}: {kind_in_words(train_data)}, {puzzles_in_words(train_data)}; {evaluated}",
        f"run: {steps} and {counted(work.evaluations, 'evaluation')} of {config.arch.halt_max_steps} reasoning steps, "
        f"to {config.checkpoint_path}",
    ]
    if work.step is not None:
        evaluating = f", {operations(work.evaluating)} of them in evaluations" if work.evaluating else ""
        lines.append(f"work: {operations(work.step)} a step, {operations(work.whole)} in all{evaluating}")
    return lines


def kind_in_words(dataset: PuzzleDataset) -> str:
    try:
        kind = dataset.kind
    except UserError:
        return f"puzzles of {dataset.metadata.seq_len} cells"
    return f"{kind.name} of {kind.rows}×{kind.columns}"


def puzzles_in_words(dataset: PuzzleDataset) -> str:
    """The training examples, and how many puzzles they are variants of."""
    examples, puzzles = dataset.num_examples(), dataset.metadata.total_groups
    of = "" if examples == puzzles else f" of {counted(puzzles, 'puzzle')}"
    return f"{counted(examples, 'training example')}{of}"


def check_pace(work: Work, max_minutes: float | None) -> str | None:
    """-> a warning of a run that would take too long. Raises `UserError` if not one step can fit `max_minutes`."""
    if work.speed is None:
        return None
    reached = f"at {work.speed / 1e9:,.0f} GFLOP/s, which this CPU reaches in matrix products"
    # Half, because another program may have slowed the measurement down.
    if max_minutes is not None and work.least_seconds / 2 > max(60 * max_minutes, REFUSED_STEP):
        raise UserError(
            f"max_minutes={max_minutes:g} is less than a single step takes: at least {duration(work.least_seconds)} "
            f"{reached}; raise it, lower global_batch_size, or train a smaller model: +experiment=sudoku_4x4_demo takes"
            f" minutes"
        )
    if work.whole / work.speed < TOO_LONG:
        return None
    return (
        f"warning: this will take at least {duration(work.whole / work.speed)} {reached}. Models of this size are "
        f"trained on a GPU. On a CPU, +experiment=sudoku_4x4_demo takes minutes; max_minutes=<n> ends any run in time"
    )


def matrix_speed(dtype: str) -> float:
    """Operations a second of a product of matrices as they occur in the published sizes, the best of three."""
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    rows, weights = torch.ones(1024, 512, dtype=kind), torch.ones(512, 1536, dtype=kind)
    best = float("inf")
    for _ in range(4):  # the first one starts the threads
        before = time.perf_counter()
        rows @ weights
        best = min(best, time.perf_counter() - before)
    return 2 * 1024 * 512 * 1536 / best


class Pace:
    """How long the steps of this start take, and what that says about its end."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic):
        self._work, self._clock = work, clock
        self._mark = clock()
        self._first: float | None = None  # seconds of the first step, in which much is set up and compiled
        self._seconds, self._steps = 0.0, 0  # of the others
        self._last = work.least_seconds, work.least_seconds  # seconds of the last two, without the first
        self._said_slow = self._said = False

    def begin(self) -> None:
        """Steps are timed from here on, after an evaluation or at the start."""
        self._mark = self._clock()

    def note_step(self) -> float:
        """Note that a step is done; -> how many seconds the next one will take at the least.

        That is the shorter of the last two: the other one may have saved a state besides.
        """
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        if self._first is None:
            self._first = seconds
        else:
            self._seconds, self._steps = self._seconds + seconds, self._steps + 1
            self._last = (self._last[1] if self._steps > 1 else seconds, seconds)
        return min(self._last)

    def estimate(self, seconds_left: float | None, limit: str) -> str | None:
        """A line about the end, once it can be told. `seconds_left` are those until `limit` ends the run earlier."""
        if self._first is None or self._said:
            return None
        if self._seconds >= SOON and self._steps >= 3:
            self._said = True
            return self._line(self._seconds / self._steps, f"after {self._steps + 1:,} steps", seconds_left, limit)
        if self._first >= SLOW and not self._said_slow:
            self._said_slow = True
            return self._line(self._first, "after the first step, which may have compiled", seconds_left, limit)
        return None

    def _line(self, step: float, after: str, seconds_left: float | None, limit: str) -> str:
        work = self._work
        training = step * (work.steps - self._steps - 1)
        evaluating = step * work.evaluating / work.step if work.step else 0.0
        line = f"{datetime.now():%H:%M:%S} {after}: {duration(step)} a step; {duration(training + evaluating)} to go"
        if work.evaluations:
            line += f", {duration(evaluating)} of them in evaluations" if work.step else " and the evaluations"
        if seconds_left is not None and seconds_left < training + evaluating:
            return f"{line}, but {limit} ends it at {moment(max(0.0, seconds_left))}"
        return f"{line}: until {moment(training + evaluating)}"
