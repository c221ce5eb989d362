"""Draws boards of any kind of puzzle, from its symbols and its look: as text, and as pictures with one palette.

Text marks changed cells without colours: a `*` after the cell or, in kinds with one character per cell, the kind's mark
for what the cell has become. In pictures a changed cell is tinted or, if the kind fills its cells, framed; a cell that
differs from the solution has a tint and a glyph in the colour `wrong` or, on a filled cell, a square of that colour in
the middle.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from puzzles.cells import text_width
from puzzles.kind import PAD, Kind, Puzzle

# Every colour of every board, here and in puzzle_visualizer.html. Colours 0–9 of ARC are those of the testing interface
# of fchollet/ARC-AGI; the others differ in brightness too where they must be told apart.
PALETTE = {
    "ink": "#1c2733",
    "paper": "#ffffff",
    "line": "#9aa5b0",
    "box_line": "#1c2733",
    "clue": "#1c2733",
    "answer": "#1565c0",
    "changed": "#f5a300",
    "wrong": "#c3202f",
    "right": "#1a7f37",
    "wall": "#2b3440",
    "free": "#ffffff",
    "path": "#6fb1ec",
    "start": "#1b8a4b",
    "goal": "#7a3fc4",
    "none": "#cccccc",
    "arc_0": "#000000",
    "arc_1": "#0074d9",
    "arc_2": "#ff4136",
    "arc_3": "#2ecc40",
    "arc_4": "#ffdc00",
    "arc_5": "#aaaaaa",
    "arc_6": "#f012be",
    "arc_7": "#ff851b",
    "arc_8": "#7fdbff",
    "arc_9": "#870c25",
}

# The colours that differ in the dark scheme, which only the visualizer has.
DARK = {
    "ink": "#e9e8e5",
    "paper": "#1b1d20",
    "line": "#4a5058",
    "box_line": "#d5d8dc",
    "clue": "#e9e8e5",
    "answer": "#82b4ff",
    "wrong": "#ff8a8a",
    "right": "#6fd08c",
    "wall": "#656d78",
    "free": "#1b1d20",
    "path": "#3f86c9",
    "start": "#22904f",
    "goal": "#8750d2",
    "none": "#4a5058",
}

BOARD, MARGIN = 480, 20  # pixels: about a board's longer side, and the space around it in an animation
MIN_CELL, MAX_CELL = 4, 120  # pixels
TEXT, LINE_HEIGHT = 15, 22  # of the lines below the board: one for the step, two for the verdict
STEP_MS, LAST_MS = 900, 3500

_ANSI = re.compile("\x1b\\[[0-9;]*m")


class Answer(Protocol):
    """A model's answer after one step."""

    tokens: np.ndarray  # (cells,)
    changed: np.ndarray  # (cells,) bool: since the step before
    confidence: float


class Verdict(Protocol):
    """What is said of the last answer."""

    valid: bool | None  # None: there is nothing to judge it by
    text: str


def colour_of(name: str) -> str:
    """`#rrggbb` for a name in the palette; a colour stays as it is."""
    return PALETTE.get(name, name)


# Text


def board_lines(
    kind: Kind, tokens: np.ndarray, changed: np.ndarray | None = None, *, colour: bool = False
) -> list[str]:
    """The lines of a board (cells,), with `changed` cells (cells,) marked and, on demand, ANSI colours as fills."""
    grid = kind.grid(tokens)
    if not grid.size:
        return ["(no grid)"]
    marked = np.zeros(kind.seq_len, bool) if changed is None else changed
    marked = marked.reshape(kind.rows, kind.columns)[: grid.shape[0], : grid.shape[1]]
    written = np.array(kind.written, object)[grid]
    marks = kind.look.marks
    if marks is not None:
        return ["".join(row) for row in np.where(marked, np.array(marks, object)[grid], written)]
    widest = max(map(text_width, kind.written))
    for place, cell in np.ndenumerate(written):
        written[place] = " " * (widest - text_width(cell)) + cell
    cells = written + np.where(marked, "*", " ").astype(object)
    if colour:
        cells = _painted(kind, grid, cells)
    return _boxed(cells, kind.look.boxes)


def _boxed(cells: np.ndarray, boxes: tuple[int, int] | None) -> list[str]:
    """Rows of cells, with lines between boxes of cells that are two characters wide."""
    rows, columns = cells.shape
    high, wide = boxes or cells.shape
    lines = []
    for r in range(rows):
        lines.append("│ ".join("".join(cells[r, c : c + wide]) for c in range(0, columns, wide)))
        if (r + 1) % high == 0 and r + 1 < rows:
            lines.append("┼─".join("─" * (2 * len(cells[r, c : c + wide])) for c in range(0, columns, wide)))
    return lines


