"""Small datasets of all three kinds, built by the project's own builders, and their arrays."""

import json
import re
from pathlib import Path

import numpy as np

from dataset import build_arc_dataset, build_maze_dataset, build_sudoku_dataset
from dataset.format import SplitWriter, write_identifiers
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
    """Change what a split's dataset.json says, to something impossible too; it then has no digest of its own."""
    path = split / "dataset.json"
    said = json.loads(path.read_text()) | changes
    said["digests"].pop("dataset.json")
    path.write_text(json.dumps(said, separators=(",", ":")))


def as_other_tools_write_it(dataset: Path, ignored: int | None = -100, dtype: type = np.int16) -> None:
    """TRM's names, ignored labels written as `ignored` (null: as -100), a key of theirs and none of ours."""
    names = json.loads((dataset / "identifiers.json").read_text())
    names = [re.sub(r"_(t[0-7])_([0-9]{10})$", r"|||\1|||\2", name) for name in names]
    (dataset / "identifiers.json").write_text(json.dumps(names))
    for path in dataset.glob("*/dataset.json"):
        said = json.loads(path.read_text())
        kept = {key: value for key, value in said.items() if key not in ("kind", "rows", "columns", "symbols", "look")}
        del kept["digests"]
        path.write_text(json.dumps(kept | {"ignore_label_id": ignored, "total_puzzles": 1}))
        for file in path.parent.glob("*__labels.npy"):
            labels = np.load(file).astype(np.int64)
            np.save(file, np.where(labels == 0, -100 if ignored is None else ignored, labels).astype(dtype))


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
