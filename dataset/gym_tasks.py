"""Tasks of reasoning-gym (PyPI) as pairs of grids: their examples, made by the package, one by one.

Arrays come from an example's metadata where it has them, else out of its question and answer. What a question says
beside its grid is drawn into the input, for it decides on the answer: the turn of `rotate_matrix` is a row of arrows
above the matrix, the inequalities of `futoshiki` stand between the cells. Where examples belong to different tasks
(`rearc`, `arc_1d`), the id says to which.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dataset.pairs import Example
from errors import UserError, first_line
from puzzles.cells import Rows
from puzzles.gym import load_package, scorer_of

SOURCE = "reasoning-gym"
TRIES_PER_EXAMPLE = 50
_TASK_SIZE = 1 << 30  # examples that a task pretends to have
_OURS = {"seed": "--seed", "size": "--num-train and --num-test"}


# Entries of tasks -> input and output, rows of cells each, None in a hole


def _boards(entry: dict) -> tuple[list, list]:
    """Number puzzles, whose empty cells are 0."""
    puzzle, solution = entry["metadata"]["puzzle"], entry["metadata"]["solution"]
    return [[cell or "." for cell in row] for row in puzzle], solution


def _queens(entry: dict) -> tuple[list, list]:
    return entry["metadata"]["puzzle"], [row.split() for row in entry["answer"].split("\n")]


def _futoshiki(entry: dict) -> tuple[list, list]:
    """Cells with their inequalities between them, and holes where there is none."""
    drawn = []
    for board in _boards(entry):
        size = 2 * len(board) - 1
        rows: list[list] = [[None] * size for _ in range(size)]
        for r, row in enumerate(board):
            rows[2 * r][::2] = row
        for r1, c1, r2, c2, sign in entry["metadata"]["constraints"]:
            rows[r1 + r2][c1 + c2] = sign if r1 == r2 else {"<": "∧", ">": "∨"}[sign]
        drawn.append(rows)
    return drawn[0], drawn[1]


def _matrix(entry: dict) -> tuple[list, list]:
    return entry["metadata"]["matrix"], entry["metadata"]["solution"]


def _rotation(entry: dict) -> tuple[list, list]:
    """Above the matrix stands, in every column, an arrow to where its top goes."""
    matrix, solution = _matrix(entry)
    arrow = "↑→↓←"[entry["metadata"]["num_rotations"] % 4]
    return [[arrow] * len(matrix[0]), *matrix], solution


def _spiral(entry: dict) -> tuple[list, list]:
    matrix, sequence = _matrix(entry)
    return matrix, [sequence]


def _arrays(entry: dict) -> tuple[list, list]:
    """The last array of the question, and the answer, both in JSON."""
    question = re.search(r".*(\[\s*\[.*\]\s*\])", entry["question"], re.DOTALL)[1]
    return json.loads(question), json.loads(entry["answer"])


def _pair(entry: dict) -> tuple[list, list]:
    return entry["metadata"]["input"], entry["metadata"]["output"]


def _sequences(entry: dict) -> tuple[list, list]:
    pair = entry["metadata"]["test_example"]
    return [pair["input"]], [pair["output"]]


_READERS: dict[str, Callable[[dict], tuple[list, list]]] = {
    "arc_1d": _sequences,
    "binary_matrix": _matrix,
    "futoshiki": _futoshiki,
    "game_of_life": _arrays,
    "mini_sudoku": _boards,
    "n_queens": _queens,
    "rearc": _pair,
    "rotate_matrix": _rotation,
    "spiral_matrix": _spiral,
    "sudoku": _boards,
}
_IDS = {"arc_1d": "task_name", "rearc": "task_id"}  # where the metadata says to which task an example belongs


@dataclass
class GymTask:
    """A task with its configuration. Raises `UserError` for one that does not fit, or that the package refuses."""

    name: str
    config: dict[str, Any]
    seed: int
    _seen: set = field(default_factory=set)  # inputs of all splits

    def __post_init__(self) -> None:
        package = load_package()
        if self.name not in _READERS:
            known = self.name in package.factory.DATASETS
            reason = "its answers are not grids that can be read" if known else "reasoning-gym has no such task"
            raise UserError(f"--task {self.name}: {reason}; those that fit are {', '.join(_READERS)}")
        for key in _OURS.keys() & self.config.keys():
            raise UserError(f"--task-config {key}: say it by {_OURS[key]}")
        try:
            start = int(np.random.SeedSequence(self.seed).generate_state(1)[0]) >> 1
            self._entries = package.create_dataset(self.name, seed=start, size=_TASK_SIZE, **self.config)
        except Exception as error:  # asserts, and whatever a wrong type leads to
            reason = first_line(error).partition("__init__() ")[2] or first_line(error)
            raise UserError(f"--task-config: {self.name} refuses it: {reason:.200}") from None

    @property
    def has_ids(self) -> bool:
        return self.name in _IDS

    @property
    def rule(self) -> str | None:
        return scorer_of(self.name)

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Yield so many, no input of which was yielded before, in this split or another.

        An entry's own seed is the task's plus its index: train has the even indices, test the odd ones.
        """
        found = 0
        for tried in range(TRIES_PER_EXAMPLE * count):
            if found == count:
                return
            example = self._example(2 * tried + (split != "train"), split)
            key = (example.id, tuple(map(tuple, example.input)))
            if key not in self._seen:
                self._seen.add(key)
                found += 1
                yield example
        if found < count:
            raise UserError(
                f"--num-{split} {count}: {self.name} made only {found} more different examples in "
                f"{TRIES_PER_EXAMPLE * count:,} tries; ask for fewer, or widen --task-config"
            )

    def _example(self, index: int, split: str) -> Example:
        try:
            entry = self._entries[index]
            read = _READERS[self.name](entry)
            sides = [_rows(side) for side in read]
            numbers = all(type(cell) is int for side in read for row in side for cell in row)
            name = str(entry["metadata"][_IDS[self.name]]) if self.has_ids else None
        except Exception as error:
            raise UserError(
                f"reasoning-gym's {self.name}, example {index}: {type(error).__name__}: {first_line(error):.200}; try "
                f"another --seed or --task-config, or the release that requirements-gym.txt names"
            ) from error
        return Example(f"{self.name}[{index}]", None, *sides, numbers=numbers, id=name, split=split)

    def describe(self, folder: Path) -> None:
        """Write to the dataset what it was made of."""
        made = {"source": SOURCE, "task": self.name, "config": self.config, "seed": self.seed, "version": _version()}
        (folder / "source.json").write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version() -> str | None:
    try:
        return version(SOURCE)
    except PackageNotFoundError:
        return None


def _rows(side: list) -> Rows:
    return [[None if cell is None else str(cell) for cell in row] for row in side]


def read_config(settings: list[str]) -> dict[str, Any]:
    """`key=value …`, each value in JSON or else a text, or one JSON object. Raises `UserError` for anything else."""
    if len(settings) == 1 and settings[0].lstrip().startswith("{"):
        try:
            return json.loads(settings[0])
        except (ValueError, RecursionError) as error:
            raise UserError(f"--task-config is not JSON ({error}); write n=6, or " + '{"n": 6}') from None
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key.isidentifier() and equals) or key in found:
            raise UserError(f"--task-config {setting!r:.60}: write key=value, each key once, such as n=6")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found
