"""ARC grids as canvases of tokens, and the augmentations of their tasks: naming, drawing and undoing them.

A grid of up to 30×30 colours lies on a square canvas of tokens, PAD 0, EOS 1, colour + 2, flattened row by row: of
30×30 unless the dataset is one of small grids. EOS fills the row below the grid and the column to its right, where they
are inside the canvas; the corner between them is PAD. There are no rules to check an answer by: it is right if it is
the one that the task states.

An augmentation is one of the 8 symmetries of the square (`tid`) and a permutation of the colours 1–9 (`colour_map`,
old -> new; 0, the background, stays), applied to every grid of a task. A puzzle is called

    <task>                            the task as it is
    <task>_t<tid>_<10 digits>         an augmentation: digit i is the new colour of colour i
    <task>|||t<tid>|||<10 digits>     the same in datasets of TRM's and URM's builders
"""

import json
import re
from collections.abc import Sequence
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from errors import UserError
from puzzles.canvas import corner_shapes, grids_alone
from puzzles.kind import PAD, Encoded, Kind, Look, Puzzle, Transform
from puzzles.symmetry import dihedral_transform

MAX_GRID_SIZE = 30
NUM_COLOURS = 10
EOS, FIRST_COLOUR = 1, 2
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS

NUM_SYMMETRIES = 8
SWAPS_AXES = np.isin(np.arange(NUM_SYMMETRIES), (1, 3, 6, 7))  # symmetries that make rows of columns
TRIES_PER_AUGMENTATION = 5

NO_GRID = np.zeros((0, 0), np.uint8)

_IDENTITY = np.arange(NUM_COLOURS, dtype=np.uint8)
_SUFFIX = re.compile(r"(?P<task>.+)(?P<mark>_|\|\|\|)t(?P<tid>[0-7])(?P=mark)(?P<digits>[0-9]{10})", re.DOTALL)


