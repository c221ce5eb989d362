"""The figures of the paper, for any checkpoint: each is a PNG, and a JSON file with its numbers.

    python -m evaluators.figures steps checkpoint=<run>/step_<n> [key=value …]

    steps           the decoded answer after each reasoning step; steps with the same answer share a board
    participation   how many dimensions the model's states use (z_H and z_L of HRM and TRM; docs/models.md has all),
                    against the number of puzzles, in this model and in an untrained one of the same shape
    scaling         exact accuracy and mean steps against the allowed number of steps, with and without Q-halting
    reliability     accuracy against the model's confidence, after all steps and where it halts

The JSON holds figure, checkpoint, dataset, examples, max_steps and

    steps           kind, puzzles: for each its example (position in the split), puzzle, solution, cells (with a label),
                    and steps: step, answer, confidence (sigmoid of q_halt), equal_cells. Boards are as solve.py --json
                    writes them
    participation   puzzles (how many), hidden_size, and trained and untrained, each with its states: a PR for each
    scaling         trained_steps, limits, and halt_max (all steps) and halt_q (until the model wants to halt), each
                    exact_accuracy and mean_steps for each limit; scored: how many puzzles have an answer
    reliability     halt_max and halt_q, each ece (training/calibration.py) and, for every tenth of the confidence,
                    puzzles, confidence (mean) and exact_accuracy, null where there are no puzzles

Participation ratio: PR = (Σλ)² / Σλ² over the eigenvalues λ of the states' covariance matrix (Wang et al. 2025, section
"Brain Correspondence"): D where all D directions vary alike, 1 where the states move along one line. The paper compares
PR(z_H) with PR(z_L), over more and more tasks, in a trained model and in one with random weights. It does not say what
one sample is. Here it is the state of one cell of one puzzle after one reasoning step, a vector of hidden_size numbers;
the positions of the puzzle embedding, which are not cells, are left out.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from errors import UserError, one_line_errors
from evaluators.figure_plots import DPI, draw_participation, draw_reliability, draw_scaling, draw_steps, titled
from files import PNG, check_output, check_writable, locked, write_atomically
from models.act import ACTModel, named_tensors
from models.losses import IGNORE_LABEL_ID, ACTLossHead
from puzzle_dataset import PuzzleDataset
from puzzles.kind import PAD, Kind
from training.calibration import BINS, calibration_error, confidence_bins
from training.checkpoints import beside, find_checkpoint, load_model, open_run
from training.config import PretrainConfig
from training.data import open_to_answer
from training.distributed import DEVICES, select_device
from training.metrics import progress_bar, start_logging
from training.options import StrictModel, from_cli
from training.prediction_rows import exactly_right
from training.predictions import MAX_STEPS
from training.reasoning import Step, reasoning_steps

BATCH_SIZE = 64  # puzzles at a time, at most
JSON_BEGINS = b'{\n "figure": "'  # as `as_json` writes it


class FigureConfig(StrictModel):
    figure: Literal["steps", "participation", "scaling", "reliability"] = Field(description="which figure; comes first")
    checkpoint: str = Field(description="a step_<n> in its run folder, or the folder: its best, else its last")
    examples: int | None = Field(
        default=None,
        ge=1,
        description="size of a seeded subset of each set; default: 4, 128, 1000 and 1000 for the four",
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_STEPS,
        description="reasoning steps; default: as in training, for scaling twice as many",
    )
    split: str = Field(default="test", description="split of the dataset")
    data_path: str | None = Field(default=None, description="a dataset other than the run's")
    out: str | None = Field(
        default=None,
        description="a folder or a .png file; default: step_<n>_<figure>.png and .json beside the checkpoint",
    )
    device: Literal[DEVICES] = Field(default="auto", description="auto, cuda, mps or cpu")


@dataclass
class Subject:
    """What a figure shows: a model, and N puzzles on its device."""

    checkpoint: Path
    run: PretrainConfig
    dataset: PuzzleDataset
    head: ACTLossHead
    device: torch.device
    examples: np.ndarray  # (N,): positions in the split
    inputs: Tensor  # (N, S)
    labels: np.ndarray  # (N, S), ignored -100
    puzzle_identifiers: Tensor  # (N,)
    max_steps: int

    @property
    def scored(self) -> np.ndarray:
        """(N,) bool: which puzzles have an answer, as in evaluate.py. Raises `UserError` if none has."""
        scored = (self.labels != IGNORE_LABEL_ID).any(1)
        if not scored.any():
            dataset = self.dataset
            raise UserError(
                f"no example of {dataset.config.dataset_path}/{dataset.split} has an answer, so that nothing is "
                f"scored; name another split"
            )
        return scored

    def bar(self, passes: int):
        return progress_bar(total=passes * self.max_steps, desc="run", unit="step", enabled=True, leave=False)

    def answers(self) -> Iterator[tuple[slice, int, Step]]:
        """Yield (which puzzles, step from 0, the step), batch after batch."""
        starts = range(0, len(self.examples), BATCH_SIZE)
        with self.bar(len(starts)) as bar:
            for start in starts:
                rows = slice(start, start + BATCH_SIZE)
                steps = reasoning_steps(
                    self.head.model, self.inputs[rows], self.puzzle_identifiers[rows], self.max_steps
                )
                for number, step in enumerate(steps):
                    self.check_numbers(step)
                    yield rows, number, step
                    bar.update()

    def check_numbers(self, step: Step) -> None:
        """Raise `UserError` if a sequence has no answer: a figure of the others would not tell."""
        if not step.is_number.all():
            raise UserError(
                f"{self.checkpoint} gives values that are no numbers (NaN or infinite) in step {step.number}; use "
                f"another checkpoint, or fewer max_steps"
            )


def open_subject(config: FigureConfig, examples: int, step_factor: int, device: torch.device) -> Subject:
    """The defaults are `examples` puzzles, and `step_factor` times the steps of training."""
    checkpoint, run = open_run(config.checkpoint, config.data_path)
    dataset = open_to_answer(
        run, config.split, data_path=config.data_path, batch_size=BATCH_SIZE, max_examples=config.examples or examples
    )
    head = load_model(checkpoint, run, dataset.metadata, batch_size=BATCH_SIZE, device=device)
    parts = [(batch, examples) for _, batch, examples in dataset.test_batches()]
    rows = {name: torch.cat([batch[name][: len(examples)] for batch, examples in parts]) for name in parts[0][0]}
    return Subject(
        checkpoint,
        run,
        dataset,
        head,
        device,
        np.concatenate([examples for _, examples in parts]),
        rows["inputs"].to(device),
        rows["labels"].numpy(),
        rows["puzzle_identifiers"].to(device),
        config.max_steps or step_factor * run.arch.halt_max_steps,
    )


# The answers step by step


def compute_steps(subject: Subject) -> dict[str, Any]:
    """Every puzzle with its answer after each step, its confidence, and how many cells equal the label.

    Boards are tokens (cells,), and the kind is a `Kind`: `as_json` can write both.
    """
    labelled = subject.labels != IGNORE_LABEL_ID
    solutions = np.where(labelled, subject.labels, PAD).astype(np.uint8)
    rows = (subject.examples, subject.inputs.cpu().numpy().astype(np.uint8), solutions, labelled)
    puzzles = [
        {"example": int(example), "puzzle": puzzle, "solution": solution, "cells": int(cells.sum()), "steps": []}
        for example, puzzle, solution, cells in zip(*rows, strict=True)
    ]
    for rows, number, step in subject.answers():
        given = subject.inputs[rows].cpu().numpy()
        answers = subject.dataset.kind.counted(given, step.answer.cpu().numpy().astype(np.uint8))
        equal = ((step.answer.cpu().numpy() == subject.labels[rows]) & labelled[rows]).sum(1)
        for puzzle, answer, sure, right in zip(puzzles[rows], answers, step.confidence.tolist(), equal, strict=True):
            puzzle["steps"].append(
                {"step": number + 1, "answer": answer, "confidence": sure, "equal_cells": int(right)}
            )
    return {"kind": subject.dataset.kind, "puzzles": puzzles}


def as_json(report: dict[str, Any]) -> str:
    def plain(value: Kind | np.ndarray) -> Any:
        return value.name if isinstance(value, Kind) else report["kind"].plain(value)

    return json.dumps(report, indent=1, default=plain, allow_nan=False)


# Participation ratio


def compute_participation(subject: Subject) -> dict[str, Any]:
    """The participation ratio against the number of puzzles, for this model and for one with new random weights."""
    order = torch.from_numpy(np.random.default_rng(subject.run.seed).permutation(len(subject.examples)))
    inputs, identifiers = (rows[order.to(subject.device)] for rows in (subject.inputs, subject.puzzle_identifiers))
    counts = doubling(len(order))
    with subject.bar(2 * len(batches(counts, BATCH_SIZE))) as bar:
        (trained, dimensions), (untrained, _) = (
            participation_curve(head.model, inputs, identifiers, counts, subject.max_steps, bar.update)
            for head in (subject.head, without_training(subject))
        )
    if not np.isfinite([*trained.values(), *untrained.values()]).all():
        raise UserError(
            f"{subject.checkpoint} has states that are no numbers (NaN or infinite); use another checkpoint"
        )
    return {"puzzles": counts, "hidden_size": dimensions, "trained": trained, "untrained": untrained}


def without_training(subject: Subject) -> ACTLossHead:
    """A model of the same shape before training, made with the run's seed on this device."""
    torch.manual_seed(subject.run.seed)
    return subject.run.arch.build_for(subject.dataset.metadata, batch_size=BATCH_SIZE, device=subject.device)


