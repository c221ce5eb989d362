"""What saved predictions show of a model: how well it knows itself, when it halts, and the puzzles worth looking at.

Reads what evaluate.py left in `<run>/step_<n>_preds` (training/predictions.py); the whole is never in memory. Of the
answers of every step (save_steps=true) come the revisions, and of halt=q the steps after which the model halted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dataset.format import read_identifiers
from models.losses import IGNORE_LABEL_ID
from puzzle_dataset import PuzzleDataset
from puzzles.kind import PAD, Kind
from training.calibration import BINS, calibration_error, confidence_bins
from training.prediction_rows import PredictionRows, exactly_right
from training.predictions import Manifest, read_manifest, read_predictions

EXAMPLES = 3  # of each sort


@dataclass
class Example:
    """A puzzle and the model's way to its answer. Boards are tokens (cells,)."""

    puzzle: np.ndarray
    solution: np.ndarray  # PAD where nothing is stated
    answers: np.ndarray  # (steps, cells): of every step or, where only that was saved, the last one alone
    every_step: bool
    revised: int  # cells that changed from one answer to the next, counted each time
    confidence: float
    right: bool
    name: str | None  # in identifiers.json, where it has more than the blank


@dataclass
class Seen:
    """What the predictions of one checkpoint show. `puzzles` counts those with a stated answer."""

    manifest: Manifest
    kind: Kind
    every_step: bool
    puzzles: int = 0
    right: int = 0
    bins: torch.Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))
    halted: np.ndarray | None = None  # (max_steps + 1,): how many took so many steps; None: all took all
    # Right answers first: what a model revises without end it has not understood.
    most_revised: list[Example] = field(default_factory=list)
    sure_and_wrong: list[Example] = field(default_factory=list)

    @property
    def calibration_error(self) -> float:
        return calibration_error(self.bins)


def look_at(prefix: Path, data_path: Path) -> Seen:
    """Read the predictions at `<run>/step_<n>`. Raises `UserError` if they or their dataset cannot be read."""
    manifest = read_manifest(prefix)
    extras = ("steps", "answers_by_step")
    parts = read_predictions(prefix, data_path, manifest.split, rows=1024, extras=extras, compact_alone=True)
    names = read_identifiers(data_path) if (data_path / "identifiers.json").exists() else []
    kind = PuzzleDataset.alone(data_path, manifest.split).kind
    seen = Seen(manifest, kind, "answers_by_step" in manifest.fields)
    if manifest.halt == "q":
        seen.halted = np.zeros(manifest.max_steps + 1, np.int64)
    for rows in parts:
        add(seen, rows, names)
    return seen


def add(seen: Seen, rows: PredictionRows, names: list[str]) -> None:
    """Count some predictions, and keep those that are more worth looking at than the ones before."""
    labelled = rows.labels != IGNORE_LABEL_ID
    some = labelled.any(1)
    exact = exactly_right(rows.answers, rows.labels)
    q_halt = torch.from_numpy(rows.q_halt_logits)
    seen.puzzles += int(some.sum())
    seen.right += int(exact.sum())
    seen.bins += confidence_bins(q_halt, torch.from_numpy(exact), torch.from_numpy(some)).double()
    if seen.halted is not None:
        seen.halted += np.bincount(rows.steps, minlength=len(seen.halted))
    sure = torch.sigmoid(q_halt.double()).numpy()
    revised = np.zeros(len(exact), np.int64)
    if rows.answers_by_step is not None:
        changes = rows.answers_by_step[:, 1:] != rows.answers_by_step[:, :-1]
        revised = (changes & labelled[:, None]).sum((1, 2))

    def best(score: np.ndarray, counted: np.ndarray) -> Iterator[Example]:
        chosen = np.flatnonzero(counted)
        for row in chosen[np.argsort(-score[chosen], kind="stable")][:EXAMPLES]:
            yield _example(seen, rows, int(row), names, int(revised[row]), float(sure[row]), bool(exact[row]))

    # Sorting is stable: of equals, those that were first in the split stay.
    seen.most_revised += best(revised + np.where(exact, revised.max(initial=0), 0), revised > 0)
    seen.most_revised = sorted(seen.most_revised, key=lambda one: (not one.right, -one.revised))[:EXAMPLES]
    seen.sure_and_wrong += best(sure, some & ~exact)
    seen.sure_and_wrong = sorted(seen.sure_and_wrong, key=lambda one: -one.confidence)[:EXAMPLES]


def _example(
    seen: Seen, rows: PredictionRows, row: int, names: list[str], revised: int, sure: float, right: bool
) -> Example:
    puzzle = rows.inputs[row].astype(np.uint8)
    labels = rows.labels[row]
    every_step = rows.answers_by_step is not None
    answers = rows.answers_by_step[row, : rows.steps[row]] if every_step else rows.answers[row][None]
    identifier = int(rows.puzzle_identifiers[row])
    return Example(
        puzzle=puzzle,
        solution=np.where(labels == IGNORE_LABEL_ID, PAD, labels).astype(np.uint8),
        answers=np.array(seen.kind.counted(puzzle, answers), np.uint8),
        every_step=every_step,
        revised=revised,
        confidence=sure,
        right=right,
        name=names[identifier] if 0 < identifier < len(names) else None,
    )
