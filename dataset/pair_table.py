"""Pairs of grids in memory, a byte a cell, and what is found in them: symbols, shapes, groups, equal pairs."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dataset.pairs import SPLITS, Example, place_of
from errors import UserError
from puzzles.grid import Grid
from puzzles.kind import PAD

MAX_SYMBOLS = 250  # with padding, end mark and hole they are tokens of a byte
MAX_SIDE = 1 << 10
HOLE = 0  # among the codes of a table
CHUNK_CELLS = 1 << 22  # of canvases at a time
INPUT, OUTPUT = 0, 1
UNSAID = -1  # no split, no id


@dataclass
class PairTable:
    """All examples, in order. A symbol has a code from 1, in the order in which symbols were found."""

    codes: dict[str, int] = field(default_factory=dict)
    first_seen: list[int] = field(default_factory=list)  # of each symbol: the example
    cells: bytearray = field(default_factory=bytearray)  # codes, HOLE in a hole: input, output, input, …
    shapes: array = field(default_factory=lambda: array("i"))  # rows and columns of each grid
    files: dict[str, int] = field(default_factory=dict)
    places: array = field(default_factory=lambda: array("q"))  # file and line (-1: none) of each example
    splits: array = field(default_factory=lambda: array("b"))  # index into SPLITS
    ids: dict[str, int] = field(default_factory=dict)
    id_of: array = field(default_factory=lambda: array("i"))
    groups: dict[str, int] = field(default_factory=dict)
    group_of: array = field(default_factory=lambda: array("i"))
    all_numbers: bool = True

    def __len__(self) -> int:
        return len(self.splits)

    def add_all(self, examples: Iterable[Example], split: str | None = None) -> None:
        """Add examples; those that do not say their split belong to this one."""
        for example in examples:
            self._add(example, split)

    def _add(self, example: Example, split: str | None) -> None:
        place = place_of(example.file, example.line)
        if split is not None and example.split not in (None, split):
            raise UserError(f"{place}: the split is {example.split}, but this is the file of {split}; leave one out")
        for rows in (example.input, example.output):
            if max(len(rows), len(rows[0])) > MAX_SIDE:
                raise UserError(f"{place}: a grid of {len(rows)}×{len(rows[0])}; sides go up to {MAX_SIDE}")
            self.shapes.extend((len(rows), len(rows[0])))
            for row in rows:
                self.cells += bytes([self.codes.get(cell) or self._code(cell, place) for cell in row])
        self.places.extend((_number(self.files, example.file), -1 if example.line is None else example.line))
        split = split or example.split
        self.splits.append(UNSAID if split is None else SPLITS.index(split))
        self.id_of.append(UNSAID if example.id is None else _number(self.ids, example.id))
        self.group_of.append(UNSAID if example.group is None else _number(self.groups, example.group))
        self.all_numbers &= example.numbers

    def _code(self, cell: str | None, place: str) -> int:
        if cell is None:
            return HOLE
        if len(self.codes) == MAX_SYMBOLS:
            raise UserError(
                f"{place}: {cell!r} is symbol {MAX_SYMBOLS + 1}, and there may be {MAX_SYMBOLS}; write long words or "
                f"numbers as several cells"
            )
        self.first_seen.append(len(self))
        return self.codes.setdefault(cell, len(self.codes) + 1)

    def place(self, example: int) -> str:
        """Where an example is from: its file and line."""
        file, line = self.places[2 * example : 2 * example + 2]
        return place_of(list(self.files)[file], None if line < 0 else line)

    def grid_shapes(self) -> np.ndarray:
        """(examples, 2, 2) int32: rows and columns of every input and output."""
        return np.array(self.shapes, np.int32).reshape(-1, 2, 2)

    def holes(self) -> np.ndarray:
        """(examples,) int8: 0 without holes, 1 if input and output have the same shape and holes, 2 otherwise."""
        cells, shapes = np.frombuffer(self.cells, np.uint8), self.grid_shapes()
        is_hole = cells == HOLE
        if not is_hole.any():
            return np.zeros(len(self), np.int8)
        starts, sizes = self.starts(), shapes.prod(2)
        found = np.zeros(len(self), np.int8)
        sums = np.concatenate([[0], np.cumsum(is_hole)])
        some = (sums[starts + sizes] - sums[starts]).any(1)
        for i in np.flatnonzero(some):
            one, other = (is_hole[start : start + size] for start, size in zip(starts[i], sizes[i], strict=True))
            same = np.array_equal(shapes[i, INPUT], shapes[i, OUTPUT]) and np.array_equal(one, other)
            found[i] = 1 if same else 2
        return found

    def starts(self) -> np.ndarray:
        """(examples, 2): where the cells of every input and output begin."""
        sizes = self.grid_shapes().prod(2, dtype=np.int64).ravel()
        return (np.cumsum(sizes) - sizes).reshape(-1, 2)

    def chunks(self, kind: Grid, examples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield some of the examples, their inputs and their whole outputs, (n, cells) uint8 each."""
        tokens = np.full(256, PAD, np.uint8)
        tokens[HOLE] = kind.tokens[None]
        for symbol, code in self.codes.items():
            tokens[code] = kind.tokens.get(symbol, PAD)
        cells, shapes, starts = np.frombuffer(self.cells, np.uint8), self.grid_shapes(), self.starts()
        step = max(1, CHUNK_CELLS // kind.seq_len)
        for first in range(0, len(examples), step):
            rows = examples[first : first + step]
            inputs, outputs = (
                _canvases(kind, tokens, cells, shapes[rows, side], starts[rows, side]) for side in (INPUT, OUTPUT)
            )
            if kind.ends:
                outputs = kind.with_ends(outputs, shapes[rows, OUTPUT])
            yield rows, inputs, outputs


def labels_of(kind: Grid, outputs: np.ndarray) -> np.ndarray:
    """What is trained on: cells of an output that do not count are PAD."""
    return np.where(np.isin(outputs, kind.ignored), np.uint8(PAD), outputs)


def _number(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))


def _canvases(kind: Grid, tokens: np.ndarray, cells: np.ndarray, shapes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Grids of these shapes (n, 2), which begin at `starts` (n,), in the corner of canvases (n, cells)."""
    boards = np.full((len(shapes), kind.rows, kind.columns), PAD, np.uint8)
    distinct, which = np.unique(shapes, axis=0, return_inverse=True)
    for number, (rows, columns) in enumerate(distinct.tolist()):
        chosen = np.flatnonzero(which.reshape(-1) == number)
        found = tokens[cells[starts[chosen, None] + np.arange(rows * columns)]]
        boards[chosen, :rows, :columns] = found.reshape(-1, rows, columns)
    return boards.reshape(len(shapes), -1)
