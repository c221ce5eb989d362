"""The figures of the paper, for any checkpoint: each is a PNG and a JSON file with the numbers in it.

    python -m evaluators.figures steps         checkpoint=<run>/step_<n> [key=value …]
    python -m evaluators.figures participation checkpoint=<run>/step_<n> [key=value …]
    python -m evaluators.figures scaling       checkpoint=<run>/step_<n> [key=value …]

    steps           the decoded answer after each reasoning step
    participation   how many dimensions z_H and z_L use (evaluators/participation.py), against the number of puzzles,
                    in this model and in an untrained one of the same shape
    scaling         exact accuracy and mean steps against the allowed number of steps, with and without Q-halting

    examples=…      puzzles, a seeded subset; default: 4, 128 and 1000
    max_steps=…     reasoning steps; default: as in training, for scaling twice as many
    split=test      data_path=… another dataset than the run's
    out=…           a folder or a .png file; default: step_<n>_<figure>.png beside the checkpoint, and .json
    device=auto     auto, cuda, mps or cpu

The JSON holds figure, checkpoint, dataset, examples, max_steps and

    steps           kind, puzzles: for each its example (position in the split), puzzle, solution, cells (with a label),
                    and steps: step, answer, confidence (sigmoid of q_halt), equal_cells. Boards are as solve.py --json
                    writes them: a Sudoku is a string, a maze a list of lines, an ARC grid a list of rows of colours
    participation   puzzles (how many), hidden_size, and trained and untrained, each z_H and z_L: a PR for each number
    scaling         trained_steps, limits, and halt_max (all steps) and halt_q (until Q(halt) > Q(continue)), each
                    exact_accuracy and mean_steps for each limit
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from errors import UserError, one_line_errors
from evaluators.checkpoints import open_to_answer, puzzle_kind
from evaluators.figure_drawing import DPI, draw_participation, draw_scaling, draw_steps
from evaluators.participation import batches, doubling, participation_curve
from evaluators.solution import plain_board
from evaluators.steps import Step, reasoning_steps
from models.losses import IGNORE_LABEL_ID, ACTLossHead
from puzzle_dataset import PuzzleDataset
from training.config import PretrainConfig, StrictModel, from_cli, load_config
from training.distributed import DEVICES, select_device
from training.metrics import progress_bar, start_logging
from files import write_atomically
from training.checkpoints import load_model

BATCH_SIZE = 64  # puzzles at a time; less where there are fewer


class FigureConfig(StrictModel):
    checkpoint: str
    examples: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    split: str = "test"
    data_path: str | None = None
    out: str | None = None
    device: Literal[DEVICES] = "auto"


@dataclass
class Subject:
    """What a figure is of: a model, and N puzzles on its device."""

    run: PretrainConfig
    dataset: PuzzleDataset
    head: ACTLossHead
    device: torch.device
    examples: np.ndarray  # (N,): positions in the split
    inputs: Tensor  # (N, S)
    labels: np.ndarray  # (N, S), ignored -100
    puzzle_identifiers: Tensor  # (N,)
    max_steps: int

    def bar(self, passes: int):
        return progress_bar(total=passes * self.max_steps, desc="run", unit="step", enabled=True, leave=False)

    def answers(self) -> Iterator[tuple[slice, int, Step]]:
        """(which puzzles, step from 0, the step), batch after batch."""
        starts = range(0, len(self.examples), BATCH_SIZE)
        with self.bar(len(starts)) as bar:
            for start in starts:
                rows = slice(start, start + BATCH_SIZE)
                steps = reasoning_steps(
                    self.head.model, self.inputs[rows], self.puzzle_identifiers[rows], self.max_steps
                )
                for number, step in enumerate(steps):
                    yield rows, number, step
                    bar.update()


def open_subject(config: FigureConfig, examples: int, step_factor: int, device: torch.device) -> Subject:
    """`examples` and `step_factor` × the trained steps are what the user did not choose otherwise."""
    checkpoint = Path(config.checkpoint)
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    dataset = open_to_answer(
        run, config.split, data_path=config.data_path, batch_size=BATCH_SIZE, max_examples=config.examples or examples
    )
    head = load_model(checkpoint, run, dataset.metadata, batch_size=BATCH_SIZE, device=device)
    parts = [{name: field[:count] for name, field in batch.items()} for _, batch, count in dataset]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Subject(
        run,
        dataset,
        head,
        device,
        np.concatenate(list(dataset.test_examples())),
        rows["inputs"].to(device),
        rows["labels"].numpy(),
        rows["puzzle_identifiers"].to(device),
        config.max_steps or step_factor * run.arch.halt_max_steps,
    )


def compute_steps(subject: Subject) -> dict:
    """Every puzzle with its answer after each step, its confidence, and how many cells equal the label."""
    kind, labelled = puzzle_kind(subject.dataset), subject.labels != IGNORE_LABEL_ID
    puzzles = [
        {
            "example": int(example),
            "puzzle": plain_board(kind, puzzle),
            "solution": plain_board(kind, np.where(cells, label, 0)),
            "cells": int(cells.sum()),
            "steps": [],
        }
        for example, puzzle, label, cells in zip(
            subject.examples, subject.inputs.cpu().numpy(), subject.labels, labelled, strict=True
        )
    ]
    for rows, number, step in subject.answers():
        answers = step.answer.cpu().numpy()
        equal = ((answers == subject.labels[rows]) & labelled[rows]).sum(1)
        for puzzle, answer, sure, right in zip(puzzles[rows], answers, step.confidence.tolist(), equal, strict=True):
            puzzle["steps"].append(
                {"step": number + 1, "answer": plain_board(kind, answer), "confidence": sure, "equal_cells": int(right)}
            )
    return {"kind": kind, "puzzles": puzzles}


def compute_participation(subject: Subject) -> dict:
    """PR against the number of puzzles, of this model and of one with new random weights."""
    order = torch.from_numpy(np.random.default_rng(subject.run.seed).permutation(len(subject.examples)))
    inputs, identifiers = (rows[order.to(subject.device)] for rows in (subject.inputs, subject.puzzle_identifiers))
    counts = doubling(len(order))
    options = dict(batch_size=BATCH_SIZE, max_steps=subject.max_steps)
    with subject.bar(2 * len(batches(counts, BATCH_SIZE))) as bar:
        curves = [
            participation_curve(head.model, inputs, identifiers, counts, **options, after_step=bar.update)
            for head in (subject.head, untrained(subject))
        ]
    return {
        "puzzles": counts,
        "hidden_size": subject.run.arch.hidden_size,
        "trained": curves[0],
        "untrained": curves[1],
    }


def untrained(subject: Subject) -> ACTLossHead:
    """A model of the same shape as it is before training; the run's seed, on this device."""
    torch.manual_seed(subject.run.seed)
    config = subject.head.model.config
    with torch.device(subject.device):
        return subject.run.arch.build(
            batch_size=BATCH_SIZE,
            seq_len=config.seq_len,
            vocab_size=config.vocab_size,
            num_puzzle_identifiers=config.num_puzzle_identifiers,
        )


