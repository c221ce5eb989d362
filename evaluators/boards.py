"""Boards as text: Sudokus, mazes and ARC grids, with what has changed marked; several of them side by side.

Marks need no colour: `*` behind a digit or an ARC colour; in a maze `+` is a cell that has become path, `-` one
that has become free, `!` any other change.
"""

import re
from collections.abc import Sequence
from math import isqrt

import numpy as np

from evaluators.arc_figures import PALETTE
from puzzles.arc import FIRST_COLOUR, crop_shapes
from puzzles.maze import CHARACTERS, FREE, PATH
from puzzles.sudoku import BOXES

_ANSI = re.compile("\x1b\\[[0-9;]*m")


def sudoku_lines(tokens: np.ndarray, changed: np.ndarray | None = None) -> list[str]:
    """Tokens (size²,) of a Sudoku (1 blank, digits from 2) -> lines; `changed` cells are followed by a `*`."""
    size = round(len(tokens) ** 0.5)
    rows, cols = BOXES[size]
    marks = np.zeros(len(tokens), bool) if changed is None else changed
    lines = []
    for r in range(size):
        cells = [
            (str(tokens[i] - 1) if tokens[i] > 1 else ".") + ("*" if marks[i] else " ")
            for i in range(r * size, (r + 1) * size)
        ]
        lines.append("│ ".join("".join(cells[c : c + cols]) for c in range(0, size, cols)))
        if (r + 1) % rows == 0 and r + 1 < size:
            lines.append("┼─".join("─" * (2 * cols) for _ in range(size // cols)))
    return lines


def maze_lines(tokens: np.ndarray, changed: np.ndarray | None = None) -> list[str]:
    """Tokens (size²,) of a maze -> lines, one character a cell (`?`: no token of a maze)."""
    size = isqrt(len(tokens))
    characters = np.array(list("?" + CHARACTERS))[tokens]
    if changed is not None:
        characters[changed] = np.select([tokens == PATH, tokens == FREE], ["+", "-"], "!")[changed]
    return ["".join(row) for row in characters.reshape(size, size)]


def arc_lines(tokens: np.ndarray, changed: np.ndarray | None = None, colour: bool = False) -> list[str]:
    """Tokens (900,) of an ARC canvas -> the lines of its grid, two characters a cell; with ANSI colours on demand."""
    ((rows, columns),) = crop_shapes(tokens[None])
    if not rows:
        return ["(no grid)"]
    size = isqrt(len(tokens))
    grid = (tokens.reshape(size, size)[:rows, :columns] - FIRST_COLOUR).tolist()
    marks = np.zeros((size, size), bool) if changed is None else changed.reshape(size, size)
    paint = _painted if colour else str.__str__
    return [
        "".join(paint(f"{cell}{'*' if mark else ' '}") for cell, mark in zip(row, marks[r], strict=False))
        for r, row in enumerate(grid)
    ]


def _painted(cell: str) -> str:
    """On the ARC colour that the cell begins with, the nearest in xterm's cube of 6×6×6."""
    rgb = bytes.fromhex(PALETTE[int(cell[0])][1:])
    # Its levels are 0, 95, 135, …, 255.
    red, green, blue = (0 if value < 48 else 1 if value < 115 else (value - 35) // 40 for value in rgb)
    ink = 16 if 3 * rgb[0] + 6 * rgb[1] + rgb[2] > 1100 else 231  # black on bright colours, white on dark ones
    return f"\x1b[38;5;{ink};48;5;{16 + 36 * red + 6 * green + blue}m{cell}\x1b[0m"


def side_by_side(columns: Sequence[tuple[str, list[str]]], gap: int = 3) -> str:
    """(heading, lines) of each column -> one block of text; columns may differ in height."""
    height = max(len(lines) for _, lines in columns)
    blocks = []
    for heading, lines in columns:
        block = [heading, *lines] + [""] * (height - len(lines))
        width = max(map(_width, block))
        blocks.append([line + " " * (width - _width(line)) for line in block])
    return "\n".join((" " * gap).join(parts).rstrip() for parts in zip(*blocks, strict=True))


def in_rows(columns: Sequence[tuple[str, list[str]]], width: int, gap: int = 3) -> str:
    """As `side_by_side`, in as many rows as lines of `width` characters need."""
    rows, used = [], width
    for heading, lines in columns:
        wide = max(map(_width, [heading, *lines]))
        if used + gap + wide > width:
            rows.append([])
            used = -gap
        rows[-1].append((heading, lines))
        used += gap + wide
    return "\n\n".join(side_by_side(row, gap) for row in rows)


def _width(line: str) -> int:
    return len(_ANSI.sub("", line))
