"""What people write for a grid or a sequence -> rows of cells.

    ["#.#", "..."]              rows of characters
    "#.#\n..."                  the same in one text, with a row in each line
    [[1, 0], [10, null]]        rows of numbers or words; null is a hole, where the board has no cell
    "ABCA" or [3, 1, 2]         a sequence, which is a grid of one row

A character is what people see as one: a letter with its accents, or an emoji of several code points. Control characters
and halves of surrogate pairs are none: nothing can show the ones, and nothing can store the others.
"""

import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

LONGEST_SYMBOL = 64  # characters
_UNFIT = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode

Rows = list[list[str | None]]  # of symbols; None: a hole


@dataclass(frozen=True)
class Writing:
    """How texts are to be read."""

    words: bool = False  # the cells of a row are words with blanks between, not characters
    hole: str | None = None  # the symbol that stands for a hole
    ragged: bool = False  # rows may differ in length; holes fill them up at the end
    skip_blanks: bool = False  # blanks between characters are no cells


def read_cells(value: Any, writing: Writing) -> Rows:
    """The rows of a grid, all of one length. Raises `ValueError` that says what is wrong with the value."""
    rows = _split(value, writing)
    width = max(map(len, rows), default=0)
    for number, row in enumerate(rows, start=1):
        if len(row) < width and not writing.ragged:
            longer = next(n for n, other in enumerate(rows, start=1) if len(other) == width)
            raise ValueError(f"has {len(row)} cells in row {number} and {width} in row {longer}")
        row += [None] * (width - len(row))
    if not any(cell is not None for row in rows for cell in row):
        raise ValueError("has no cells")
    return rows


def _split(value: Any, writing: Writing) -> Rows:
    """The rows, which may still differ in length."""
    if isinstance(value, str):
        lines = value.replace("\r\n", "\n").replace("\r", "\n").strip("\n").split("\n")
        return [_cells_of_line(line, writing) for line in lines]
    if not isinstance(value, list):
        raise ValueError(f"is {_shown(value)}; a grid is a text, a list of rows or a list of numbers")
    if value and all(isinstance(row, list) for row in value):
        return [[_symbol(cell, writing) for cell in row] for row in value]
    if value and all(isinstance(row, str) for row in value):
        if any("\n" in row for row in value):
            raise ValueError("has a line break inside a row")
        return [_cells_of_line(row, writing) for row in value]
    if any(isinstance(item, list) for item in value):
        raise ValueError("mixes rows and single cells")
    return [[_symbol(cell, writing) for cell in value]]


def _cells_of_line(line: str, writing: Writing) -> list[str | None]:
    if writing.words:
        return [_symbol(word, writing) for word in line.split()]
    cells: list[str | None] = [*characters(line)]
    if writing.skip_blanks:
        cells = [cell for cell in cells if not cell.isspace()]
    if not line.isprintable():
        _refuse_unfit("".join(cells))
    return cells if writing.hole is None else [None if cell == writing.hole else cell for cell in cells]


def characters(text: str) -> list[str]:
    """The characters of a text, as people see them."""
    if text.isascii():
        return list(text)
    from wcwidth import iter_graphemes  # most texts have no need of its tables

    return list(iter_graphemes(composed(text)))


def composed(text: str) -> str:
    """A text with every letter and its accents as one code point, where there is one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def text_width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(wcswidth(text), 0) or len(text)


def _symbol(cell: Any, writing: Writing) -> str | None:
    if cell is None or cell == writing.hole:
        return None
    if isinstance(cell, str):
        if not cell or "\n" in cell or "\r" in cell or len(cell) > LONGEST_SYMBOL:
            raise ValueError(f"has the cell {_shown(cell)}; a symbol has 1 to {LONGEST_SYMBOL} characters of one line")
        if not cell.isprintable():
            _refuse_unfit(cell)
        symbol = composed(cell)
        return None if symbol == writing.hole else symbol
    if type(cell) is int:
        symbol = str(cell)
        return None if symbol == writing.hole else symbol
    raise ValueError(f"has the cell {_shown(cell)}; a cell is a whole number, a text, or null for a hole")


def _refuse_unfit(text: str) -> None:
    for character in text:
        if unicodedata.category(character) in _UNFIT:
            raise ValueError(f"has the character {character!r}, which no symbol may have")


def are_numbers(values: Iterable[Any], hole: str | None) -> bool:
    """Whether grids are written in numbers, not in text, as far as their first cell that is no hole tells."""
    for value in values:
        for row in value if isinstance(value, list) else [value]:
            for cell in row if isinstance(row, list) else [row]:
                if cell is not None and cell != hole:
                    return type(cell) is int
    return True


def split_symbols(text: str, words: bool, known: Container[str] = ()) -> list[str]:
    """The symbols that an option names: characters or, where symbols are words, words with blanks between.

    A blank is a symbol only where it is `known` as one.
    """
    if words:
        return composed(text).split()
    return [cell for cell in characters(text) if not cell.isspace() or cell in known]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
