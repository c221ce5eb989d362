"""Mazes -> a dataset. Reads `source,question,answer,rating` rows (dataset/puzzle_csv.py) or makes mazes.

    python dataset/build_maze_dataset.py --aug                         maze-30x30-hard-1k, 8,000 train examples
    python dataset/build_maze_dataset.py --generate --output-dir data/maze-generated      no network, 5 minutes

A question is a square of wall `#`, free ` `, start `S` and goal `G`, row by row; the answer is the same with `o` on the
cells of a shortest path (puzzles/maze.py). A group of train is a maze or, with `--aug`, its 8 rotations and reflections
(transforms 0–7 of puzzles/symmetry.py, in this order, the maze itself first); test and val are not augmented.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

if __package__ in (None, ""):  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dataset.cli import run_builder
from dataset.format import atomic_build
from dataset.puzzle_csv import GeneratedPuzzles, PuzzleFile, check_one_source, open_source
from dataset.puzzle_splits import DatasetWriter, Recipe, Selection, without_copies
from puzzles.maze import Maze, dihedral_copies

SLICE = 512  # mazes augmented at a time

# argdantic 1.3.3 shows `int | None` as text in --help.
OptionalInt, OptionalPath = Optional[int], Optional[Path]  # noqa: UP045

GENERATE_ONLY = ("size", "num_train", "num_test", "min_path_length", "one_path")


class MazeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    output_dir: Path = Field(Path("data/maze-30x30-hard-1k"), description="folder of the dataset")
    source_repo: str = Field(
        "sapientinc/maze-30x30-hard-1k", description="Hugging Face dataset with train.csv and test.csv"
    )
    source_dir: OptionalPath = Field(None, description="folder with train.csv and test.csv, instead of --source-repo")
    generate: bool = Field(False, description="make mazes by the Searchformer procedure instead of reading them")
    size: int = Field(30, ge=2, le=200, description="with --generate: rows of the maze")
    num_train: int = Field(1000, ge=1, le=1_000_000, description="with --generate: train mazes")
    num_test: int = Field(1000, ge=1, le=1_000_000, description="with --generate: test mazes, all different from train")
    min_path_length: OptionalInt = Field(
        None,
        ge=1,
        description="with --generate: the shortest path takes more steps than this (default: by the size, 110 at 30)",
    )
    one_path: bool = Field(
        False, description="with --generate: only mazes with one shortest path, whose answer can be known"
    )
    aug: bool = Field(False, description="turn each train maze into its 8 rotations and reflections")
    subsample_size: OptionalInt = Field(None, ge=1, description="draw this many train mazes at random (default: all)")
    val_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the train mazes, after --subsample-size, that becomes a split val"
    )
    seed: int = Field(42, ge=0, description="seed of every random choice")

    @model_validator(mode="after")
    def _one_source(self) -> "MazeConfig":
        check_one_source(self, GENERATE_ONLY)
        return self


def _augment(
    kind: Maze, inputs: np.ndarray, labels: np.ndarray, held_out: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield whole groups of 8. Copies need no check: they have the key of their original, which is not held out."""
    for start in range(0, len(inputs), SLICE):
        group_inputs, group_labels = (dihedral_copies(grids[start : start + SLICE]) for grids in (inputs, labels))
        yield group_inputs.reshape(-1, inputs.shape[1]), group_labels.reshape(-1, inputs.shape[1])


def _generate(config: MazeConfig, seed: np.random.SeedSequence) -> dict[str, PuzzleFile]:
    from puzzles.maze_generator import generate_mazes  # imports numba, which the other sources do not need

    mazes = generate_mazes(
        config.num_train + config.num_test,
        config.size,
        config.min_path_length or usual_path_length(config.size),
        seed,
        one_path=config.one_path,
    )
    parts = {"train": slice(config.num_train), "test": slice(config.num_train, None)}
    return {
        name: GeneratedPuzzles(f"generated {name}", *(column[part] for column in mazes)) for name, part in parts.items()
    }


def usual_path_length(size: int) -> int:
    """Searchformer's 110 of a 30×30 maze, for another size: long, but found in seconds up to 20×20."""
    share = size / 30
    return max(1, int(110 * (share if share > 1 else share**1.5)))


def build(config: MazeConfig) -> None:
    """Build a maze dataset from maze-30x30-hard-1k (default), from --source-dir, or from mazes made by --generate."""
    choosing, generating = np.random.SeedSequence(config.seed).spawn(2)
    recipe = Recipe(Maze, 8, _augment) if config.aug else Recipe(Maze, 1, without_copies)
    selection = Selection(choosing, None, config.subsample_size, config.val_fraction)
    with atomic_build(config.output_dir) as folder:
        files = _generate(config, generating) if config.generate else open_source(config.source_dir, config.source_repo)
        summary = DatasetWriter(folder, files, recipe, selection).run()
    print(f"{config.output_dir}: " + "; ".join(summary))


if __name__ == "__main__":
    run_builder(build)