def _painted(kind: Kind, grid: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Each cell on its fill, the nearest in xterm's cube of 6×6×6; cells without a fill as they are."""
    codes = ["" if fill is None else _ansi(colour_of(fill)) for fill in kind.look.fills]
    painted = [f"{codes[t]}{cell}\x1b[0m" if codes[t] else cell for t, cell in zip(grid.flat, cells.flat, strict=True)]
    return np.array(painted, object).reshape(cells.shape)


def _ansi(colour: str) -> str:
    rgb = bytes.fromhex(colour[1:])
    # Its levels are 0, 95, 135, …, 255.
    red, green, blue = (0 if value < 48 else 1 if value < 115 else (value - 35) // 40 for value in rgb)
    return f"\x1b[38;5;{16 if _is_bright(colour) else 231};48;5;{16 + 36 * red + 6 * green + blue}m"


def _is_bright(colour: str) -> bool:
    """Whether black stands out better than white on this colour."""
    red, green, blue = bytes.fromhex(colour[1:])
    return 3 * red + 6 * green + blue > 1100


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
    """As `side_by_side`, broken into rows that are at most `width` characters wide."""
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
    return text_width(_ANSI.sub("", line))


# Pictures


def board_image(
    kind: Kind,
    tokens: np.ndarray,
    puzzle: np.ndarray | None = None,
    *,
    changed: np.ndarray | None = None,
    solution: np.ndarray | None = None,
    shape: tuple[int, int] | None = None,
    pixels: int = BOARD,
) -> Image.Image:
    """A picture of the board (cells,); `numpy.asarray` of it is (height, width, 3) uint8.

    `puzzle` (cells,): its clues are bold, and marked wrong where the board has changed them. Cells in `changed`
    (cells,) bool are marked, and so are those that differ from `solution` (cells,), except where it is PAD.
    `shape`: draw on this many rows and columns, for boards that differ in size. `pixels`: about the longer side.
    """
    rows, columns = kind.extent(tokens)
    high, wide = shape or (max(1, rows), max(1, columns))
    cell = min(max(pixels // max(high, wide), MIN_CELL), MAX_CELL)
    image = Image.new("RGB", (cell * wide + 3, cell * high + 3), PALETTE["paper"])
    pen = ImageDraw.Draw(image)
    clued = puzzle is not None and not kind.separate_answer
    nowhere = np.zeros(kind.seq_len, bool)
    given = np.array(kind.look.glyphs, object)[puzzle] != "" if clued else nowhere
    wrong = given & (tokens != puzzle) if clued else nowhere
    if solution is not None:
        wrong = wrong | (tokens != solution) & (kind.visible(solution) != PAD)
    changed = nowhere if changed is None else changed
    cells = [(r * kind.columns + c, (cell * c + 1, cell * r + 1)) for r in range(rows) for c in range(columns)]
    for i, corner in cells:
        fill, glyph = kind.look.fills[tokens[i]], kind.look.glyphs[tokens[i]]
        _draw_fill(pen, corner, cell, fill, changed[i], wrong[i], bool(glyph))
        if fill is not None:
            _draw_glyph(pen, corner, cell, glyph, "ink" if _is_bright(colour_of(fill)) else "paper", bold=True)
        else:
            colour = "wrong" if wrong[i] else "clue" if given[i] or not clued else "answer"
            _draw_glyph(pen, corner, cell, glyph, colour, bold=bool(given[i]))
    _draw_lines(pen, (rows, columns), cell, kind.look.boxes)
    for i, (left, top) in cells:  # over the lines, which would cut the frames
        if changed[i] and kind.look.fills[tokens[i]] is not None:
            frame = (left, top, left + cell, top + cell)
            pen.rectangle(frame, outline=PALETTE["changed"], width=max(2, cell // 16))
    return image


def _draw_fill(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    cell: int,
    fill: str | None,
    changed: bool,
    wrong: bool,
    has_glyph: bool,
) -> None:
    (left, top), (right, bottom) = corner, (corner[0] + cell, corner[1] + cell)
    if fill is not None:
        pen.rectangle((left, top, right, bottom), fill=colour_of(fill))
    elif wrong or changed:
        pen.rectangle((left, top, right, bottom), fill=_tint(PALETTE["wrong" if wrong else "changed"]))
    if fill is not None and wrong:
        inset = cell // 8 if has_glyph else cell // 4
        inner = (left + inset, top + inset, right - inset, bottom - inset)
        if has_glyph:  # which must stay readable
            pen.rectangle(inner, outline=PALETTE["wrong"], width=max(2, cell // 10))
        else:
            pen.rectangle(inner, fill=PALETTE["wrong"])


def _draw_glyph(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, glyph: str, colour: str, bold: bool
) -> None:
    if glyph:
        middle, font = (corner[0] + cell / 2, corner[1] + cell / 2), _font(round(cell * 0.6), bold)
        if len(glyph) > 1:  # a word may be too long
            font = _font(int(cell * 0.6 * min(1, 0.9 * cell / pen.textlength(glyph, font=font))), bold)
        pen.text(middle, glyph, fill=PALETTE[colour], font=font, anchor="mm")


def _tint(colour: str, share: float = 0.3) -> str:
    """This share of a colour, mixed with the paper's."""
    mixed = (
        round(share * value + (1 - share) * paper)
        for value, paper in zip(bytes.fromhex(colour[1:]), bytes.fromhex(PALETTE["paper"][1:]), strict=True)
    )
    return f"#{bytes(mixed).hex()}"


def _draw_lines(pen: ImageDraw.ImageDraw, shape: tuple[int, int], cell: int, boxes: tuple[int, int] | None) -> None:
    """Draw lines around and between the cells, and last the heavy ones around the boxes."""
    rows, columns = shape
    if not rows or not columns:
        return
    high, wide = boxes or (0, 0)
    bottom, right = cell * rows + 1, cell * columns + 1
    lines = [((1, cell * r + 1, right, cell * r + 1), high and r % high == 0) for r in range(rows + 1)]
    lines += [((cell * c + 1, 1, cell * c + 1, bottom), wide and c % wide == 0) for c in range(columns + 1)]
    for ends, heavy in sorted(lines, key=lambda line: bool(line[1])):
        pen.line(ends, fill=PALETTE["box_line" if heavy else "line"], width=3 if heavy else 1)


def puzzle_image(puzzle: Puzzle, answer: Answer | None = None, shape: tuple[int, int] | None = None) -> Image.Image:
    """The puzzle filled in, or the puzzle with the answer beside it; what the last step changed is marked."""
    kind = puzzle.kind
    if not kind.separate_answer:
        if answer is None:
            return board_image(kind, puzzle.inputs, puzzle.inputs, shape=shape)
        return board_image(kind, answer.tokens, puzzle.inputs, changed=answer.changed, shape=shape)
    boards = [board_image(kind, puzzle.inputs, shape=shape)]
    if answer is not None:
        boards.append(board_image(kind, answer.tokens, changed=answer.changed, shape=shape))
    width, height = boards[0].size
    image = Image.new("RGB", (2 * width + MARGIN, height), PALETTE["paper"])
    for place, board in enumerate(boards):
        image.paste(board, (place * (width + MARGIN), 0))
    return image


def draw_frames(puzzle: Puzzle, found: Sequence[Answer], verdict: Verdict) -> list[Image.Image]:
    """Frames of an animation: the puzzle, then the answer after each step; the last one has the verdict too."""
    extents = [puzzle.kind.extent(tokens) for tokens in (puzzle.inputs, *(answer.tokens for answer in found))]
    rows, columns = np.max([*extents, (1, 1)], axis=0).tolist()
    shape = (rows, columns) if not puzzle.kind.separate_answer else (max(rows, columns),) * 2
    frames = [_captioned(puzzle_image(puzzle, shape=shape), puzzle.title)]
    for number, answer in enumerate(found, start=1):
        caption = f"step {number} of {len(found)}: {answer.confidence:.0%} sure"
        image = puzzle_image(puzzle, answer, shape)
        frames.append(_captioned(image, caption, verdict if number == len(found) else None))
    return frames


def save_gif(frames: Sequence[Image.Image], file: str | Path | BinaryIO) -> None:
    durations = [STEP_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(file, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)


def _captioned(board: Image.Image, caption: str, verdict: Verdict | None = None) -> Image.Image:
    width, height = board.width + 2 * MARGIN, board.height + 2 * MARGIN + 3 * LINE_HEIGHT
    image = Image.new("RGB", (width, height), PALETTE["paper"])
    image.paste(board, (MARGIN, MARGIN))
    pen, top = ImageDraw.Draw(image), board.height + round(1.6 * MARGIN)
    pen.text((MARGIN, top), caption, fill=PALETTE["ink"], font=_font(TEXT, bold=True))
    if verdict is not None:
        colour = PALETTE[{True: "right", False: "wrong", None: "ink"}[verdict.valid]]
        characters = int(board.width / pen.textlength("x", font=_font(TEXT, bold=False)) * 1.05)
        lines = textwrap.wrap(verdict.text, characters, max_lines=2, placeholder=" …")
        pen.text((MARGIN, top + LINE_HEIGHT), "\n".join(lines), fill=colour, font=_font(TEXT, bold=False))
    return image


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings, so that a picture is the same on every machine."""
    return ImageFont.truetype(_font_file(bold), max(6, size))


def _font_file(bold: bool) -> Path:
    import matplotlib  # takes a good part of a second, which text need not wait for

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


def missing_glyphs(texts: Iterable[str]) -> list[str]:
    """Those of the texts that pictures cannot show: the font lacks a character."""
    beyond = [text for text in texts if not text.isascii()]
    if not beyond:
        return []
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(_font_file(bold=True))).get_charmap()
    return [text for text in beyond if not all(ord(character) in known for character in text)]