def participation_curve(
    model: ACTModel,
    inputs: Tensor,  # (N, S)
    puzzle_identifiers: Tensor,  # (N,)
    counts: Sequence[int],
    max_steps: int,
    after_step: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[float]], int]:
    """-> PR of each of the model's states over the first n puzzles, for each n of the ascending `counts`; and the size
    of the largest state of a cell."""
    moments: dict[str, Moments] = {}
    ratios: dict[str, list[float]] = {}
    for first, last in batches(counts, BATCH_SIZE):
        for step in reasoning_steps(model, inputs[first:last], puzzle_identifiers[first:last], max_steps):
            for name, samples in cell_states(step.state, inputs.shape[1], model.inner.positions).items():
                moments.setdefault(name, Moments(samples.shape[1])).add(samples)
            after_step()
        if last in counts:
            for name, collected in moments.items():
                ratios.setdefault(name, []).append(participation_ratio(collected.covariance()))
    return ratios, max(len(collected.sum) for collected in moments.values())


def cell_states(state: Any, cells: int, positions: int) -> dict[str, Tensor]:
    """For each part of a state with a vector for every position, (B, P + S, D), the vectors of the cells, (B S, D).

    The P positions of the puzzle embedding come first. Raises `UserError` if the model keeps no such state.
    """
    parts = dict(named_tensors(state))
    found = {
        name: tensor[:, -cells:].flatten(0, 1)
        for name, tensor in parts.items()
        if tensor.is_floating_point() and tensor.ndim == 3 and tensor.shape[1] in (positions, cells)
    }
    if not found:
        raise UserError(
            f"this model keeps no state with a vector for each cell (it has {', '.join(parts) or 'none'}), of which a "
            f"participation ratio could be taken; HRM and TRM have z_H and z_L, docs/models.md lists all"
        )
    return found


