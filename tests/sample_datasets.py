"""Small datasets of all three kinds, built by the project's own builders, and their arrays."""

import json
from pathlib import Path

import numpy as np

from dataset import build_arc_dataset, build_maze_dataset, build_sudoku_dataset
from dataset.format import PuzzleDatasetMetadata, SplitWriter, write_identifiers
from tests.arc_oracle import write_folder

REFERENCE = Path(__file__).parent / "reference"


class Arrays:
    """One split on disk: its five arrays."""

    def __init__(self, dataset: Path, split: str = "train", set_name: str = "all"):
        def load(field: str) -> np.ndarray:
            return np.load(dataset / split / f"{set_name}__{field}.npy")

        self.inputs, self.labels = load("inputs"), load("labels")
        self.puzzle_identifiers = load("puzzle_identifiers")
        self.puzzle_indices, self.group_indices = load("puzzle_indices"), load("group_indices")

    def example(self, group: int, puzzle: int, example: int = 0) -> int:
        """The row of an example, all counted from 0."""
        return int(self.puzzle_indices[self.group_indices[group] + puzzle]) + example

    def locate(self, example: int) -> tuple[int, int, int]:
        """Group, puzzle of the group, example of the puzzle of a row."""
        puzzle = int(np.searchsorted(self.puzzle_indices, example, side="right")) - 1
        group = int(np.searchsorted(self.group_indices, puzzle, side="right")) - 1
        return group, puzzle - int(self.group_indices[group]), example - int(self.puzzle_indices[puzzle])


def build_arc(folder: Path, num_aug: int) -> Path:
    """Four training and three evaluation tasks of ARC-AGI-1."""
    config = build_arc_dataset.ArcConfig(
        dataset_dirs=[str(write_folder(folder / "raw"))], output_dir=str(folder / "arc"), num_aug=num_aug
    )
    build_arc_dataset.build(config)
    return folder / "arc"


def build_sudoku(folder: Path) -> Path:
    """Ten 9×9 puzzles with three copies each, five for test."""
    config = build_sudoku_dataset.SudokuConfig(
        source_dir=REFERENCE / "sudoku", output_dir=folder / "sudoku-9x9", num_aug=3
    )
    build_sudoku_dataset.build(config)
    return config.output_dir


def build_maze(folder: Path) -> Path:
    """Four mazes of 30×30 in their eight positions, two for test."""
    config = build_maze_dataset.MazeConfig(source_dir=REFERENCE / "maze", output_dir=folder / "maze-30x30", aug=True)
    build_maze_dataset.build(config)
    return config.output_dir


def describe_anew(split: Path, **changes) -> None:
    """Change what a split's dataset.json says, as a builder would have written it."""
    path = split / "dataset.json"
    said = json.loads(path.read_text()) | changes
    said["digests"].pop("dataset.json", None)
    metadata = PuzzleDatasetMetadata(**said)
    metadata.digests["dataset.json"] = metadata.own_digests()
    path.write_text(metadata.as_json())


def write_dataset(
    folder: Path, inputs, labels, *, vocab_size: int, names: list[str] | None = None, description: dict | None = None
) -> Path:
    """One split `train` of puzzles with one example each, every one a group; `description` is added to its JSON."""
    inputs, labels, names = np.asarray(inputs), np.asarray(labels), names or []
    folder.mkdir(parents=True)
    write_identifiers(folder, names)
    writer = SplitWriter(folder, "train", seq_len=inputs.shape[1])
    ids, ones = np.arange(len(inputs)) + 1 if names else np.zeros(len(inputs), int), np.ones(len(inputs), int)
    writer.append(inputs, labels, puzzle_identifiers=ids, puzzle_sizes=ones, group_sizes=ones)
    writer.finish(vocab_size=vocab_size, num_puzzle_identifiers=1 + len(names))
    if description is not None:
        describe_anew(folder / "train", **description)
    return folder


def digits(tokens: np.ndarray) -> list[str]:
    """What the cells of a Sudoku say."""
    return [str(token - 1) if token > 1 else "" for token in tokens.tolist()]
