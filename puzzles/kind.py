"""What a kind of puzzle is, and which kinds there are. Each kind is one file beside this one.

`puzzles/<name>.py` holds one class derived from `Kind` with that `name`; a folder on Python's path may add more
(extension.py). The shortest kind states its `name`, `symbols`, `look` and `of_cells`, and says whether answers obey its
rules (`valid`) and what they break (`violations`); everything else has a default that a kind may override.

`dataset.json` names the kind of a dataset and records what that needs. Datasets that were built earlier, or elsewhere,
do not say it, and their kind is inferred here.
"""

import logging
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import numpy as np

from errors import UserError, first_line
from extension import import_below, modules_below

log = logging.getLogger(__name__)
T = TypeVar("T")

PAD = 0  # in every kind: not a cell of the puzzle

# Modules of this package that hold no kind. They are not even imported in search of one: three of them load numba.
_HELPERS = frozenset(
    {"canvas", "cells", "compiled", "draw", "gym", "kind", "maze_generator", "rule", "sudoku_generator", "symmetry"}
)


@dataclass(frozen=True)
class Look:
    """How the cells of a board look, whatever draws it (puzzles/draw.py, puzzle_visualizer.html)."""

    fills: tuple[str | None, ...]  # of each token: a name in draw.PALETTE or "#rrggbb"; None: like the paper
    glyphs: tuple[str, ...]  # of each token: what is written in the cell; "": nothing
    boxes: tuple[int, int] | None = None  # rows and columns between heavy lines
    # In text a cell takes two characters, the second of which is a `*` if it has changed. With `marks` it takes one: a
    # cell that has changed shows the mark of what it has become.
    marks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Transform:
    """A symmetry, which moves cells and renames tokens. Both are bijections, so that any board can be restored."""

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
    """The puzzles of one dataset: boards of `rows` × `columns` cells, row by row, with a token in each.

    An instance knows its size. Boards are integer arrays whose last axis is the cells.
    """

    name: ClassVar[str]  # the module's name below puzzles/, and `kind` in dataset.json
    default_copies: ClassVar[int] = 8  # how many copies vote on a puzzle, itself included
    has_rules: ClassVar[bool] = True  # False: an answer is right only if it is the stated one
    separate_answer: ClassVar[bool] = False  # the answer is a board of its own, not the puzzle filled in
    marks_mean: ClassVar[str] = "* changed since the step before"  # how text marks changed cells
    any_text: ClassVar[bool] = False  # a text that is plainly another kind's may be meant as such a puzzle
    same_key: ClassVar[str] = "share their solution with one of test"  # what equal `keys` mean

    rows: int
    columns: int

    def __post_init__(self) -> None:
        """Raise a `ValueError` if there is no such size."""
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"a {self.name} has at least one cell")

    # What it is

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """How each token is written, PAD first; in text and CSV files, one character per cell."""

    @property
    @abstractmethod
    def look(self) -> Look: ...

    @property
    def title(self) -> str:
        """What people call such a puzzle, for example `9×9 Sudoku`."""
        return f"{self.rows}×{self.columns} {self.name}"

    @property
    def written(self) -> tuple[str, ...]:
        """What is written for each token of a board as text: its symbol, unless the kind chooses something else."""
        return self.symbols

    @property
    def seq_len(self) -> int:
        return self.rows * self.columns

    @cached_property
    def vocab_size(self) -> int:
        return len(self.symbols)

    @classmethod
    @abstractmethod
    def of_cells(cls, cells: int) -> "Kind":
        """An instance whose boards have that many cells. Raises a `ValueError` that says which numbers there are."""

    @classmethod
    def infer(cls, vocab_size: int, seq_len: int, inputs: np.ndarray) -> "Kind | None":
        """The kind of a dataset that does not state it, by its numbers and some of its inputs; None: not this one."""
        return None

    # Text

    @classmethod
    def recognises(cls, text: str) -> bool:
        """Whether someone who typed this means such a puzzle; for `solve.py` without the model's dataset."""
        return False

    @classmethod
    def parse(cls, text: str, source: str) -> "Puzzle":
        """A puzzle as people type it. Raises a `UserError` that begins with `source` and names the place.

        `read_puzzle` has normalised the line ends. By default every character that is not white space is a cell.
        """
        place = Places(text)
        cells = [(offset, character) for offset, character in enumerate(text) if not character.isspace()]
        try:
            kind = cls.of_cells(len(cells))
        except ValueError as error:
            raise UserError(f"{source} has {len(cells)} cells; {error}") from None
        tokens = {symbol: token for token, symbol in enumerate(kind.symbols) if token != PAD}
        for offset, character in cells:
            if character not in tokens:
                allowed = " ".join(tokens)
                raise UserError(
                    f"{source}: {place(offset)} is {shown(character)}; a {kind.title} is written in {allowed}"
                )
        return Puzzle(kind, np.array([tokens[character] for _, character in cells], np.uint8))

    def read(self, text: str, source: str) -> "Puzzle":
        """As `parse`, of a kind whose boards only the dataset describes."""
        return self.parse(text, source)

    def encode(self, questions: np.ndarray, answers: np.ndarray) -> "Encoded":
        """Turn rows of a CSV file, (n, cells) ASCII codes, into tokens, and say what is wrong with them.

        The default takes the symbols as they are, and checks answers with `valid`.
        """
        tokens = self.tokens_of_codes()
        inputs, labels = tokens[questions], tokens[answers]
        allowed = " ".join(self.symbols[1:])
        return Encoded(
            inputs,
            labels,
            [
                ((inputs == PAD).any(1), f"the question has a character other than {allowed}"),
                ((labels == PAD).any(1), f"the answer has a character other than {allowed}"),
                (~self.valid(inputs, labels), "the answer does not obey the rules"),
            ],
        )

    def tokens_of_codes(self) -> np.ndarray:
        """(256,) uint8: the token of each ASCII code; PAD for codes that are not a cell's symbol."""
        tokens = np.zeros(256, np.uint8)
        for token, symbol in enumerate(self.symbols):
            if token != PAD:
                tokens[ord(symbol)] = token
        return tokens

    # Boards

    def plain(self, tokens: np.ndarray) -> str | list:
        """A board (cells,) as it is written in JSON: by default its characters in one string."""
        return "".join(self.written[token] if token < self.vocab_size else "?" for token in tokens.tolist())

    def text(self, tokens: np.ndarray) -> str:
        """The same as people type it, so that it can be read again."""
        written = self.plain(tokens)
        return written if isinstance(written, str) else self.typed(written)

    def typed(self, rows: list) -> str:
        """Rows of cells as people type them: by default their characters, a row in each line."""
        return lines_of(rows)

    def cells(self, tokens: np.ndarray) -> np.ndarray:
        """What stands in each cell of the board (cells,): (rows, columns), by default characters."""
        return np.array(self.written)[self.grid(tokens)]

    def extent(self, tokens: np.ndarray) -> tuple[int, int]:
        """How many rows and columns of the board (cells,) count, from its top left corner."""
        return self.rows, self.columns

    def grid(self, tokens: np.ndarray) -> np.ndarray:
        """The part of the board (cells,) that counts: (rows, columns) tokens."""
        rows, columns = self.extent(tokens)
        return tokens.reshape(self.rows, self.columns)[:rows, :columns]

    def visible(self, tokens: np.ndarray) -> np.ndarray:
        """The board (cells,) with PAD in the cells that do not count."""
        rows, columns = self.extent(tokens)
        board = np.full((self.rows, self.columns), PAD, tokens.dtype)
        board[:rows, :columns] = self.grid(tokens)
        return board.ravel()

    def counted(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Answers (…, cells) to puzzles (…, cells), with PAD in the cells that the puzzle or the answer rules out."""
        return answers

    def place(self, cell: int) -> str:
        """The place of a cell, in words."""
        return f"row {cell // self.columns + 1}, column {cell % self.columns + 1}"

    def keys(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, cells) twice -> (n,) uint64: puzzles with equal keys must not be on both sides of a split."""
        return hash_rows(labels)

    # Rules

    @abstractmethod
    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Puzzles and answers (…, cells) -> (…) bool: whether the answers obey the rules. No label is needed."""

    @abstractmethod
    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        """What is wrong with one answer (cells,), in words; empty where it is right."""

    def remarks(self, inputs: np.ndarray) -> list[str]:
        """What someone who asks this puzzle should know of it, in words; it may take a second to find out."""
        return []

    def praise(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """What is right about an answer without violations, in words."""
        return "it obeys the rules"

    # Symmetries

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        """`count` different symmetries, the identity first; a smaller count gives the first ones of a larger count.

        Raises `UserError` if there are not that many.
        """
        if count > 1:
            raise UserError(f"{count} copies of a {self.title}: it has no symmetries, so that there is only itself")
        return [Transform(np.arange(self.seq_len), np.arange(self.vocab_size, dtype=np.uint8))]

    @classmethod
    def copies(cls) -> int:
        """How many vote on a puzzle by default."""
        return cls.default_copies if cls.symmetries is not Kind.symmetries else 1

    # In dataset.json

    def check(self) -> None:
        """Raise `UserError` for what does not fit together, before puzzles are read from CSV files."""
        tokens, look = self.vocab_size, self.look
        entries = {"look.fills": look.fills, "look.glyphs": look.glyphs, "written": self.written}
        wrong = [
            f"{what} has {len(values)} entries for {tokens} symbols"
            for what, values in entries.items()
            if len(values) != tokens
        ]
        unwritable = [symbol for symbol in self.symbols[1:] if len(symbol) != 1 or not symbol.isascii()]
        wrong += [f"the symbol {symbol!r} is not one ASCII character" for symbol in unwritable[:3]]
        if len(set(self.symbols)) != tokens:
            wrong.append("two symbols are the same")
        board = np.arange(self.seq_len) % tokens
        if not np.array_equal(self.symmetries(1, 0)[0].apply(board), board):
            wrong.append("the first of its symmetries is not the identity")
        if wrong:
            raise UserError(f"puzzles/{self.name}.py does not fit together: {'; '.join(wrong)}; correct it")

    def describe(self) -> dict[str, Any]:
        """What dataset.json says of the kind; enough for the visualizer to draw it."""
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
        """The kind that `describe` described. Raises `ValueError` if there is none of that size."""
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
    expected: np.ndarray | None = None  # (cells,), if the right answer is stated
    notes: tuple[str, ...] = ()  # what the user should know
    name: str | None = None  # in identifiers.json, by which the model knows it; an ARC task has its identifier already

    @property
    def title(self) -> str:
        return self.kind.title if self.task is None else f"ARC task {self.task}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and what the kind has to say of the puzzle."""
        return (*self.notes, *self.kind.remarks(self.inputs))


def read_puzzle(text: str, source: str, kind: Kind | type[Kind] | None = None) -> Puzzle:
    """Read a puzzle of this kind or, without one, of the kind that recognises it.

    An instance reads it for a model that was trained on such boards.

    Raises a `UserError` that begins with `source` if the text is no puzzle.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    blank = isinstance(kind, Kind) and " " in kind.symbols
    if not text.strip("\n" if blank else None):
        raise UserError(f"{source} is empty; it must hold a puzzle")
    kind = kind or next((one for one in all_kinds() if _ask(one.name, one.recognises, text)), None)
    if kind is None:
        raise UserError(
            f"{source} is not a puzzle of a kind known here: {_known()}; one that a dataset describes is read with it "
            f"(data_path=…)"
        )
    return kind.read(text, source) if isinstance(kind, Kind) else kind.parse(text, source)


def lines_of(rows: list) -> str:
    """Rows of cells, or texts, as lines."""
    return "\n".join("".join(map(str, row)) for row in rows)


def with_article(title: str) -> str:
    """a 9×9 Sudoku, an 8×8 grid, an ARC grid"""
    number = re.match(r"\d+", title)
    vowel = re.match("8|11$|18$", number[0]) if number else title[:1] in "AEIOaeio"
    return f"{'an' if vowel else 'a'} {title}"


class Places:
    """Says where a character of a text is: by its number in a single line, else by line and column."""

    def __init__(self, text: str):
        self.one_line = "\n" not in text.strip("\n")
        self._starts = [0, *(offset for offset, character in enumerate(text, start=1) if character == "\n")]

    def __call__(self, offset: int) -> str:
        line = self.line(offset)
        column = offset - self._starts[line - 1] + 1
        return f"character {column}" if self.one_line else f"line {line}, column {column}"

    def line(self, offset: int) -> int:
        return bisect_right(self._starts, offset)


def shown(character: str) -> str:
    """A character as a message shows it."""
    return {"\t": "a tab"}.get(character, ascii(character) if not character.isprintable() else f"'{character}'")


def hash_rows(rows: np.ndarray) -> np.ndarray:
    """(n, width) small integers -> (n,) uint64; different rows collide with probability about 2^-64."""
    random = np.random.Generator(np.random.PCG64(81)).bytes(8 * rows.shape[1])  # always the same for a width
    multipliers = np.frombuffer(random, "<u8").astype(np.uint64) | np.uint64(1)
    return rows.astype(np.uint64) @ multipliers


def find_kind(name: str) -> type[Kind]:
    """The kind of this name. Raises `UserError` if there is none."""
    try:
        module = import_below("puzzles", name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"puzzles/{name}.py: {type(error).__name__}: {first_line(error)}; correct it") from error
    found = _kind_in(module, name)
    if found is None:
        remedy = f"bring puzzles/{name}.py in a folder on PYTHONPATH"
        if module is not None:
            remedy = f"give puzzles/{name}.py a class derived from Kind with name = '{name}', which it lacks"
        raise UserError(f"there is no kind of puzzle called '{name}'; choose one of {_known()}, or {remedy}")
    return found


def all_kinds() -> list[type[Kind]]:
    """All kinds here and in the folders on Python's path, in alphabetical order.

    Somebody's file that cannot be imported is passed over with a warning: it may have nothing to do with the question.
    """
    names = [name for name in modules_below("puzzles") if name not in _HELPERS]
    kinds = [_ask(name, lambda name: _kind_in(import_below("puzzles", name), name), name) for name in names]
    return [kind for kind in kinds if kind is not None]


def _ask(name: str, question: Callable[..., T], *arguments: Any) -> T | None:
    """What somebody's file says; if it fails, None and a warning."""
    try:
        return question(*arguments)
    except (Exception, SystemExit) as error:
        log.warning("passing over puzzles/%s.py: %s: %s", name, type(error).__name__, first_line(error))
        return None


def _known() -> str:
    return ", ".join(kind.name for kind in all_kinds())


def _kind_in(module: ModuleType | None, name: str) -> type[Kind] | None:
    found = [value for value in vars(module).values() if isinstance(value, type)] if module else []
    return next((value for value in found if issubclass(value, Kind) and getattr(value, "name", None) == name), None)


def kind_of(description: Mapping[str, Any], samples: Sequence[np.ndarray], where: str) -> Kind:
    """The kind of a dataset: the one that its `dataset.json` names or, without one, the one that fits.

    `samples` are inputs (n, cells) of its sets. Raises a `UserError` that names `where` if no kind known here fits.
    """
    vocab_size, seq_len = description["vocab_size"], description["seq_len"]
    if description.get("kind") is not None:
        return _described(description, where)
    for candidate in all_kinds():
        inferred = [
            _ask(candidate.name, candidate.infer, vocab_size, seq_len, np.asarray(inputs[:1000])) for inputs in samples
        ]
        if inferred and all(kind is not None for kind in inferred):
            return inferred[0]
    raise UserError(
        f"{where} does not say what kind of puzzle it holds, and {seq_len} cells with {vocab_size} tokens are none of "
        f"{_known()}; build it again, or add the kind"
    )


def _described(description: Mapping[str, Any], where: str) -> Kind:
    name, rows, columns = (description.get(key) for key in ("kind", "rows", "columns"))
    try:
        found = find_kind(name)
    except UserError as error:
        raise UserError(f"{where}: its dataset.json says kind {name!r:.60}, but {error}") from None
    # Before the kind is asked: a number of rows without bounds might make it as many symbols.
    fits = None in (rows, columns) or rows * columns == description["seq_len"]
    try:
        kind = found.from_description(description) if fits else None
        fits = fits and (kind.vocab_size, kind.seq_len) == (description["vocab_size"], description["seq_len"])
    except Exception:  # whatever somebody's kind makes of numbers that it does not know
        fits = False
    if not fits:
        raise UserError(
            f"{where}: dataset.json says {name} of {rows}×{columns}, but also {description['seq_len']} cells and "
            f"{description['vocab_size']} tokens, which do not fit together; build the dataset again"
        )
    return kind
