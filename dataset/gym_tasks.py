"""Tasks of reasoning-gym (PyPI) as pairs of grids: their examples, made by the package one by one, all different.

dataset/gym_readers.py says which tasks fit, and how they are drawn.
"""

import io
import json
import random
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dataset.format import SOURCE_FILE
from dataset.gym_readers import IDS, READERS, REFUSED, SIZES
from dataset.pair_table import MAX_SYMBOLS
from dataset.pairs import Example
from errors import UserError, first_line
from puzzles.cells import Rows
from puzzles.gym import load_package, scorer_of

SOURCE = "reasoning-gym"
TRIES_PER_EXAMPLE = 50
_TASK_SIZE = 1 << 30  # examples that a task pretends to have
_OURS = {"seed": "--seed", "size": "--num-train and --num-test"}


@dataclass
class GymTask:
    """A task with its configuration. Raises `UserError` for one that does not fit, or that the package refuses."""

    name: str
    config: dict[str, Any]
    seed: int
    _seen: set = field(default_factory=set)  # inputs of all splits
    _symbols: set = field(default_factory=set)

    def __post_init__(self) -> None:
        package = load_package()
        if self.name not in READERS:
            known = self.name in package.factory.DATASETS
            unfit = REFUSED.get(self.name, "its question and answer are not grids or short sequences")
            reason = unfit if known else "reasoning-gym has no such task"
            raise UserError(f"--task {self.name}: {reason}; those that fit are {', '.join(READERS)}")
        for key in _OURS.keys() & self.config.keys():
            raise UserError(f"--task-config {key}: say it by {_OURS[key]}")
        try:
            self._start = int(np.random.SeedSequence(self.seed).generate_state(1)[0]) >> 1
            self._size = SIZES.get(self.name, _TASK_SIZE)
            self._entries = package.create_dataset(self.name, seed=self._start, size=self._size, **self.config)
        except Exception as error:  # asserts, and whatever a wrong type leads to
            reason = first_line(error).partition("__init__() ")[2] or first_line(error)
            raise UserError(f"--task-config: {self.name} refuses it: {reason:.200}") from None

    @property
    def has_ids(self) -> bool:
        return self.name in IDS

    @property
    def rule(self) -> str | None:
        return scorer_of(self.name)

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Yield so many, no input of which was yielded before, in this split or another.

        An entry's own seed is the task's plus its index: train has the even indices, test the odd ones.
        """
        found, tries = 0, min(TRIES_PER_EXAMPLE * count, self._size // 2)
        for tried in range(tries):
            if found == count:
                return
            example = self._example(2 * tried + (split != "train"), split)
            if example is None:
                continue
            key = (example.id, tuple(map(tuple, example.input)))
            if key not in self._seen:
                self._seen.add(key)
                self._symbols |= {cell for side in (example.input, example.output) for row in side for cell in row}
                if len(self._symbols - {None}) > MAX_SYMBOLS:
                    raise UserError(f"--task-config: {self.name} has more than {MAX_SYMBOLS} symbols; make it smaller")
                found += 1
                yield example
        if found < count:
            raise UserError(
                f"--num-{split} {count}: {self.name} made only {found} more different examples in {tries:,} tries; "
                f"ask for fewer, or widen --task-config"
            )

    def _example(self, index: int, split: str) -> Example | None:
        try:
            entry = self.entry(index)
            read = READERS[self.name](entry)
            if read is None:
                return None
            sides = [_rows(side) for side in read]
            numbers = all(type(cell) is int for side in read for row in side for cell in row)
            name = str(entry["metadata"][IDS[self.name]]) if self.has_ids else None
        except Exception as error:
            raise UserError(
                f"reasoning-gym's {self.name}, example {index}: {type(error).__name__}: {first_line(error):.200}; try "
                f"another --seed or --task-config, or the release that requirements-gym.txt names"
            ) from error
        return Example(f"{self.name}[{index}]", None, *sides, numbers=numbers, id=name, split=split)

    def entry(self, index: int) -> dict:
        """What the package makes, the same for every index whatever was made before."""
        random.seed(self._start + index)  # `list_functions` draws from Python's own generator too
        with redirect_stdout(io.StringIO()):  # the compiler of `bf` prints dots
            return self._entries[index]

    def describe(self, folder: Path) -> None:
        """Write to the dataset what it was made of."""
        made = {"source": SOURCE, "task": self.name, "config": self.config, "seed": self.seed, "version": _version()}
        (folder / SOURCE_FILE).write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