def participation_ratio(covariance: Tensor) -> float:
    """Covariance (D, D) -> PR in [1, D]; 0 if nothing varies. Σλ is its trace, Σλ² its squared Frobenius norm."""
    total, squares = covariance.trace().item(), covariance.square().sum().item()
    return 0.0 if squares == 0 else total**2 / squares


class Moments:
    """Accumulates the covariance of samples that come in parts, in float64."""

    def __init__(self, dimensions: int):
        self.count = 0
        self.sum = torch.zeros(dimensions, dtype=torch.float64)
        self.outer = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    def add(self, samples: Tensor) -> None:
        """Add samples (n, D), on any device."""
        samples = samples.cpu().double()  # MPS has no float64
        if not self.count:
            self.origin = samples[0].clone()
        samples = samples - self.origin  # else rounding would be all that is left where little varies
        self.count += len(samples)
        self.sum += samples.sum(0)
        self.outer += samples.T @ samples

    def covariance(self) -> Tensor:
        mean = self.sum / self.count
        return self.outer / self.count - torch.outer(mean, mean)


def batches(counts: Sequence[int], batch_size: int) -> list[tuple[int, int]]:
    """Slices (first, end) of at most `batch_size` puzzles; every count is the end of one."""
    slices, start = [], 0
    for count in counts:
        for first in range(start, count, batch_size):
            slices.append((first, min(first + batch_size, count)))
        start = count
    return slices


