"""What a kind of puzzle is, and which kinds there are. Each kind is one file beside this one.

`puzzles/<name>.py` holds one class derived from `Kind` with that `name`; a folder on Python's path may bring more
(extension.py). `dataset.json` names the kind of a dataset and records what it needs; datasets that were built before
that, or elsewhere, say nothing, and their kind is inferred here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from errors import UserError
from extension import import_below, modules_below

PAD = 0  # in every kind: no cell of the puzzle


@dataclass(frozen=True)
class Look:
    """How the cells of a board look, whoever draws it (puzzles/draw.py, puzzle_visualizer.html)."""

    fills: tuple[str | None, ...]  # of each token: a name in draw.PALETTE or "#rrggbb"; None: as the paper
    glyphs: tuple[str, ...]  # of each token: what stands in the cell; "": nothing
    boxes: tuple[int, int] | None = None  # a heavy line after every so many rows and columns


@dataclass(frozen=True)
class Transform:
    """A symmetry: it moves cells and renames tokens. Both are bijections, so that any board comes back exactly."""

    cells: np.ndarray  # (cells,): where cell i of the copy comes from
    tokens: np.ndarray  # (vocab_size,) uint8: what token t becomes

    def apply(self, boards: np.ndarray) -> np.ndarray:
        """Boards (…, cells) -> their copies (…, cells) uint8."""
        return self.tokens[boards[..., self.cells]]

    def undo(self, copies: np.ndarray) -> np.ndarray:
        """The boards that `apply` made these copies from."""
        return np.argsort(self.tokens).astype(np.uint8)[copies[..., np.argsort(self.cells)]]


@dataclass(frozen=True)
class Kind(ABC):
    """The puzzles of one dataset: boards of `rows` × `columns` cells, row by row, a token in each.

    An instance knows its size. Boards are integer arrays whose last axis is the cells.
    """

    name: ClassVar[str]  # of the module below puzzles/, and `kind` in dataset.json
    default_copies: ClassVar[int] = 8  # that vote on a puzzle, itself included

    rows: int
    columns: int

    # What it is

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """How each token is written, PAD first. In text and CSV files that is one character a cell."""

    @property
    @abstractmethod
    def look(self) -> Look: ...

    @property
    def title(self) -> str:
        """What a person calls such a puzzle, such as `9×9 Sudoku`."""
        return f"{self.rows}×{self.columns} {self.name}"

    @property
    def seq_len(self) -> int:
        return self.rows * self.columns

    @cached_property
    def vocab_size(self) -> int:
        return len(self.symbols)

    @classmethod
    @abstractmethod
    def of_cells(cls, cells: int) -> "Kind":
        """The kind with boards of so many cells. Raises `ValueError` that says which numbers there are."""

    @classmethod
    def infer(cls, vocab_size: int, seq_len: int, inputs: np.ndarray) -> "Kind | None":
        """The kind of a dataset that does not say it, by its numbers and some of its inputs; None: not this one."""
        return None

    # Text

    @classmethod
    def recognises(cls, text: str) -> bool:
        """Whether a person who typed this means such a puzzle; for `solve.py` without the model's dataset."""
        return False

    @classmethod
    @abstractmethod
    def parse(cls, text: str, source: str) -> "Puzzle":
        """A puzzle as a person types it. Raises `UserError` that begins with `source` and names the place."""

    @abstractmethod
    def encode(self, questions: np.ndarray, answers: np.ndarray) -> "Encoded":
        """Rows of a CSV file, (n, cells) ASCII codes, as tokens, with what is wrong with them."""

    def plain(self, tokens: np.ndarray) -> str | list:
        """A board (cells,) as it stands in JSON: its symbols in one string."""
        return "".join(self.symbols[token] if token < self.vocab_size else "?" for token in tokens.tolist())

    def visible(self, tokens: np.ndarray) -> np.ndarray:
        """The board (cells,) with PAD in the cells that do not count."""
        return tokens

    # Rules

    @abstractmethod
    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Puzzles and answers (…, cells) -> (…) bool: whether the answers obey the rules. No label is needed."""

    @abstractmethod
    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        """What is wrong with one answer (cells,), in words; empty where it is right."""

    def praise(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """What is right about an answer without violations, in words."""
        return "it obeys the rules"

    # Symmetries

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        """`count` different ones, the identity first; a smaller count gives the first ones of a larger.

        Raises `UserError` where there are not so many.
        """
        if count > 1:
            raise UserError(f"copies={count}: a {self.title} has no symmetries here; choose 1")
        return [Transform(np.arange(self.seq_len), np.arange(self.vocab_size, dtype=np.uint8))]

    # In dataset.json

    def describe(self) -> dict[str, Any]:
        """What dataset.json says of it; enough for the visualizer to draw any kind."""
        look = self.look
        return {
            "kind": self.name,
            "rows": self.rows,
            "columns": self.columns,
            "symbols": list(self.symbols),
            "look": {"fills": list(look.fills), "glyphs": list(look.glyphs), "boxes": look.boxes},
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Kind":
        return cls(description["rows"], description["columns"])


@dataclass
class Encoded:
    """Rows of a file as tokens."""

    inputs: np.ndarray  # (n, cells) uint8
    labels: np.ndarray  # (n, cells) uint8
    problems: list[tuple[np.ndarray, str]] = field(default_factory=list)  # (n,) bool masks, and what each means


@dataclass
class Puzzle:
    """What the model is asked."""

    kind: Kind
    inputs: np.ndarray  # (cells,) uint8
    identifier: int = 0  # of its puzzle embedding
    task: str | None = None  # ARC: the puzzle's name
    expected: np.ndarray | None = None  # (cells,), where the right answer is stated
    notes: tuple[str, ...] = ()  # what the person should know

    @property
    def title(self) -> str:
        return self.kind.title if self.task is None else f"ARC task {self.task}"


def find_kind(name: str) -> type[Kind]:
    """The kind of this name. Raises `UserError` where there is none."""
    found = _kind_in(name)
    if found is None:
        known = ", ".join(kind.name for kind in all_kinds())
        raise UserError(
            f"there is no kind of puzzle called '{name}'; choose one of {known}, or bring puzzles/{name}.py in a "
            f"folder on PYTHONPATH"
        )
    return found


def all_kinds() -> list[type[Kind]]:
    """In alphabetical order."""
    return [kind for kind in map(_kind_in, modules_below("puzzles")) if kind is not None]


def _kind_in(name: str) -> type[Kind] | None:
    module = import_below("puzzles", name)
    found = [value for value in vars(module).values() if isinstance(value, type)] if module else []
    return next((value for value in found if issubclass(value, Kind) and getattr(value, "name", None) == name), None)


def kind_of(description: Mapping[str, Any], samples: Sequence[np.ndarray], where: str) -> Kind:
    """The kind of a dataset: what its `dataset.json` says, or what it must be.

    `samples` are inputs (n, cells) of its sets. Raises `UserError` that names `where` for what is no kind known here.
    """
    vocab_size, seq_len = description["vocab_size"], description["seq_len"]
    if description.get("kind") is not None:
        kind = find_kind(description["kind"]).from_description(description)
        if (kind.vocab_size, kind.seq_len) != (vocab_size, seq_len):
            raise UserError(
                f"{where}: dataset.json says {description['kind']}, which has {kind.seq_len} cells and "
                f"{kind.vocab_size} tokens, but also {seq_len} and {vocab_size}; build the dataset again"
            )
        return kind
    for candidate in all_kinds():
        inferred = [candidate.infer(vocab_size, seq_len, np.asarray(inputs[:1000])) for inputs in samples]
        if inferred and all(kind is not None for kind in inferred):
            return inferred[0]
    known = ", ".join(kind.name for kind in all_kinds())
    raise UserError(
        f"{where} does not say what kind of puzzle it holds, and {seq_len} cells with {vocab_size} tokens are none of "
        f"{known}; build it again, or add the kind"
    )
