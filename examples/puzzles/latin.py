"""Latin squares, a kind of puzzle that the project does not know: every letter once in every row and column.

Tokens are PAD 0, blank 1, the letters from 2. Tests put this file's folder on Python's path (tests/latin_squares.py).
"""

from math import factorial, isqrt

import numpy as np

from errors import UserError
from puzzles.kind import Kind, Look, Transform

BLANK, FIRST = 1, 2


class Latin(Kind):
    name = "latin"

    @classmethod
    def of_cells(cls, cells: int) -> "Latin":
        size = isqrt(cells)
        if size * size != cells or not 2 <= size <= 9:
            raise ValueError("a Latin square has 4, 9, 16, …, 81")
        return cls(size, size)

    @property
    def title(self) -> str:
        return f"{self.rows}×{self.rows} Latin square"

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("?", ".", *"ABCDEFGHI"[: self.rows])

    @property
    def look(self) -> Look:
        return Look(fills=(None,) * self.vocab_size, glyphs=("", "", *self.symbols[FIRST:]))

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        grids = np.asarray(answers).reshape(*answers.shape[:-1], self.rows, self.rows)
        letters = np.arange(FIRST, FIRST + self.rows)
        rows = (np.sort(grids, axis=-1) == letters).all((-2, -1))
        columns = (np.sort(grids, axis=-2) == letters[:, None]).all((-2, -1))
        return rows & columns & ((inputs == BLANK) | (inputs == answers)).all(-1)

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        changed = np.flatnonzero((inputs > BLANK) & (inputs != answer))
        found = [f"the clue at {self.place(cell)} has changed" for cell in changed]
        grid = answer.reshape(self.rows, self.rows)
        for line, cells in (("row", grid), ("column", grid.T)):
            found += [f"{line} {n + 1} lacks a letter" for n, row in enumerate(cells) if len(set(row)) < self.rows]
        return found

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        """Any order of the rows, of the columns, and of the letters."""
        most = factorial(self.rows) ** 3
        if count > most:
            raise UserError(f"{count} copies: a {self.title} has {most} different ones; choose at most that")
        rng = np.random.Generator(np.random.PCG64(seed))
        rows = columns = letters = np.arange(self.rows)
        found: dict[bytes, Transform] = {}
        while True:
            cells = (rows[:, None] * self.rows + columns).ravel()
            tokens = np.concatenate([[0, BLANK], letters + FIRST]).astype(np.uint8)
            found.setdefault(cells.tobytes() + tokens.tobytes(), Transform(cells, tokens))
            if len(found) == count:
                return list(found.values())
            rows, columns, letters = (rng.random(self.rows).argsort() for _ in range(3))
