"""Sudoku puzzles -> a dataset. Reads `source,question,answer,rating` rows (dataset/puzzle_csv.py) or makes puzzles.

    python dataset/build_sudoku_dataset.py                                               Sudoku-Extreme, all of it
    python dataset/build_sudoku_dataset.py --output-dir data/sudoku-extreme-1k-aug-1000 \
        --subsample-size 1000 --num-aug 1000                                             the 1k experiment
    python dataset/build_sudoku_dataset.py --generate --size 4 --output-dir data/sudoku-4x4        no network

A question holds `.` (or `0`) for a blank and digits (puzzles/sudoku.py). A group of train is a puzzle and its
`--num-aug` copies, each a uniform draw from the symmetries of Sudoku: digits relabelled; bands, rows in a band, stacks
and columns in a stack permuted; rows and columns exchanged (not for 6×6, whose boxes of 2×3 would become 3×2). Test and
val are not augmented.
No copy has a solution that is in test or val: such a draw is repeated up to 32 times, then the original is used.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Optional

if __package__ in (None, ""):  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dataset.cli import run_builder
from dataset.format import atomic_build
from dataset.puzzle_csv import GeneratedPuzzles, PuzzleFile, check_one_source, open_source
from dataset.puzzle_splits import DatasetWriter, Recipe, Selection, stands_in, without_copies
from errors import warn
from puzzles.kind import hash_rows
from puzzles.sudoku import BOXES, Sudoku, SudokuSymmetries

SLICE = 8192  # copies made at a time: the index arrays stay in the cache
REDRAWS = 32

# argdantic 1.3.3 shows `int | None` as text in --help.
OptionalInt, OptionalPath = Optional[int], Optional[Path]  # noqa: UP045

GENERATE_ONLY = ("size", "num_train", "num_test", "extra_clues")


class SudokuConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    output_dir: Path = Field(Path("data/sudoku-extreme-full"), description="folder of the dataset")
    source_repo: str = Field(
        "sapientinc/sudoku-extreme", description="Hugging Face dataset with train.csv and test.csv"
    )
    source_dir: OptionalPath = Field(None, description="folder with train.csv and test.csv, instead of --source-repo")
    generate: bool = Field(False, description="make puzzles with one solution each instead of reading them")
    size: Literal[4, 6, 9] = Field(9, description="with --generate: rows of the grid (4: 2×2 boxes, 6: 2×3, 9: 3×3)")
    num_train: int = Field(1000, ge=1, le=10_000_000, description="with --generate: train puzzles")
    num_test: int = Field(
        200, ge=1, le=10_000_000, description="with --generate: test puzzles, with other solutions than train"
    )
    extra_clues: OptionalInt = Field(
        None,
        ge=0,
        le=81,
        description="with --generate: up to this many more clues than needed (default: 4 for size 4, else 0)",
    )
    min_difficulty: OptionalInt = Field(
        None, ge=0, description="keep puzzles rated at least this, in train and in test (the rating counts guesses)"
    )
    subsample_size: OptionalInt = Field(None, ge=1, description="draw this many train puzzles at random (default: all)")
    num_aug: int = Field(0, ge=0, le=1_000_000, description="augmented copies per train puzzle")
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the train puzzles, after --subsample-size, that becomes a split val"
    )
    seed: int = Field(42, ge=0, description="seed of every random choice")

    @model_validator(mode="after")
    def _one_source(self) -> "SudokuConfig":
        check_one_source(self, GENERATE_ONLY)
        return self


class SudokuAugmenter:
    """Makes groups: every original, followed by `num_aug` copies."""

    def __init__(self, num_aug: int, seed: np.random.SeedSequence):
        self.num_aug, self.kept_originals = num_aug, 0
        self._rng, self._redraw_rng = (np.random.Generator(np.random.PCG64(child)) for child in seed.spawn(2))

    def __call__(
        self, kind: Sudoku, inputs: np.ndarray, labels: np.ndarray, held_out: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs, labels (puzzles, cells) -> those of whole groups; `held_out` holds sorted hashes of solutions."""
        step = max(1, SLICE // (1 + self.num_aug))
        for start in range(0, len(inputs), step):
            part = slice(start, start + step)
            yield self._groups(SudokuSymmetries(kind.size), inputs[part], labels[part], held_out)

    def _groups(
        self, symmetries: SudokuSymmetries, inputs: np.ndarray, labels: np.ndarray, held_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        group_inputs, group_labels = (np.repeat(array, 1 + self.num_aug, axis=0) for array in (inputs, labels))
        places = np.arange(len(group_inputs)).reshape(-1, 1 + self.num_aug)[:, 1:].ravel()  # of the copies
        for start in range(0, len(places), SLICE):
            place = places[start : start + SLICE]
            source = place // (1 + self.num_aug)
            copies, solutions = symmetries.apply(
                inputs, labels, source, self._rng.random((len(place), symmetries.numbers))
            )
            held = np.flatnonzero(stands_in(hash_rows(solutions), held_out))
            if len(held):
                copies[held], solutions[held] = self._redraw(symmetries, inputs, labels, source[held], held_out)
            group_inputs[place], group_labels[place] = copies, solutions
        return group_inputs, group_labels

    def _redraw(
        self,
        symmetries: SudokuSymmetries,
        inputs: np.ndarray,
        labels: np.ndarray,
        source: np.ndarray,
        held_out: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the puzzles `source` whose solutions are not held out; failing that, the puzzles themselves."""
        copies, solutions = inputs[source], labels[source]
        # All numbers of a copy are drawn at once, needed or not, so results do not depend on the slicing.
        numbers = self._redraw_rng.random((len(source), REDRAWS, symmetries.numbers))
        todo = np.arange(len(source))
        for attempt in range(REDRAWS):
            if not len(todo):
                break
            candidates = symmetries.apply(inputs, labels, source[todo], numbers[todo, attempt])
            free = ~stands_in(hash_rows(candidates[1]), held_out)
            copies[todo[free]], solutions[todo[free]] = candidates[0][free], candidates[1][free]
            todo = todo[~free]
        self.kept_originals += len(todo)
        return copies, solutions


def _generate(config: SudokuConfig, seed: np.random.SeedSequence) -> dict[str, PuzzleFile]:
    from puzzles.sudoku_generator import generate_sudokus  # imports numba, which the other sources do not need

    extra = config.extra_clues if config.extra_clues is not None else (4 if config.size == 4 else 0)
    made = generate_sudokus(
        BOXES[config.size],
        config.num_train,
        config.num_test,
        seed,
        extra_clues=extra,
        min_rating=config.min_difficulty or 0,
    )
    return {split: GeneratedPuzzles(f"generated {split}", *columns) for split, columns in made.items()}


def build(config: SudokuConfig) -> None:
    """Build a Sudoku dataset from Sudoku-Extreme (default), from --source-dir, or from puzzles made by --generate.

    The 1k experiment: --output-dir data/sudoku-extreme-1k-aug-1000 --subsample-size 1000 --num-aug 1000.
    """
    choosing, augmenting, generating = np.random.SeedSequence(config.seed).spawn(3)
    augmenter = SudokuAugmenter(config.num_aug, augmenting)
    recipe = Recipe(Sudoku, 1 + config.num_aug, augmenter if config.num_aug else without_copies)
    selection = Selection(choosing, config.min_difficulty, config.subsample_size, config.val_fraction)
    with atomic_build(config.output_dir) as folder:
        files = _generate(config, generating) if config.generate else open_source(config.source_dir, config.source_repo)
        summary = DatasetWriter(folder, files, recipe, selection).run()
    if augmenter.kept_originals:
        warn(f"{augmenter.kept_originals} copies are the original: {REDRAWS} draws each had a solution of test or val")
    print(f"{config.output_dir}: " + "; ".join(summary))


if __name__ == "__main__":
    run_builder(build)