class Arc(Kind):
    name = "arc"
    has_rules = False
    separate_answer = True
    marks_mean = "* changed since the step before, at first since the input"
    title = "ARC grid"
    symbols = ("?", "|", *"0123456789")
    look = Look(fills=(None, "none", *(f"arc_{colour}" for colour in range(NUM_COLOURS))), glyphs=("",) * VOCAB_SIZE)

    def __post_init__(self):
        if self.rows != self.columns or not 1 <= self.rows <= MAX_GRID_SIZE:  # rotations need a square
            raise ValueError(f"an ARC canvas is a square of at most {MAX_GRID_SIZE}×{MAX_GRID_SIZE} cells")

    @classmethod
    def of_cells(cls, cells: int) -> "Arc":
        side = isqrt(cells)
        if side * side != cells:
            raise ValueError("an ARC canvas is a square")
        return cls(side, side)

    @classmethod
    def infer(cls, vocab_size: int, seq_len: int, inputs: np.ndarray) -> "Arc | None":
        """That of 30×30: datasets with a smaller canvas have always stated their kind."""
        whole = cls(MAX_GRID_SIZE, MAX_GRID_SIZE)
        return whole if (vocab_size, seq_len) == (whole.vocab_size, whole.seq_len) else None

    @classmethod
    def recognises(cls, text: str) -> bool:
        return text.lstrip().startswith("[")

    @classmethod
    def parse(cls, text: str, source: str) -> Puzzle:
        """An input grid in JSON, such as [[0, 1], [2, 0]]. It has no task, by whose name the model would know it."""
        return cls(MAX_GRID_SIZE, MAX_GRID_SIZE).read(text, source)

    def read(self, text: str, source: str) -> Puzzle:
        """As `parse`, on this canvas."""
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error if isinstance(error, ValueError) else "nested too deeply"
            raise UserError(f"{source} is not an ARC grid in JSON ({reason}); write it as [[0, 1], [2, 0]]") from None
        pair = Pair(*2 * [parse_grid(rows, source)])
        self.check_fit(pair, source)
        inputs, _ = encode([pair], Augmentations(np.array([0]), _IDENTITY[None]), size=self.rows)
        note = "the model knows a task by its name, and this grid has none: do not expect much; name it with task=…"
        return Puzzle(self, inputs[0], notes=(note,))

    def check_fit(self, pair: "Pair", where: str) -> None:
        """Raise a `UserError` that begins with `where` if a grid of the pair is larger than the canvas."""
        for grid in pair:
            if max(grid.shape) > self.rows:
                raise UserError(
                    f"{where} is {grid.shape[0]}×{grid.shape[1]}, and the dataset's canvas {self.rows}×{self.columns}; "
                    f"use a model of a dataset that was built with a larger --max-grid-size"
                )

    def encode(self, questions: np.ndarray, answers: np.ndarray) -> Encoded:
        raise UserError("ARC tasks are not read from CSV files; build them with dataset/build_arc_dataset.py")

    def plain(self, tokens: np.ndarray) -> list[list[int]]:
        """The colours of the grid on a canvas, as lists."""
        return self.colours(tokens).tolist()

    def typed(self, rows: list) -> str:
        return json.dumps(rows)

    def cells(self, tokens: np.ndarray) -> np.ndarray:
        """Its colours."""
        return self.colours(tokens)

    def colours(self, tokens: np.ndarray) -> np.ndarray:
        """The colours of the grid on a canvas (cells,): (rows, columns)."""
        return self.grid(tokens) - FIRST_COLOUR

    def on_canvas(self, colours: np.ndarray) -> np.ndarray:
        """A grid of colours (rows, columns) in the top left corner of a canvas (cells,), without end tokens."""
        canvas = np.full((self.rows, self.columns), PAD, np.uint8)
        canvas[: colours.shape[0], : colours.shape[1]] = colours + np.uint8(FIRST_COLOUR)
        return canvas.ravel()

    def extent(self, tokens: np.ndarray) -> tuple[int, int]:
        """Rows and columns of the grid on a canvas; 0×0 if there is none."""
        ((rows, columns),) = crop_shapes(tokens[None]).tolist()
        return rows, columns

    def counted(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """PAD outside of the answer's grid and its end tokens."""
        answers = np.asarray(answers)
        boards = squares(answers.reshape(-1, self.seq_len))
        return grids_alone(boards, is_colour(boards), EOS).reshape(answers.shape)

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Whether there is a grid on the canvas: no more can be told without the task."""
        answers = np.asarray(answers)
        return (crop_shapes(answers.reshape(-1, self.seq_len))[:, 0] > 0).reshape(answers.shape[:-1])

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        return [] if self.valid(inputs, answer) else ["there is no grid"]

    def praise(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        return "a grid of {}×{}".format(*self.extent(answer))

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        if count == 1:
            return super().symmetries(count, seed)
        raise UserError("this is an ARC dataset, which already holds its copies; vote with python -m evaluators.arc")


class Pair(NamedTuple):
    """One example of a task."""

    input: np.ndarray  # (rows, columns) uint8 colours
    output: np.ndarray  # (rows, columns) uint8 colours; NO_GRID if it is not known

    @property
    def answered(self) -> bool:
        """Whether the output is known. Else it is encoded as padding alone, which is what ignored labels are."""
        return self.output.size > 0

    def key(self) -> bytes:
        """Equal for equal pairs, and only for those."""
        return b"".join(bytes(grid.shape) + grid.tobytes() for grid in self)

    def fits(self, size: int) -> bool:
        """Whether the grids that are known have at most `size` rows and columns."""
        return max(*self.input.shape, *self.output.shape) <= size

    def key_of_input(self) -> bytes:
        """Equal for pairs with equal inputs."""
        return self._replace(output=NO_GRID).key()


def parse_grid(rows: Any, where: str) -> np.ndarray:
    """A grid from its JSON content, (rows, columns) uint8. Raises a `UserError` that begins with `where`."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UserError(f"{where} is not a list of rows; correct or remove this task")
    widths = {len(row) for row in rows}
    if widths <= {0}:
        raise UserError(f"{where} is an empty grid; correct or remove this task")
    if len(widths) > 1:
        raise UserError(f"{where} is ragged, with rows of {min(widths)} to {max(widths)} cells; make them equally long")
    if max(len(rows), *widths) > MAX_GRID_SIZE:
        raise UserError(
            f"{where} is {len(rows)}×{widths.pop()}; grids go up to {MAX_GRID_SIZE}×{MAX_GRID_SIZE}: remove this task"
        )
    for r, row in enumerate(rows):
        for c, colour in enumerate(row):
            if type(colour) is not int or not 0 <= colour < NUM_COLOURS:
                raise UserError(f"{where} holds {colour!r:.40} in row {r}, column {c}; colours are the integers 0 to 9")
    return np.array(rows, dtype=np.uint8)


def augmentation_name(task: str, tid: int, colour_map: Sequence[int] | np.ndarray) -> str:
    """The puzzle's name; the identity gives the bare task."""
    if tid == 0 and np.array_equal(colour_map, _IDENTITY):
        return task
    return f"{task}_t{tid}_{''.join(map(str, colour_map))}"


def parse_augmentation(name: str) -> tuple[str, int, np.ndarray]:
    """Task, tid and colour map of a puzzle's name; a name without such a suffix is the task itself."""
    match = _SUFFIX.fullmatch(name)
    if match and len(set(match["digits"])) == NUM_COLOURS:
        return match["task"], int(match["tid"]), np.array([int(digit) for digit in match["digits"]], dtype=np.uint8)
    return name, 0, _IDENTITY.copy()


def spellings(name: str) -> tuple[str, ...]:
    """A puzzle's name and, for an augmentation, what the other builders call it."""
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return (name,)
    return tuple(mark.join((match["task"], f"t{match['tid']}", match["digits"])) for mark in ("_", "|||"))


class Augmentations(NamedTuple):
    """The puzzles of one group; the first is the task as it is."""

    tids: np.ndarray  # (puzzles,)
    colour_maps: np.ndarray  # (puzzles, 10) uint8


def draw_augmentations(pairs: Sequence[Pair], count: int, rng: np.random.Generator) -> Augmentations:
    """The task and up to `count` random augmentations, all different in content, out of 5 × `count` draws.

    Fewer are returned if the task has fewer, because it is symmetric or lacks colours.
    """
    # Only the raw stream of doubles is used: unlike that of `rng.permuted`, it has been the same in every numpy.
    # One row per draw, so that a smaller `count` gives the first of a larger one's augmentations.
    draws = rng.random((TRIES_PER_AUGMENTATION * count, NUM_COLOURS))
    tids = np.append(0, (draws[:, 0] * NUM_SYMMETRIES).astype(np.int64))
    permutations = 1 + np.argsort(draws[:, 1:], axis=1, kind="stable")
    colour_maps = np.tile(_IDENTITY, (len(tids), 1))
    colour_maps[1:, 1:] = permutations
    _, first = np.unique(_content_hashes(pairs, tids, colour_maps), return_index=True)
    chosen = np.sort(first)[: count + 1]
    return Augmentations(tids[chosen], colour_maps[chosen])


# Fixed random numbers with keys of their own: raw 64-bit words, the same in every numpy.
_CELL_WORDS = np.random.Philox(key=0xA2C).random_raw(2 * MAX_GRID_SIZE**2).reshape(2, MAX_GRID_SIZE, MAX_GRID_SIZE)
_COLOUR_WORDS = np.random.Philox(key=0xC010).random_raw(NUM_COLOURS)


def _content_hashes(pairs: Sequence[Pair], tids: np.ndarray, colour_maps: np.ndarray) -> np.ndarray:
    """(draws,) uint64: a hash of what each augmentation makes of the task, whatever the order of its pairs.

    A pair's hash is the sum, over its cells, of word[cell] * word[colour] modulo 2^64. The cells of one colour can be
    summed before the colours are mapped, so that no augmented grid is built. Equal contents have equal hashes, so no
    two equal puzzles are kept. Different contents collide with probability about 2^-64, which costs one draw.
    """
    sums = np.array([[_colour_sums(pair, tid) for pair in pairs] for tid in range(NUM_SYMMETRIES)])  # (8, pairs, 10)
    hashes = np.zeros(len(tids), dtype=np.uint64)
    words = _COLOUR_WORDS[colour_maps]  # (draws, 10)
    for pair in range(len(pairs)):
        hashes += _mix((sums[tids, pair] * words).sum(axis=1, dtype=np.uint64))
    return hashes


def _colour_sums(pair: Pair, tid: int) -> np.ndarray:
    """(10,) uint64: the sum of the words of the cells of each colour. (That no colour is 0 covers the shapes too.)"""
    total = np.zeros(NUM_COLOURS, dtype=np.uint64)
    for words, grid in zip(_CELL_WORDS, pair, strict=True):
        cells = dihedral_transform(grid, tid)
        rows, columns = cells.shape
        one_hot = cells.ravel() == np.arange(NUM_COLOURS)[:, None]  # (10, cells)
        total += one_hot.astype(np.uint64) @ words[:rows, :columns].ravel()
    return total


def _mix(word: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): pairs are summed after it, so it must not be linear."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def draw_offsets(
    pairs: Sequence[Pair], tids: np.ndarray, rng: np.random.Generator, size: int = MAX_GRID_SIZE
) -> np.ndarray:
    """(puzzles, pairs, 2): row and column of each pair's top left cell, uniform where both its grids fit on the canvas.

    One pair of every puzzle, drawn at random, stays at (0, 0).
    """
    draws = rng.random((len(tids), 2 * len(pairs) + 1))
    room = size - np.array([np.maximum(pair.input.shape, pair.output.shape) for pair in pairs])  # (pairs, 2)
    room = np.where(SWAPS_AXES[tids, None, None], room[:, ::-1], room)  # (puzzles, pairs, 2)
    offsets = (draws[:, 1:].reshape(room.shape) * (room + 1)).astype(np.int64)
    offsets[np.arange(len(tids)), (draws[:, 0] * len(pairs)).astype(np.int64)] = 0
    return offsets


