"""Sudokus of 4×4 (boxes of 2×2), 6×6 (2 rows by 3 columns) and 9×9 (3×3).

Tokens are PAD 0, blank 1, digit d as d + 1, row by row. An answer is right when every row, column and box holds every
digit once and the clues are kept: with several solutions, any of them is.

People write 16, 36 or 81 cells: digits, and `.` or `0` for a blank. Between them there may be spaces, line breaks and
the lines of a drawn grid (`|`, `+`, `-` and box-drawing characters).
"""

from collections import Counter
from functools import lru_cache
from itertools import permutations, product
from math import factorial, isqrt

import numpy as np

from errors import UserError
from puzzles.kind import PAD, Encoded, Kind, Look, Places, Puzzle, Transform, shown

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size -> rows and columns of a box
BLANK, FIRST_DIGIT = 1, 2
MOST_TRIES = 20_000  # of a search for two solutions: about a second
SEPARATORS = frozenset("|+-│┃┼╋─━═║╬┬┴├┤┌┐└┘")

_BITS = np.zeros(256, np.uint16)  # of each token: a bit of its own if it is a digit
_BITS[FIRST_DIGIT : FIRST_DIGIT + 9] = 1 << np.arange(9)


class Sudoku(Kind):
    name = "sudoku"
    default_copies = 32

    def __post_init__(self):
        if self.rows != self.columns or self.rows not in BOXES:
            raise ValueError(f"a Sudoku has {', '.join(f'{size}×{size}' for size in BOXES)} cells")

    @classmethod
    def of_cells(cls, cells: int) -> "Sudoku":
        size = isqrt(cells)
        if size not in BOXES or size * size != cells:
            raise ValueError(f"a Sudoku has {', '.join(str(size * size) for size in BOXES)}")
        return cls(size, size)

    @classmethod
    def infer(cls, vocab_size: int, seq_len: int, inputs: np.ndarray) -> "Sudoku | None":
        fits = any(seq_len == size * size and vocab_size == size + FIRST_DIGIT for size in BOXES)
        return cls.of_cells(seq_len) if fits else None

    @property
    def size(self) -> int:
        return self.rows

    @property
    def title(self) -> str:
        return f"{self.size}×{self.size} Sudoku"

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("?", ".", *(str(digit) for digit in range(1, self.size + 1)))

    @property
    def written(self) -> tuple[str, ...]:
        return (".", *self.symbols[1:])

    @property
    def look(self) -> Look:
        return Look(fills=(None,) * self.vocab_size, glyphs=("", "", *self.symbols[2:]), boxes=BOXES[self.size])

    # Text

    @classmethod
    def recognises(cls, text: str) -> bool:
        return not frozenset(".0123456789").isdisjoint(text)

    @classmethod
    def parse(cls, text: str, source: str) -> Puzzle:
        place = Places(text)
        cells = [(offset, character) for offset, character in enumerate(text) if not _separates(character)]
        for offset, character in cells:
            if character not in ".0123456789":
                raise UserError(
                    f"{source}: {place(offset)} is {shown(character)}; a Sudoku is written in digits, with . or 0 for "
                    f"a blank (and a maze in # S G and blanks)"
                )
        try:
            kind = cls.of_cells(len(cells))
        except ValueError:
            raise UserError(
                f"{source} has {len(cells)} cells{_odd_lines(cells, place)}; a Sudoku has {_lengths()}"
            ) from None
        places = [f"{place(offset)} ({kind.place(i)})" for i, (offset, _) in enumerate(cells)]
        for (_, character), where in zip(cells, places, strict=True):
            if character > str(kind.size):  # `.` comes before the digits
                raise UserError(f"{source}: {where} is {character}; the digits of a {kind.title} are 1 to {kind.size}")
        inputs = np.array([BLANK if character in ".0" else int(character) + 1 for _, character in cells], np.uint8)
        for unit, which, digit, same in kind.repeated_digits(inputs):
            where = " and ".join(places[cell] for cell in same)
            raise UserError(f"{source}: {unit} {which + 1} has the clue {digit} more than once, at {where}; correct it")
        return Puzzle(kind, inputs)

    def encode(self, questions: np.ndarray, answers: np.ndarray) -> Encoded:
        tokens = self.tokens_of_codes()
        tokens[ord("0")] = BLANK
        inputs, labels = tokens[questions], tokens[answers]
        problems = [
            ((inputs == PAD).any(1), f"the question has a character other than `.`, 0 and 1–{self.size}"),
            ((labels < FIRST_DIGIT).any(1), f"the answer has a character other than 1–{self.size}"),
            (((inputs != BLANK) & (inputs != labels)).any(1), "the answer contradicts a clue of the question"),
            (~self._complete(labels), "the answer has a digit twice in a row, column or box"),
        ]
        return Encoded(inputs, labels, problems)

    def cells(self, tokens: np.ndarray) -> np.ndarray:
        """Its digits, 0 for a blank."""
        return np.maximum(self.grid(tokens).astype(np.int64) - BLANK, 0)

    # Rules

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        inputs, answers = np.asarray(inputs), np.asarray(answers)
        return self._complete(answers) & ((inputs == BLANK) | (inputs == answers)).all(-1)

    def _complete(self, answers: np.ndarray) -> np.ndarray:
        """(…, cells) -> (…) bool: every row, column and box holds every digit once."""
        size, (box_rows, box_columns) = self.size, BOXES[self.size]
        bits = _BITS.take(answers).reshape(*answers.shape[:-1], size, size)
        boxes = bits.reshape(*answers.shape[:-1], size // box_rows, box_rows, size // box_columns, box_columns)
        every = (1 << size) - 1  # as many cells as digits: if none is missing, none is there twice
        return (
            (np.bitwise_or.reduce(bits, axis=-1) == every).all(-1)
            & (np.bitwise_or.reduce(bits, axis=-2) == every).all(-1)
            & (np.bitwise_or.reduce(boxes, axis=(-3, -1)) == every).all((-2, -1))
        )

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        inputs, answer = np.asarray(inputs), np.asarray(answer)
        empty = (answer < FIRST_DIGIT) | (answer >= FIRST_DIGIT + self.size)
        found = [f"{self.place(cell)} is empty" for cell in np.flatnonzero(empty)]
        for cell in np.flatnonzero((inputs != BLANK) & (inputs != answer) & ~empty):
            found.append(f"the clue {inputs[cell] - 1} at {self.place(cell)} has become {answer[cell] - 1}")
        for unit, which, digit, cells in self.repeated_digits(answer):
            times = {2: "two", 3: "three", 4: "four"}.get(len(cells), str(len(cells)))
            found.append(f"{unit} {which + 1} has {times} {digit}s")
        return found

    def remarks(self, inputs: np.ndarray) -> list[str]:
        """Whether it is empty, has several solutions or none, as far as a search of `MOST_TRIES` steps finds out."""
        if (inputs == BLANK).all():
            return ["the Sudoku is empty: every full board that obeys the rules is right"]
        solutions = _count_solutions(self.size, inputs.astype(np.uint8).tobytes())
        if solutions == 0:
            return ["the Sudoku has no solution: no board that obeys the rules keeps these clues"]
        return ["the Sudoku has several solutions, of which any is right"] if solutions == 2 else []

    def praise(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        return "every row, column and box is right, and the clues are kept"

    def repeated_digits(self, tokens: np.ndarray) -> list[tuple[str, int, int, np.ndarray]]:
        """(unit, its index, digit, cells) of each digit that occurs more than once in a unit of the board (cells,)."""
        found = []
        for unit, members in _units(self.size).items():
            for which, cells in enumerate(members):
                for digit in range(1, self.size + 1):
                    same = cells[tokens[cells] == digit + 1]
                    if len(same) > 1:
                        found.append((unit, which, digit, same))
        return found

    # Symmetries

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        """`count` different ones, the identity first, the others drawn uniformly; the same on every machine.

        They relabel the digits (a cyclic shift is one relabelling), permute bands, rows in a band, stacks and columns
        in a stack, and exchange rows and columns (not in 6×6, whose boxes are not square).
        """
        group = SudokuSymmetries(self.size)
        if count > group.order:
            raise UserError(f"{count} copies: a {self.title} has {group.order} different ones; choose at most that")
        rng = np.random.Generator(np.random.PCG64(seed))  # its doubles have been the same in every numpy
        cells, digits = np.arange(self.seq_len), np.arange(self.size, dtype=np.uint8)
        found: dict[bytes, Transform] = {}
        while True:
            tokens = np.concatenate([np.arange(FIRST_DIGIT, dtype=np.uint8), digits + np.uint8(FIRST_DIGIT)])
            found.setdefault(cells.tobytes() + tokens.tobytes(), Transform(cells, tokens))
            if len(found) == count:
                return list(found.values())
            (cells,), (digits,) = group.draw(rng.random((1, group.numbers)))


class SudokuSymmetries:
    """The symmetry group of the Sudokus of one size; uniform numbers give uniform draws from it."""

    def __init__(self, size: int):
        box_rows, box_columns = BOXES[size]
        self.size, self.transposes = size, box_rows == box_columns
        self.row_orders = _line_orders(size // box_rows, box_rows)  # (orders, size)
        self.column_orders = _line_orders(size // box_columns, box_columns)
        self.numbers = 3 + size  # uniform numbers that one draw takes

    @property
    def order(self) -> int:
        return factorial(self.size) * len(self.row_orders) * len(self.column_orders) * (2 if self.transposes else 1)

    def draw(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, self.numbers) in [0, 1) -> source cell of every cell (n, cells) intp, digit maps (n, size) from 0."""
        rows = self.row_orders[(numbers[:, 0] * len(self.row_orders)).astype(np.intp)] * self.size
        columns = self.column_orders[(numbers[:, 1] * len(self.column_orders)).astype(np.intp)]
        if self.transposes:
            flip = numbers[:, 2, None] < 0.5
            rows, columns = np.where(flip, columns, rows), np.where(flip, rows, columns)
        cells = (rows[:, :, None] + columns[:, None, :]).reshape(len(numbers), -1)
        return cells, numbers[:, 3:].argsort(axis=1, kind="stable").astype(np.uint8)

    def apply(
        self, inputs: np.ndarray, labels: np.ndarray, source: np.ndarray, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make one copy of each puzzle in `source` (n,), indices into `inputs`: -> inputs, labels (n, cells)."""
        cells, digits = self.draw(numbers)
        # A cell's code is its solution digit from 0, plus `size` where it is given: one look-up yields both tokens.
        codes = (labels - FIRST_DIGIT) + self.size * (inputs != BLANK).astype(np.uint8)  # (puzzles, cells)
        tokens = np.full((len(source), 2 * self.size, 2), BLANK, np.uint8)
        tokens[:, self.size :, 0] = tokens[:, : self.size, 1] = tokens[:, self.size :, 1] = digits + FIRST_DIGIT
        cells += source[:, None] * inputs.shape[1]
        looked_up = codes.ravel().take(cells) + (np.arange(len(source)) * (2 * self.size))[:, None]
        both = tokens.view(np.uint16).ravel().take(looked_up).view(np.uint8).reshape(*cells.shape, 2)
        return both[..., 0], both[..., 1]


@lru_cache
def _line_orders(blocks: int, lines: int) -> np.ndarray:
    """Every order of `blocks` blocks of `lines` lines that keeps the blocks together: (orders, blocks·lines) intp."""
    within = list(permutations(range(lines)))
    return np.array(
        [
            [block * lines + line for block, order in zip(block_order, orders, strict=True) for line in order]
            for block_order in permutations(range(blocks))
            for orders in product(within, repeat=blocks)
        ],
        np.intp,
    )


@lru_cache
def _units(size: int) -> dict[str, np.ndarray]:
    """`row`, `column` and `box` -> (size, size): the cells of each."""
    box_rows, box_columns = BOXES[size]
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // box_rows, box_rows, size // box_columns, box_columns).swapaxes(1, 2)
    return {"row": cells, "column": cells.T, "box": boxes.reshape(size, size)}


@lru_cache
def _count_solutions(size: int, tokens: bytes) -> int | None:
    """0, 1 or, for several, 2; None if that takes too long to find out.

    In plain Python: puzzles/sudoku_generator.py counts much faster, but is compiled for half a minute first.
    """
    box_rows, box_columns = BOXES[size]
    places = [(c // size, size + c % size, 2 * size + c // size // box_rows * box_rows + c % size // box_columns)
              for c in range(size * size)]  # fmt: skip
    free = [(1 << size) - 1] * (3 * size)  # digits that each row, column and box still lacks, as bits
    blanks = [c for c, token in enumerate(tokens) if token == BLANK]
    for c in set(range(size * size)).difference(blanks):
        bit = 1 << tokens[c] - FIRST_DIGIT
        if not all(free[unit] & bit for unit in places[c]):
            return 0  # a clue is there twice
        for unit in places[c]:
            free[unit] ^= bit
    tries = found = 0

    def search() -> None:
        """Fill a blank with the fewest candidates in every way, until two solutions are found or the tries used up."""
        nonlocal tries, found
        if not blanks:
            found += 1
            return
        candidates = [free[row] & free[column] & free[box] for row, column, box in map(places.__getitem__, blanks)]
        place = min(range(len(blanks)), key=lambda i: candidates[i].bit_count())
        left, cell = candidates[place], blanks.pop(place)
        while left and found < 2 and tries < MOST_TRIES:
            tries, bit = tries + 1, left & -left
            left ^= bit
            for unit in places[cell]:
                free[unit] ^= bit
            search()
            for unit in places[cell]:
                free[unit] ^= bit
        blanks.insert(place, cell)

    search()
    return None if tries >= MOST_TRIES and found < 2 else found


def _separates(character: str) -> bool:
    return character.isspace() or character in SEPARATORS


def _lengths() -> str:
    *most, last = (f"{size * size} ({size}×{size})" for size in BOXES)
    return f"{', '.join(most)} or {last}"


def _odd_lines(cells: list[tuple[int, str]], place: Places) -> str:
    """Which of several lines has another number of cells than most."""
    counts = Counter(place.line(offset) for offset, _ in cells)
    usual = Counter(counts.values()).most_common(1)[0][0] if counts else 0
    odd = [line for line, count in counts.items() if count != usual]
    if place.one_line or not odd or len(odd) > len(counts) // 2:
        return ""
    return f" (line {odd[0]} has {counts[odd[0]]}, most have {usual})"
