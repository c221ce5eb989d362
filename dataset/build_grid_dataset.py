r"""Your own pairs of grids or sequences -> a dataset: a JSONL or CSV file, or a folder of text files.

    python dataset/build_grid_dataset.py --input-file pairs.jsonl --output-dir data/mine --num-aug 100 --dihedral

    {"input": ["#.#", "..."], "output": ["#.#", "ooo"]}     one such line for each pair

dataset/pairs.py says how files are written, puzzles/cells.py how grids are. The symbols, and a canvas on which all
grids have room, are found in the pairs, or given. A group of train is a pair and its `--num-aug` copies, rotated,
reflected and renamed as --dihedral and --permute allow. Unless the files say which pair is in which split, no pair is
in one while a copy of its input is in another. docs/own-puzzle.md leads from ten such lines to a solved puzzle.

With --kind it reads puzzles of a kind that has a file in puzzles/, or in a folder `puzzles` on PYTHONPATH
(puzzles/kind.py), out of CSV files with `source,question,answer,rating` (dataset/puzzle_csv.py):

    python dataset/build_grid_dataset.py --kind latin --train-file train.csv --test-file test.csv \
        --output-dir data/latin --num-aug 100

The kind says how a question and its answer are written, checks them, and draws the symmetries of the copies; no copy
has a solution that is in test or val: such a copy is replaced by the original. (Sudokus and mazes have builders of
their own, which also download and generate.)

With --source reasoning-gym the package of that name makes the pairs (dataset/gym_tasks.py):

    python dataset/build_grid_dataset.py --source reasoning-gym --task futoshiki --num-train 1000 --num-test 100 \
        --task-config max_board_size=5 --output-dir data/futoshiki
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, Optional

if __package__ in (None, ""):  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dataset.cli import run_builder
from dataset.format import atomic_build
from dataset.gym_tasks import GymTask, read_config
from dataset.own_puzzles import Options, build_dataset
from dataset.pairs import read_examples
from dataset.puzzle_csv import PuzzleCsv
from dataset.puzzle_splits import DatasetWriter, Recipe, Selection, stands_in, without_copies
from errors import warn
from puzzles.cells import Writing, composed
from puzzles.kind import Kind, find_kind

# argdantic 1.3.3 shows `int | None` and the like as text in --help.
OptionalInt = Optional[int]  # noqa: UP045
OptionalText = Optional[str]  # noqa: UP045
OptionalPath = Optional[Path]  # noqa: UP045
OptionalSource = Optional[Literal["reasoning-gym"]]  # noqa: UP045

_CANVAS = re.compile(r"([1-9][0-9]{0,3})[x×]([1-9][0-9]{0,3})")


class GridConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    output_dir: Path = Field(description="folder of the dataset; an existing dataset is replaced")
    input_file: OptionalPath = Field(
        None, description="JSONL or CSV file of pairs, or a folder of text files (dataset/pairs.py); it is split"
    )
    train_file: OptionalPath = Field(
        None, description="the same for train alone, beside --test-file; with --kind a CSV file of puzzles"
    )
    test_file: OptionalPath = Field(None, description="the same for test")
    val_file: OptionalPath = Field(None, description="the same for val, where it is wanted")
    kind: OptionalText = Field(
        None, description="read puzzles of this kind, a module in puzzles/, such as sudoku or one of your own"
    )
    source: OptionalSource = Field(
        None, description="let this package make the pairs instead of reading them: pip install reasoning-gym"
    )
    task: OptionalText = Field(None, description="with --source, the task of the package, such as n_queens")
    num_train: OptionalInt = Field(None, ge=1, description="with --source, how many different train puzzles to make")
    num_test: OptionalInt = Field(None, ge=1, description="the same for test; no puzzle of test is in train")
    task_config: list[str] = Field([], description="with --source, the task's settings: n=6 max_remove=3, or JSON")
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the pairs of --input-file that becomes test, if none says split: test"
    )
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the train puzzles, after --subsample-size, that becomes a split val"
    )
    subsample_size: OptionalInt = Field(None, ge=1, description="draw this many train puzzles at random (default: all)")
    num_aug: int = Field(
        0, ge=0, le=100_000, description="augmented copies per train puzzle, at most as many as there are"
    )
    dihedral: bool = Field(
        False, description="rotated or reflected, a pair is a pair too: make copies so, and let solvers vote so"
    )
    permute: OptionalText = Field(
        None, description="symbols that may be exchanged for each other in a pair, such as 123456789 (default: none)"
    )
    ignore: OptionalText = Field(None, description="symbols whose cells do not count in an output (default: none)")
    vocabulary: OptionalText = Field(
        None, description="all symbols, also those that no pair has (default: those found, sorted)"
    )
    hole: OptionalText = Field(
        None, description="the symbol that stands for no cell at all, as null does in JSON (default: none)"
    )
    words: bool = Field(False, description="in texts, cells are words with blanks between, not single characters")
    ragged: bool = Field(False, description="rows may differ in length: holes fill them up at the end")
    canvas: OptionalText = Field(
        None, description="rows and columns of the canvas, such as 12x12 (default: room for all grids)"
    )
    symbols: OptionalPath = Field(
        None, description="YAML file with a glyph and a colour for each symbol (dataset/symbols_file.py)"
    )
    valid: OptionalText = Field(
        None, description="module:function on PYTHONPATH that says whether an answer obeys the rules (puzzles/rule.py)"
    )
    identifiers: bool = Field(False, description="give every id a puzzle embedding (default: all pairs share one)")
    drop_leaked: bool = Field(False, description="leave pairs out of train whose input, or a copy, is in test or val")
    seed: int = Field(42, ge=0, description="seed of every random choice")

    @field_validator("hole")
    @classmethod
    def _as_in_files(cls, symbol: str | None) -> str | None:
        return symbol and composed(symbol)

    @model_validator(mode="after")
    def _one_source(self):
        if self.kind is not None:
            self._check_kind()
        elif self.source is not None:
            self._check_gym()
        elif any((self.task, self.num_train, self.num_test, self.task_config)):
            raise ValueError("--task, --task-config, --num-train and --num-test go with --source reasoning-gym")
        elif (self.input_file is None) == (self.train_file is None):
            raise ValueError("give --input-file, or --train-file with --test-file; one of the two")
        elif (self.train_file is None) != (self.test_file is None) or (self.val_file and self.input_file):
            raise ValueError("--train-file, --test-file and --val-file go together, without --input-file")
        if self.canvas is not None and not _CANVAS.fullmatch(self.canvas):
            raise ValueError(f"--canvas {self.canvas!r:.40}: write rows and columns as 12x12")
        return self

    def _check_kind(self) -> None:
        """Raise `ValueError` if options do not go with --kind, or are missing."""
        read = {"output_dir", "kind", "train_file", "test_file", "num_aug", "subsample_size", "val_fraction", "seed"}
        for option in self._given(self.model_fields_set - read):
            raise ValueError(f"{option} is not read with --kind, whose file says such things")
        if self.train_file is None or self.test_file is None:
            raise ValueError("--kind needs --train-file and --test-file")

    def _check_gym(self) -> None:
        """The same with --source."""
        unread = {"input_file", "train_file", "test_file", "val_file", "test_fraction", "hole", "words", "ragged"}
        for option in self._given(self.model_fields_set & unread):
            raise ValueError(f"{option} is not read with --source, which makes the pairs")
        if None in (self.task, self.num_train, self.num_test):
            raise ValueError("--source needs --task, --num-train and --num-test")

    def _given(self, names: set[str]) -> list[str]:
        """Those of these options that say something, as they are typed."""
        given = sorted(name for name in names if getattr(self, name) not in (None, False, "", []))
        return ["--" + name.replace("_", "-") for name in given]


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
    """Build a dataset from your own pairs of grids or sequences: JSONL, CSV, or a folder of text files.

    A line of JSONL is {"input": ..., "output": ...}, with "id", "group" and "split" if you like; CSV has these columns.
    With --kind, from two CSV files of a kind in puzzles/: source,question,answer,rating. With --source, from a task
    of the package reasoning-gym.
    """
    if config.kind is not None:
        build_kind(config)
    elif config.source is not None:
        build_gym(config)
    else:
        build_own(config)


def build_own(config: GridConfig) -> None:
    """Build a dataset of kind `grid`."""
    writing = Writing(config.words, config.hole, config.ragged)
    files = [(config.input_file, None)]
    if config.train_file is not None:
        files = [(config.train_file, "train"), (config.test_file, "test"), (config.val_file, "val")]
    sources = [(read_examples(path, writing), split) for path, split in files if path is not None]
    with atomic_build(config.output_dir) as folder:
        summary = build_dataset(sources, options_of(config), folder)
    print(f"{config.output_dir}: " + "; ".join(summary))


def build_gym(config: GridConfig) -> None:
    """Build a dataset of kind `grid` from a task of reasoning-gym."""
    task = GymTask(config.task, read_config(config.task_config), config.seed)
    # Test first: it is what scores are compared by, and stays the same for any number of train puzzles.
    sources = [
        (task.examples(split, count), split)
        for split, count in (("test", config.num_test), ("train", config.num_train))
    ]
    options = options_of(config)
    options = replace(options, valid=options.valid or task.rule, identifiers=options.identifiers or task.has_ids)
    with atomic_build(config.output_dir) as folder:
        summary = build_dataset(sources, options, folder)
        task.describe(folder)
    print(f"{config.output_dir}: " + "; ".join(summary))


def options_of(config: GridConfig) -> Options:
    given = config.model_dump(include=set(Options.__dataclass_fields__))
    if config.canvas is not None:
        given["canvas"] = tuple(int(side) for side in _CANVAS.fullmatch(config.canvas).groups())
    return Options(**given)


def build_kind(config: GridConfig) -> None:
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