def doubling(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`, which is always included."""
    return sorted({*(2 ** np.arange(int(np.log2(largest)) + 1)).tolist(), largest})


# Scaling


def compute_scaling(subject: Subject) -> dict[str, Any]:
    """Accuracy and mean steps for every limit, from a single run with the largest."""
    shape = (len(subject.examples), subject.max_steps)
    exact, wants_to_halt, scored = np.zeros(shape, bool), np.zeros(shape, bool), subject.scored
    for rows, number, step in subject.answers():
        exact[rows, number] = exactly_right(step.answer.cpu().numpy(), subject.labels[rows])
        wants_to_halt[rows, number] = step.wants_to_halt.cpu().numpy()
    limits = doubling(subject.max_steps)
    return {
        "trained_steps": subject.run.arch.halt_max_steps,
        "scored": int(scored.sum()),
        "limits": limits,
        **halting_curves(exact[scored], wants_to_halt[scored], limits),
    }


def halting_curves(exact: np.ndarray, wants_to_halt: np.ndarray, limits: Sequence[int]) -> dict:
    """What a run with each limit would give, from exact and wants_to_halt (N, M) bool; limits <= M.

    `halt_max`: every sequence takes all steps. `halt_q`: it stops after the first step where the model wants to halt.
    """
    first = np.where(wants_to_halt.any(1), wants_to_halt.argmax(1) + 1, exact.shape[1])
    curves = {rule: {"exact_accuracy": [], "mean_steps": []} for rule in ("halt_max", "halt_q")}
    for limit in limits:
        for rule, steps in (("halt_max", np.full(len(exact), limit)), ("halt_q", np.minimum(first, limit))):
            curves[rule]["exact_accuracy"].append(float(exact[np.arange(len(exact)), steps - 1].mean()))
            curves[rule]["mean_steps"].append(float(steps.mean()))
    return curves


# Reliability


def compute_reliability(subject: Subject) -> dict[str, Any]:
    """How often the model is right when it is this sure, after its last step and where it wants to halt."""
    bins = {rule: torch.zeros(3, BINS, dtype=torch.float64) for rule in ("halt_max", "halt_q")}
    going_on = torch.ones(len(subject.labels), dtype=torch.bool)
    scored = torch.from_numpy(subject.scored)
    for rows, number, step in subject.answers():
        labelled = scored[rows]
        exact = torch.from_numpy(exactly_right(step.answer.cpu().numpy(), subject.labels[rows]))
        last = torch.full_like(labelled, number == subject.max_steps - 1)
        stops = {"halt_max": last, "halt_q": going_on[rows] & (step.wants_to_halt.cpu() | last)}
        for rule, stopping in stops.items():
            bins[rule] += confidence_bins(step.q_halt.cpu(), exact, stopping & labelled).double()
        going_on[rows] &= ~stops["halt_q"]
    return {rule: _reliability(counted) for rule, counted in bins.items()}


def _reliability(bins: Tensor) -> dict[str, Any]:
    puzzles, confidence, right = bins.tolist()
    shares = [
        [value / n if n else None for value, n in zip(sums, puzzles, strict=True)] for sums in (confidence, right)
    ]
    return {
        "ece": calibration_error(bins),
        "puzzles": [int(n) for n in puzzles],
        "confidence": shares[0],
        "exact_accuracy": shares[1],
    }


# The command


class FigureType(NamedTuple):
    compute: Callable[[Subject], dict]
    draw: Callable[[dict], Figure]
    examples: int  # default number
    step_factor: int  # default steps, in multiples of the trained ones
    most: int | None = None  # examples that a picture can hold


FIGURES = {
    "steps": FigureType(compute_steps, draw_steps, 4, 1, most=200),  # of 300 pixels each: matplotlib ends at 65,536
    "participation": FigureType(compute_participation, draw_participation, 128, 1),
    "scaling": FigureType(compute_scaling, draw_scaling, 1000, 2),
    "reliability": FigureType(compute_reliability, draw_reliability, 1000, 1),
}


def make_figure(config: FigureConfig, device: torch.device) -> Path:
    """Compute, draw, write; -> the PNG, beside which the JSON lies."""
    figure = FIGURES[config.figure]
    if figure.most is not None and (config.examples or 0) > figure.most:
        raise UserError(f"examples={config.examples}: a picture of {config.figure} holds at most {figure.most}")
    # Once, since a run that goes on may soon mean another.
    config = config.model_copy(update={"checkpoint": str(find_checkpoint(config.checkpoint))})
    picture = picture_path(config)
    subject = open_subject(config, figure.examples, figure.step_factor, device)
    report = {
        "figure": config.figure,
        "checkpoint": str(subject.checkpoint),
        "dataset": f"{subject.dataset.config.dataset_path}/{subject.dataset.split}",
        "examples": len(subject.examples),
        "max_steps": subject.max_steps,
    } | figure.compute(subject)
    text, drawn = as_json(report).encode(), io.BytesIO()
    titled(figure.draw(report), report).savefig(drawn, format="png", dpi=DPI)
    with locked(picture.with_name(f".{picture.name}.lock"), f"is writing {picture}"):  # makes its folder
        write_atomically(picture.with_suffix(".json"), lambda file: file.write(text))
        write_atomically(picture, lambda file: file.write(drawn.getvalue()))
    return picture


def picture_path(config: FigureConfig) -> Path:
    """Where the PNG goes. Checks before the work that it and its JSON can be written, and replace figures at most."""
    checkpoint = beside(Path(config.checkpoint))
    path = Path(config.out) if config.out else checkpoint.parent
    if path.is_dir() or path.suffix.lower() != ".png":
        path = path / f"{checkpoint.name}_{config.figure}.png"
    check_writable(path.parent, str(path), "set out=<folder or .png file>", create=True)
    if path.parent.is_dir():
        check_output(path, "out", ".png", PNG)
        check_output(path.with_suffix(".json"), "out", ".json", JSON_BEGINS)
    return path


def main() -> None:
    with one_line_errors():
        config = from_cli(FigureConfig, sys.argv[1:], __doc__, positional=("figure",))
        device = select_device(config.device)
        start_logging(is_main=True)
        picture = make_figure(config, device)
        print(f"{config.figure}: {picture} and {picture.with_suffix('.json').name}")


if __name__ == "__main__":
    main()