def encode(
    pairs: Sequence[Pair],
    augmentations: Augmentations,
    offsets: np.ndarray | None = None,  # (puzzles, pairs, 2), default: the top left corner
    size: int = MAX_GRID_SIZE,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, (puzzles × pairs, size²) uint8, of every augmentation of every pair, puzzle after puzzle.

    `size` is that of the canvas, on which all grids must fit.
    """
    tids, colour_maps = augmentations
    if offsets is None:
        offsets = np.zeros((len(tids), len(pairs), 2), dtype=np.int64)
    specials = np.tile(np.array([PAD, EOS], dtype=np.uint8), (len(tids), 1))
    tokens = np.concatenate([specials, colour_maps + np.uint8(FIRST_COLOUR)], axis=1)  # (puzzles, 12): old -> new
    # One extra row and column, so that the EOS of a grid at the edge is written there and cut off.
    canvas = np.zeros((2, len(tids), len(pairs), size + 1, size + 1), dtype=np.uint8)
    for tid in range(NUM_SYMMETRIES):
        puzzles = np.flatnonzero(tids == tid)
        for p, pair in enumerate(pairs):
            row, column = offsets[puzzles, p].T
            for side, grid in enumerate(pair):
                template = np.pad(dihedral_transform(grid, tid) + np.uint8(FIRST_COLOUR), (0, 1), constant_values=EOS)
                template[-1, -1] = PAD
                windows = sliding_window_view(canvas[side, :, p], template.shape, axis=(1, 2), writeable=True)
                windows[puzzles, row, column] = np.take(tokens[puzzles], template, axis=1)
    inputs, labels = canvas[..., :-1, :-1].reshape(2, -1, size * size)
    return inputs, labels


def crop_shapes(tokens: np.ndarray) -> np.ndarray:
    """(n, cells) tokens -> (n, 2): rows and columns of the grid on each canvas (`corner_shapes`)."""
    return corner_shapes(is_colour(squares(tokens)))


def is_colour(tokens: np.ndarray) -> np.ndarray:
    return (tokens >= FIRST_COLOUR) & (tokens < VOCAB_SIZE)


def squares(tokens: np.ndarray) -> np.ndarray:
    """(n, cells) tokens -> (n, rows, columns): canvases are squares."""
    side = isqrt(tokens.shape[-1])
    return tokens.reshape(-1, side, side)
