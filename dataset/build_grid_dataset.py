r"""Puzzles of any kind in CSV files -> a dataset. Reads `source,question,answer,rating` rows (dataset/puzzle_csv.py).

    python dataset/build_grid_dataset.py --kind latin --train-file train.csv --test-file test.csv \
        --output-dir data/latin --num-aug 100

The kind is a file in puzzles/, or in a folder `puzzles` on PYTHONPATH (puzzles/kind.py); it says how a question and its
answer are written, and checks them. A group of train is a puzzle and its `--num-aug` copies, made by symmetries that
the kind draws; test and val are not augmented. No copy has a solution that is in test or val: such a copy is replaced
by the original. (Sudokus and mazes have builders of their own, which also download and generate.)
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

if __package__ in (None, ""):  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dataset.cli import run_builder
from dataset.format import atomic_build
from dataset.puzzle_csv import PuzzleCsv
from dataset.puzzle_splits import DatasetWriter, Recipe, Selection, stands_in, warn, without_copies
from puzzles.kind import Kind, find_kind

# argdantic 1.3.3 shows `int | None` as text in --help.
OptionalInt = Optional[int]  # noqa: UP045


class GridConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str = Field(description="kind of puzzle: a module in puzzles/, such as sudoku or one of your own")
    train_file: Path = Field(description="CSV file of the train puzzles")
    test_file: Path = Field(description="CSV file of the test puzzles")
    output_dir: Path = Field(description="folder of the dataset; an existing dataset is replaced")
    num_aug: int = Field(
        0, ge=0, le=100_000, description="augmented copies per train puzzle, at most as many as the kind has"
    )
    subsample_size: OptionalInt = Field(None, ge=1, description="draw this many train puzzles at random (default: all)")
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the train puzzles, after --subsample-size, that becomes a split val"
    )
    seed: int = Field(42, ge=0, description="seed of every random choice")


class GridAugmenter:
    """Makes groups: every original, followed by `num_aug` copies."""

    def __init__(self, num_aug: int, seed: np.random.SeedSequence):
        self.num_aug, self.kept_originals = num_aug, 0
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def __call__(
        self, kind: Kind, inputs: np.ndarray, labels: np.ndarray, held_out: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs, labels (puzzles, cells) -> those of whole groups; `held_out` holds sorted keys."""
        for question, answer in zip(inputs, labels, strict=True):
            # Every puzzle has symmetries of its own, the identity first.
            transforms = kind.symmetries(1 + self.num_aug, seed=int(self._rng.random() * 2**53))
            copies, solutions = (np.stack([one.apply(board) for one in transforms]) for board in (question, answer))
            held = stands_in(kind.keys(copies, solutions), held_out)
            held[0] = False
            copies[held], solutions[held] = question, answer
            self.kept_originals += int(held.sum())
            yield copies, solutions


def build(config: GridConfig) -> None:
    """Build a dataset of puzzles of any kind from two CSV files: source,question,answer,rating."""
    choosing, augmenting = np.random.SeedSequence(config.seed).spawn(2)
    augmenter = GridAugmenter(config.num_aug, augmenting)
    recipe = Recipe(find_kind(config.kind), 1 + config.num_aug, augmenter if config.num_aug else without_copies)
    files = {"train": PuzzleCsv(config.train_file), "test": PuzzleCsv(config.test_file)}
    selection = Selection(choosing, None, config.subsample_size, config.val_fraction)
    with atomic_build(config.output_dir) as folder:
        summary = DatasetWriter(folder, files, recipe, selection).run()
    if augmenter.kept_originals:
        warn(f"{augmenter.kept_originals} copies are the original: their solution is in test or val")
    print(f"{config.output_dir}: " + "; ".join(summary))


if __name__ == "__main__":
    run_builder(build)
