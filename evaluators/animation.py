"""The steps of a solution as an animated GIF: the puzzle, the answer after each step, and at last the verdict.

Sudoku: clues bold, answers blue, what a step has changed on yellow. Maze: walls dark, path blue. ARC: input on the
left, answer on the right. In mazes and ARC grids what a step has changed is framed in orange.
"""

import textwrap
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluators.arc_figures import CELL_BORDER, PALETTE, RIGHT, WRONG
from evaluators.puzzle_text import Puzzle
from evaluators.rules import BLANK
from evaluators.solution import Answer, Verdict, arc_grid
from puzzles.maze import FREE, GOAL, PATH, START, WALL
from puzzles.sudoku import BOXES
from files import write_atomically

BOARD, MARGIN = 480, 20  # pixels: a board's side, about, and the space around it
TEXT, LINE_HEIGHT = 15, 22  # of the lines below it: one for the step, two for the verdict
STEP_MS, LAST_MS = 900, 3500
INK, ANSWER, THIN = "#1c2733", "#1565c0", "#b8c2cc"
CHANGED, CHANGED_FILL = "#ff7f0e", "#fff2a8"
MAZE_COLOURS = {WALL: "#2b3440", FREE: "#ffffff", START: "#2e9e4f", GOAL: "#d33c2f", PATH: "#8fc0f0"}
NO_TOKEN = "#cccccc"


def draw_frames(puzzle: Puzzle, found: Sequence[Answer], verdict: Verdict) -> list[Image.Image]:
    """The puzzle, then a frame a step; the last one has the verdict too."""
    draw = {"sudoku": _sudoku, "maze": _maze, "arc": partial(_arc, side=_largest_grid(puzzle, found))}[puzzle.kind]
    frames = [_captioned(draw(puzzle, None), puzzle.name)]
    for number, answer in enumerate(found, start=1):
        caption = f"step {number} of {len(found)}: {answer.confidence:.0%} sure"
        frames.append(_captioned(draw(puzzle, answer), caption, verdict if number == len(found) else None))
    return frames


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    durations = [STEP_MS] * (len(frames) - 1) + [LAST_MS]
    options = dict(save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    write_atomically(path, lambda file: frames[0].save(file, "GIF", **options))


def _sudoku(puzzle: Puzzle, answer: Answer | None) -> Image.Image:
    size = puzzle.size
    cell = BOARD // size
    image = Image.new("RGB", (cell * size + 3, cell * size + 3), "white")
    pen = ImageDraw.Draw(image)
    for i, clue in enumerate(puzzle.inputs):
        top, left = (cell * (i // size) + 1, cell * (i % size) + 1)
        token = clue if answer is None else answer.tokens[i]
        if answer is not None and answer.changed[i]:
            pen.rectangle((left, top, left + cell, top + cell), fill=CHANGED_FILL)
        if token > BLANK:
            given = clue != BLANK
            colour = ANSWER if not given else INK if token == clue else WRONG
            middle = (left + cell / 2, top + cell / 2)
            pen.text(middle, str(token - 1), fill=colour, font=_font(round(cell * 0.55), given), anchor="mm")
    box_rows, box_columns = BOXES[size]
    end = cell * size + 1
    for line in range(size + 1):
        at = cell * line + 1
        for box, ends in ((box_rows, (1, at, end, at)), (box_columns, (at, 1, at, end))):
            pen.line(ends, fill=INK if line % box == 0 else THIN, width=3 if line % box == 0 else 1)
    return image


def _maze(puzzle: Puzzle, answer: Answer | None) -> Image.Image:
    tokens = puzzle.inputs if answer is None else answer.tokens
    image = _tiles([MAZE_COLOURS.get(token, NO_TOKEN) for token in tokens.tolist()], puzzle.size, answer)
    pen, cell = ImageDraw.Draw(image), _cell(puzzle.size)
    for token, letter in ((START, "S"), (GOAL, "G")):
        for i in np.flatnonzero(tokens == token):
            middle = (cell * (i % puzzle.size + 0.5) + 1, cell * (i // puzzle.size + 0.5) + 1)
            pen.text(middle, letter, fill="white", font=_font(round(cell * 0.75), bold=True), anchor="mm")
    return image


def _arc(puzzle: Puzzle, answer: Answer | None, side: int) -> Image.Image:
    panel = _cell(side) * side + 2
    image = Image.new("RGB", (2 * panel + MARGIN, panel), "white")
    image.paste(_arc_grid(puzzle.inputs, side, None), (0, 0))
    if answer is not None:
        image.paste(_arc_grid(answer.tokens, side, answer), (panel + MARGIN, 0))
    return image


def _arc_grid(tokens: np.ndarray, side: int, answer: Answer | None) -> Image.Image:
    """A grid in the top left corner of a panel of `side` × `side` cells."""
    grid = arc_grid(tokens)
    colours = np.full((side, side), None, object)
    colours[: grid.shape[0], : grid.shape[1]] = np.array(PALETTE, object)[grid]
    if answer is not None:
        answer = Answer(tokens, answer.changed.reshape(30, 30)[:side, :side].ravel(), answer.confidence)
    return _tiles(colours.ravel().tolist(), side, answer, border=CELL_BORDER)


def _largest_grid(puzzle: Puzzle, found: Sequence[Answer]) -> int:
    if puzzle.kind != "arc":
        return 0
    return max(max(arc_grid(tokens).shape) for tokens in (puzzle.inputs, *(answer.tokens for answer in found)))


def _tiles(colours: list[str | None], size: int, answer: Answer | None, border: str = THIN) -> Image.Image:
    """Coloured squares, None for nothing, with the changed ones in a frame."""
    cell = _cell(size)
    image = Image.new("RGB", (cell * size + 2, cell * size + 2), "white")
    pen = ImageDraw.Draw(image)
    corners = [(cell * (i % size), cell * (i // size)) for i in range(size * size)]
    for (left, top), colour in zip(corners, colours, strict=True):
        if colour is not None:
            pen.rectangle((left, top, left + cell, top + cell), fill=colour, outline=border)
    for i in np.flatnonzero(answer.changed) if answer is not None else ():
        left, top = corners[i]
        pen.rectangle((left, top, left + cell, top + cell), outline=CHANGED, width=2)
    return image


def _cell(size: int) -> int:
    return max(4, min(BOARD // size, BOARD // 6))


def _captioned(board: Image.Image, caption: str, verdict: Verdict | None = None) -> Image.Image:
    width, height = board.width + 2 * MARGIN, board.height + 2 * MARGIN + 3 * LINE_HEIGHT
    image = Image.new("RGB", (width, height), "white")
    image.paste(board, (MARGIN, MARGIN))
    pen, top = ImageDraw.Draw(image), board.height + round(1.6 * MARGIN)
    pen.text((MARGIN, top), caption, fill=INK, font=_font(TEXT, bold=True))
    if verdict is not None:
        colour = {True: RIGHT, False: WRONG, None: INK}[verdict.valid]
        characters = int(board.width / pen.textlength("x", font=_font(TEXT, bold=False)) * 1.05)
        lines = textwrap.wrap(verdict.text, characters, max_lines=2, placeholder=" …")
        pen.text((MARGIN, top + LINE_HEIGHT), "\n".join(lines), fill=colour, font=_font(TEXT, bold=False))
    return image


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings, so that a picture is the same on every machine."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", max(6, size))