def compute_scaling(subject: Subject) -> dict:
    """Accuracy and mean steps for every limit, out of one run with the largest."""
    shape = (len(subject.examples), subject.max_steps)
    exact, wants_to_halt = np.zeros(shape, bool), np.zeros(shape, bool)
    labelled = subject.labels != IGNORE_LABEL_ID
    for rows, number, step in subject.answers():
        equal = (step.answer.cpu().numpy() == subject.labels[rows]) | ~labelled[rows]
        exact[rows, number] = equal.all(1) & labelled[rows].any(1)
        wants_to_halt[rows, number] = subject.head.model.wants_to_halt(step.q_halt, step.q_continue).cpu().numpy()
    limits = doubling(subject.max_steps)
    return {
        "trained_steps": subject.run.arch.halt_max_steps,
        "limits": limits,
        **halting_curves(exact, wants_to_halt, limits),
    }


def halting_curves(exact: np.ndarray, wants_to_halt: np.ndarray, limits: Sequence[int]) -> dict:
    """What a run with each limit would give: exact, wants_to_halt (N, M) bool, limits <= M.

    `halt_max`: every sequence takes all steps. `halt_q`: it stops at the first one with Q(halt) > Q(continue).
    """
    first = np.where(wants_to_halt.any(1), wants_to_halt.argmax(1) + 1, exact.shape[1])
    curves = {rule: {"exact_accuracy": [], "mean_steps": []} for rule in ("halt_max", "halt_q")}
    for limit in limits:
        for rule, steps in (("halt_max", np.full(len(exact), limit)), ("halt_q", np.minimum(first, limit))):
            curves[rule]["exact_accuracy"].append(float(exact[np.arange(len(exact)), steps - 1].mean()))
            curves[rule]["mean_steps"].append(float(steps.mean()))
    return curves


class FigureType(NamedTuple):
    compute: Callable[[Subject], dict]
    draw: Callable[[dict], Figure]
    examples: int  # by default
    step_factor: int  # default steps, in multiples of the trained ones


FIGURES = {
    "steps": FigureType(compute_steps, draw_steps, 4, 1),
    "participation": FigureType(compute_participation, draw_participation, 128, 1),
    "scaling": FigureType(compute_scaling, draw_scaling, 1000, 2),
}


def make_figure(name: str, config: FigureConfig, device: torch.device) -> Path:
    """Compute, draw, write; -> the PNG, beside which the JSON lies."""
    kind = FIGURES[name]
    picture = picture_path(name, config)
    subject = open_subject(config, kind.examples, kind.step_factor, device)
    report = {
        "figure": name,
        "checkpoint": config.checkpoint,
        "dataset": f"{subject.dataset.config.dataset_path}/{subject.dataset.split}",
        "examples": len(subject.examples),
        "max_steps": subject.max_steps,
    } | kind.compute(subject)
    numbers = json.dumps(report, indent=1).encode()
    write_atomically(picture.with_suffix(".json"), lambda file: file.write(numbers))
    figure = kind.draw(report)
    write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=DPI))
    return picture


def picture_path(name: str, config: FigureConfig) -> Path:
    """Where the PNG goes; its folder is made, so that a mistake shows before the work."""
    checkpoint = Path(config.checkpoint)
    path = Path(config.out) if config.out else checkpoint.parent
    if path.suffix.lower() != ".png":
        path = path / f"{checkpoint.name}_{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"cannot write to {path.parent}; set out=<folder or .png file>")
    return path


def main() -> None:
    with one_line_errors():
        name, *args = sys.argv[1:] or [""]
        if name not in FIGURES and name not in ("", "-h", "--help"):
            raise UserError(f"there is no figure '{name}'; choose one of {', '.join(FIGURES)} (see --help)")
        config = from_cli(FigureConfig, args if name in FIGURES else sys.argv[1:], __doc__)
        device = select_device(config.device)
        start_logging(is_main=True)
        picture = make_figure(name, config, device)
        print(f"{name}: {picture} and {picture.with_suffix('.json').name}")


if __name__ == "__main__":
    main()
