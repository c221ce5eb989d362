"""Grids and sequences of anybody's own, which their dataset describes: dataset/build_grid_dataset.py.

Tokens are PAD 0, then the end mark 1 where there is one, then the symbols. A board is a canvas with the grid in its top
left corner and PAD in the rest; a sequence is a grid of one row.

Where every output has the shape of its input there is no end mark: cells of an answer count where the input has some.
Otherwise the model must say how large its answer is. As for ARC, the end mark then fills the row below an output and
the column to its right, where they are inside the canvas.

A hole, a place in a grid where the board has no cell, is PAD too if it is at the same place in input and output.
Otherwise it is a symbol, which the model learns.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np

from errors import UserError
from puzzles.canvas import corner_shapes, grids_alone, with_ends
from puzzles.cells import Rows, Writing, read_cells
from puzzles.kind import PAD, Kind, Look, Puzzle, Transform, hash_rows
from puzzles.rule import RuleFailed, broken_rules, can_be_asked
from puzzles.symmetry import dihedral_transform

END = 1  # where there is one
SAME_SHAPE = (0, 2, 4, 5)  # symmetries of the square that keep a rectangle's rows and columns
_SHOWN_SYMBOLS = 40


@dataclass(frozen=True)
class Grid(Kind):
    name = "grid"
    separate_answer = True
    any_text = True
    marks_mean = "* changed since the step before, at first since the input"

    vocabulary: tuple[str, ...]  # how each token is written; "" for PAD and the end mark
    fills: tuple[str | None, ...]
    glyphs: tuple[str, ...]
    ends: bool = False  # token 1 is the end mark
    hole: str | None = None  # how a hole is written in text; in lists it is null
    words: bool = False  # a symbol may have several characters
    numbers: bool = False  # the symbols are numbers
    dihedral: bool = False  # rotated and reflected, a puzzle and its answer are another such pair
    permuted: tuple[int, ...] = ()  # tokens that may be renamed among themselves
    ignored: tuple[int, ...] = ()  # tokens that do not count in an output
    rule: str | None = None  # module:function, or reasoning-gym:task

    @classmethod
    def of_cells(cls, cells: int) -> "Grid":
        raise ValueError("a grid of one's own is described by its dataset, built without --kind")

    @property
    def has_rules(self) -> bool:
        return self.rule is not None and can_be_asked(self.rule)

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.vocabulary

    @property
    def written(self) -> tuple[str, ...]:
        """Its glyph, or the symbol where that is nothing."""
        shown = [glyph or symbol for glyph, symbol in zip(self.glyphs, self.vocabulary, strict=True)]
        shown[PAD] = self.hole or " "
        return tuple(shown)

    @property
    def look(self) -> Look:
        return Look(fills=self.fills, glyphs=self.glyphs)

    @property
    def title(self) -> str:
        return f"sequence of up to {self.columns}" if self.rows == 1 else f"{self.rows}×{self.columns} grid"

    # In dataset.json

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "options": {
                "ends": self.ends,
                "hole": self.hole,
                "words": self.words,
                "numbers": self.numbers,
                "dihedral": self.dihedral,
                "permuted": list(self.permuted),
                "ignored": list(self.ignored),
                "rule": self.rule,
            }
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Grid":
        look, options = description["look"], dict(description["options"])
        options |= {name: tuple(int(token) for token in options[name]) for name in ("permuted", "ignored")}
        vocabulary, fills, glyphs = (tuple(part) for part in (description["symbols"], look["fills"], look["glyphs"]))
        kind = cls(description["rows"], description["columns"], vocabulary, fills, glyphs, **options)
        if not len(vocabulary) == len(fills) == len(glyphs) == description["vocab_size"]:
            raise ValueError("symbols and look differ in length")
        if not all(kind.first_symbol <= token < kind.vocab_size for token in (*kind.permuted, *kind.ignored)):
            raise ValueError("tokens outside the vocabulary")
        return kind

    # Text

    @property
    def first_symbol(self) -> int:
        return END + 1 if self.ends else 1

    @cached_property
    def tokens(self) -> dict[str | None, int]:
        """The token of each symbol; None, a hole, is PAD unless holes are a symbol."""
        symbols = self.vocabulary[self.first_symbol :]
        found: dict[str | None, int] = {symbol: token for token, symbol in enumerate(symbols, start=self.first_symbol)}
        return found | {None: found.get(self.hole, PAD)}

    @classmethod
    def parse(cls, text: str, source: str) -> Puzzle:
        raise UserError(f"{source}: grids of one's own are read as the model's dataset says; name it with data_path=…")

    def read(self, text: str, source: str) -> Puzzle:
        """A grid as in the files that the dataset was built from: lines of text, JSON, or a line of the JSONL file.

        That line may hold the output too, and the id by which the model knows the puzzle.
        """
        value = self._from_json(text, source)
        expected = name = None
        if isinstance(value, dict):
            if "input" not in value:
                raise UserError(f"{source}: the JSON object has no key 'input'; write it as in the JSONL file")
            name = value.get("id")
            if value.get("output") is not None:
                rows = self._read_rows(value["output"], f"{source}: the output")
                expected = self.label(rows, f"{source}: the output")
            value = value["input"]
        rows = self._read_rows(value, source)
        name = None if name is None else str(name)
        return Puzzle(self, self.on_canvas(rows, source), expected=expected, name=name)

    def _from_json(self, text: str, source: str) -> Any:
        """What a text says in JSON; the text itself if it is none, or is written in symbols such as brackets."""
        start = text.lstrip()[:1]
        if start not in ("[", "{"):
            return text
        may_be_text = any(symbol.startswith(start) for symbol in self.vocabulary)
        if may_be_text and self._is_written_in_symbols(text):
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            if may_be_text:
                return text
            reason = error if isinstance(error, ValueError) else "nested too deeply"
            raise UserError(f"{source} is not JSON ({reason}); write one grid, or one line of a JSONL file") from None

    def _is_written_in_symbols(self, text: str) -> bool:
        try:
            return all(cell in self.tokens for row in read_cells(text, self._writing) for cell in row)
        except ValueError:
            return False

    @property
    def _writing(self) -> Writing:
        return Writing(self.words, self.hole, skip_blanks=" " not in self.tokens)

    def _read_rows(self, value: Any, source: str) -> Rows:
        try:
            return read_cells(value, self._writing)
        except ValueError as error:
            remedy = f"; fill it up with {self.hole!r}" if self.hole else "; in JSON, null is a hole"
            raise UserError(f"{source} {error}{remedy}") from None

    def on_canvas(self, rows: Rows, source: str) -> np.ndarray:
        """A grid in the top left corner: (cells,) uint8. Raises a `UserError` that begins with `source`."""
        if len(rows) > self.rows or len(rows[0]) > self.columns:
            raise UserError(
                f"{source} has {len(rows)}×{len(rows[0])} cells; the dataset's canvas has {self.rows}×{self.columns}, "
                f"so that there is no room (build it with --canvas)"
            )
        board = np.full((self.rows, self.columns), PAD, np.uint8)
        for r, row in enumerate(rows):
            for c, symbol in enumerate(row):
                token = self.tokens.get(symbol)
                if token is None:
                    known = " ".join(self.shown_symbols())
                    raise UserError(
                        f"{source}: row {r + 1}, column {c + 1} is {symbol!r}; a {self.title} of this dataset is "
                        f"written in {known}"
                    )
                board[r, c] = token
        return board.ravel()

    def shown_symbols(self) -> list[str]:
        """The symbols as a message shows them, not too many."""
        symbols = [f"{symbol!r}" if symbol.isspace() else symbol for symbol in self.vocabulary[self.first_symbol :]]
        more = len(symbols) - _SHOWN_SYMBOLS
        return symbols if more <= 0 else [*symbols[:_SHOWN_SYMBOLS], f"… ({more} more)"]

    def label(self, rows: Rows, source: str) -> np.ndarray:
        """An output as a label: (cells,) uint8, with end marks if there are any, PAD in cells that do not count."""
        board = self.on_canvas(rows, source)
        if self.ends:
            board = self.with_ends(board[None], np.array([[len(rows), len(rows[0])]]))[0]
        board[np.isin(board, self.ignored)] = PAD
        return board

    def with_ends(self, boards: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """Boards (n, cells) with end marks below and right of grids of these shapes (n, 2), where there is room."""
        boards = boards.reshape(-1, self.rows, self.columns)
        return with_ends(boards, shapes, END).reshape(len(boards), -1)

    def plain(self, tokens: np.ndarray) -> list:
        """The rows of the grid: texts, or lists where symbols are words, numbers, or have holes between."""
        rows = self.rows_of(tokens)
        texts = not self.words and not self.numbers and all(cell is not None for row in rows for cell in row)
        return ["".join(row) for row in rows] if texts else rows

    def typed(self, rows: list) -> str:
        """Lines of text, or JSON where `plain` writes lists."""
        texts = not self.words and not self.numbers and all(isinstance(row, str) for row in rows)
        return super().typed(rows) if texts else json.dumps(rows, ensure_ascii=False)

    def cells(self, tokens: np.ndarray) -> np.ndarray:
        """Its symbols or, where these are numbers, those; None in a hole."""
        rows = self.rows_of(tokens)
        has_holes = any(cell is None for row in rows for cell in row)
        return np.array(rows, object) if has_holes else np.array(rows)

    def rows_of(self, tokens: np.ndarray, shape: tuple[int, int] | None = None) -> list[list]:
        """The cells of a grid on a board (cells,) as in the files: texts or numbers, None in a hole.

        `shape` is its number of rows and of columns; None: as many as hold a cell.
        """
        cells: list = [None] * self.first_symbol + list(self.vocabulary[self.first_symbol :])
        cells = [None if cell == self.hole else int(cell) if self.numbers and cell else cell for cell in cells]
        rows, columns = shape or self.extent(tokens)
        board = tokens.reshape(self.rows, self.columns)[:rows, :columns]
        return [[cells[token] for token in row] for row in board.tolist()]

    # Boards

    def extent(self, tokens: np.ndarray) -> tuple[int, int]:
        board = tokens.reshape(self.rows, self.columns)
        if self.ends:
            ((rows, columns),) = corner_shapes(board[None] > END).tolist()
            return rows, columns
        filled = board != PAD
        rows, columns = (np.flatnonzero(filled.any(axis)) for axis in (1, 0))
        return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (0, 0)

    def counted(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """PAD outside of the answer's grid and its end marks or, without these, where the input has no cell."""
        answers = np.asarray(answers)
        if not self.ends:
            return np.where(np.asarray(inputs) == PAD, np.uint8(PAD), answers).astype(np.uint8)
        boards = answers.reshape(-1, self.rows, self.columns)
        return grids_alone(boards, boards > END, END).reshape(answers.shape)

    # Rules

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """What the rule says; without one, every answer that holds a grid passes."""
        inputs, answers = np.broadcast_arrays(inputs, answers)
        pairs = zip(inputs.reshape(-1, self.seq_len), answers.reshape(-1, self.seq_len), strict=True)
        said: dict[bytes, bool] = {}
        found = []
        for pair in pairs:
            key = b"".join(board.astype(np.uint8).tobytes() for board in pair)
            if key not in said:
                said[key] = not self.violations(*pair)
            found.append(said[key])
        return np.array(found, bool).reshape(answers.shape[:-1])

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        """A rule that fails on an answer finds fault with it: a model may answer with a grid of any shape."""
        answer = self.counted(inputs, answer)
        shape = self.extent(answer if self.ends else inputs)
        if not (answer != PAD).any() or 0 in shape:
            return ["there is no grid"]
        if not self.ends and not self.ignored:
            empty = np.flatnonzero((answer == PAD) & (inputs != PAD))
            if len(empty):
                return [f"{self.place(cell)} is empty" for cell in empty.tolist()]
        if not self.has_rules:
            return []
        try:
            return broken_rules(self.rule, self.rows_of(inputs), self.rows_of(answer, shape))
        except RuleFailed as failure:
            return [str(failure)]

    def praise(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        return f"the rule {self.rule} says so"

    # Symmetries

    @cached_property
    def moves(self) -> np.ndarray:
        """(transforms, cells): where each cell of a copy comes from; the identity first, no two alike."""
        cells = np.arange(self.seq_len).reshape(self.rows, self.columns)
        if not self.dihedral:
            return cells.reshape(1, -1)
        wanted = range(8) if self.rows == self.columns else SAME_SHAPE
        moved = np.stack([dihedral_transform(cells, tid).ravel() for tid in wanted])
        _, first = np.unique(moved, axis=0, return_index=True)
        return moved[np.sort(first)]

    @property
    def num_symmetries(self) -> int:
        return len(self.moves) * factorial(len(self.permuted))

    def all_transforms(self) -> Iterator[Transform]:
        """Yield every symmetry, the identity first; there may be very many."""
        for order in permutations(self.permuted):
            tokens = np.arange(self.vocab_size, dtype=np.uint8)
            tokens[list(self.permuted)] = order
            yield from (Transform(cells, tokens) for cells in self.moves)

    def draw_transforms(self, rng: np.random.Generator) -> Iterator[Transform]:
        """Yield random symmetries for ever, which may repeat."""
        permuted = np.array(self.permuted, np.uint8)
        while True:
            draws = rng.random(1 + len(permuted))
            tokens = np.arange(self.vocab_size, dtype=np.uint8)
            tokens[permuted] = permuted[np.argsort(draws[1:], kind="stable")]
            yield Transform(self.moves[int(draws[0] * len(self.moves))], tokens)

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        if count > self.num_symmetries:
            raise UserError(
                f"{count} copies of a {self.title}: there are {self.num_symmetries:,}, itself included, by the "
                f"--dihedral and --permute that the dataset was built with; choose at most that"
            )
        found = [Transform(self.moves[0], np.arange(self.vocab_size, dtype=np.uint8))]
        seen = {_bytes_of(found[0])}
        for transform in self.draw_transforms(np.random.Generator(np.random.PCG64(seed))):
            if len(found) == count:
                return found
            if _bytes_of(transform) not in seen:
                seen.add(_bytes_of(transform))
                found.append(transform)
        raise AssertionError("draws do not end")

    def copies(self) -> int:
        return min(self.default_copies, self.num_symmetries)

    def keys(self, inputs: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Keys that are the same for all copies of an input, wherever on the canvas, and whatever its label."""
        return np.min([hash_rows(self._renamed(self._in_corner(inputs[:, cells]))) for cells in self.moves], axis=0)

    def _in_corner(self, boards: np.ndarray) -> np.ndarray:
        """Boards (n, cells) with the smallest rectangle that holds all of their cells moved to the top left corner."""
        boards = boards.reshape(-1, self.rows, self.columns)
        for axis in (1, 2):
            first = (boards != PAD).any(3 - axis).argmax(1)
            places = (np.arange(boards.shape[axis]) + first[:, None]) % boards.shape[axis]
            boards = np.take_along_axis(boards, np.expand_dims(places, 3 - axis), axis)
        return boards.reshape(len(boards), -1)

    def _renamed(self, boards: np.ndarray) -> np.ndarray:
        """Boards (n, cells) with the permuted symbols renamed by the order in which they first occur."""
        if not self.permuted:
            return boards
        permuted = np.array(self.permuted, np.uint8)
        firsts = np.stack([_first(boards == token) for token in permuted], axis=1)  # (n, permuted)
        ranks = np.argsort(np.argsort(firsts, axis=1, kind="stable"), axis=1)
        names = np.tile(np.arange(self.vocab_size, dtype=np.uint8), (len(boards), 1))
        names[:, permuted] = permuted[ranks]
        return np.take_along_axis(names, boards.astype(np.intp), axis=1)


def _first(mask: np.ndarray) -> np.ndarray:
    """(n, cells) bool -> (n,): the first cell where it holds; `cells` if there is none."""
    return np.where(mask.any(1), mask.argmax(1), mask.shape[1])


def _bytes_of(transform: Transform) -> bytes:
    return transform.cells.tobytes() + transform.tokens.tobytes()
