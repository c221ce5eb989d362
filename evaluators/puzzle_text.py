"""Sudokus and mazes as a person types or pastes them -> token arrays; what is wrong is named by character or line.

A Sudoku has 16, 36 or 81 cells: digits, and `.` or `0` for a blank. Between them may stand blanks, line breaks and the
lines of a drawn grid (`|`, `+`, `-` and box-drawing characters).
A maze is a square of lines: walls `#`, free cells (a blank, or `.`, which editors do not cut off at the end of a line),
one start `S`, one goal `G`. It may also stand in one line, as in the CSV files. A path drawn in with `o` is taken out.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import numpy as np

from errors import UserError
from evaluators.rules import BLANK, repeated_digits, shortest_path_steps
from puzzles.maze import CHARACTERS, FREE
from puzzles.sudoku import BOXES

SEPARATORS = frozenset("|+-│┃┼╋─━═║╬┬┴├┤┌┐└┘")
MAZE_TOKENS = {character: token for token, character in enumerate(CHARACTERS, start=1)} | {".": FREE, "o": FREE}
MAZE_ALPHABET = "`#` (wall), a blank or `.` (free), S (start) and G (goal)"

Kind = Literal["sudoku", "maze", "arc"]


@dataclass
class Puzzle:
    """What the model is asked."""

    kind: Kind
    inputs: np.ndarray  # (cells,) uint8 tokens of a square, row by row
    identifier: int = 0  # of its puzzle embedding
    task: str | None = None  # ARC: the puzzle's name
    expected: np.ndarray | None = None  # ARC: (900,) tokens of the output that the task states
    notes: tuple[str, ...] = ()  # what the person should know

    @property
    def size(self) -> int:
        return isqrt(len(self.inputs))

    @property
    def name(self) -> str:
        if self.kind == "arc":
            return f"ARC task {self.task}"
        return f"{self.size}×{self.size} {'Sudoku' if self.kind == 'sudoku' else 'maze'}"

    @property
    def vocab_size(self) -> int:
        """Tokens of the datasets of its kind."""
        return {"sudoku": self.size + 2, "maze": 1 + len(CHARACTERS), "arc": 12}[self.kind]


def read_puzzle(text: str, source: str) -> Puzzle:
    """A Sudoku or a maze; `source` heads the message of the `UserError` where it is neither."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UserError(f"{source} is empty; it must hold a Sudoku or a maze")
    characters = set(text)
    is_maze = "#" in characters or ({"S", "G"} & characters and not characters & set("0123456789"))
    return _read_maze(text, source) if is_maze else _read_sudoku(text, source)


class _Places:
    """Says where a character stands: in one line by its number, in several by line and column."""

    def __init__(self, text: str):
        self.text, self.one_line = text, "\n" not in text.strip("\n")

    def __call__(self, offset: int) -> str:
        line_start = self.text.rfind("\n", 0, offset) + 1
        column = offset - line_start + 1
        return f"character {column}" if self.one_line else f"line {self.line(offset)}, column {column}"

    def line(self, offset: int) -> int:
        return self.text.count("\n", 0, offset) + 1


def _shown(character: str) -> str:
    return {"\t": "a tab"}.get(character, ascii(character) if not character.isprintable() else f"'{character}'")


def _read_sudoku(text: str, source: str) -> Puzzle:
    place = _Places(text)
    cells = [(offset, character) for offset, character in enumerate(text) if not _separates(character)]
    for offset, character in cells:
        if character not in ".0123456789":
            raise UserError(
                f"{source}: {place(offset)} is {_shown(character)}; a Sudoku is written in digits, with . or 0 for a "
                f"blank (and a maze in # S G and blanks)"
            )
    size = isqrt(len(cells))
    if size not in BOXES or size * size != len(cells):
        raise UserError(f"{source} has {len(cells)} cells{_odd_lines(cells, place)}; a Sudoku has {_lengths()}")
    places = [f"{place(offset)} (row {i // size + 1}, column {i % size + 1})" for i, (offset, _) in enumerate(cells)]
    for (_, character), where in zip(cells, places, strict=True):
        if character > str(size):  # `.` comes before the digits
            raise UserError(f"{source}: {where} is {character}; the digits of a {size}×{size} Sudoku are 1 to {size}")
    inputs = np.array([BLANK if character in ".0" else int(character) + 1 for _, character in cells], np.uint8)
    for unit, which, digit, same in repeated_digits(inputs):
        where = " and ".join(places[cell] for cell in same)
        raise UserError(f"{source}: {unit} {which + 1} has the clue {digit} more than once, at {where}; correct it")
    return Puzzle("sudoku", inputs)


def _separates(character: str) -> bool:
    return character.isspace() or character in SEPARATORS


def _lengths() -> str:
    *most, last = (f"{size * size} ({size}×{size})" for size in BOXES)
    return f"{', '.join(most)} or {last}"


def _odd_lines(cells: list[tuple[int, str]], place: _Places) -> str:
    """Which line of several has another number of cells than most."""
    counts = Counter(place.line(offset) for offset, _ in cells)
    usual = Counter(counts.values()).most_common(1)[0][0] if counts else 0
    odd = [line for line, count in counts.items() if count != usual]
    if place.one_line or not odd or len(odd) > len(counts) // 2:
        return ""
    return f" (line {odd[0]} has {counts[odd[0]]}, most have {usual})"


def _read_maze(text: str, source: str) -> Puzzle:
    place = _Places(text)
    for offset, character in enumerate(text):
        if character not in MAZE_TOKENS and character != "\n":
            raise UserError(f"{source}: {place(offset)} is {_shown(character)}; a maze is written in {MAZE_ALPHABET}")
    rows = _square(list(_numbered_lines(text)), source)
    for letter, role in (("S", "start"), ("G", "goal")):
        found = [place(offset) for offset, character in enumerate(text) if character == letter]
        if len(found) != 1:
            where = f"{len(found)}: {' and '.join(found[:3])}" if found else "none"
            raise UserError(f"{source}: a maze has one {role} {letter}, this one has {where}")
    inputs = np.array([MAZE_TOKENS[character] for row in rows for character in row], np.uint8)
    notes = []
    if "o" in text:
        notes.append("the path drawn in with o is taken out: the model sees free cells there")
    if shortest_path_steps(inputs) is None:
        notes.append("no path leads from S to G: no answer can be right")
    return Puzzle("maze", inputs, notes=tuple(notes))


def _numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, without empty ones at the beginning and the end."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line]
    for number in range(filled[0], filled[-1] + 1):
        yield number + 1, lines[number]


def _square(lines: list[tuple[int, str]], source: str) -> list[str]:
    if len(lines) == 1:
        (_, line), size = lines[0], isqrt(len(lines[0][1]))
        if size < 2 or size * size != len(line):
            raise UserError(
                f"{source}: a maze is a square; {len(line)} characters in one line are none (30×30 are 900)"
            )
        return [line[start : start + size] for start in range(0, len(line), size)]
    size = max(len(lines), 2)
    widths = Counter(len(line) for _, line in lines)
    if size not in widths or max(widths) > size:  # most lines decide what is wrong with the others
        size = widths.most_common(1)[0][0]
    for number, line in lines:
        if len(line) != size:
            remedy = "; write free cells at the end of a line as `.`" if len(line) < size else ""
            raise UserError(f"{source}: line {number} has {len(line)} characters, the maze is {size} wide{remedy}")
    if len(lines) != size:
        raise UserError(
            f"{source}: a maze is a square, this one has {len(lines)} lines of {size} characters (lines "
            f"{lines[0][0]} to {lines[-1][0]})"
        )
    return [line for _, line in lines]
