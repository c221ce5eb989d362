"""Latin squares: a kind of puzzle that the repository does not have. Tests copy this file to `<folder>/puzzles/`.

Tokens are PAD 0, blank 1 and the letters A, B, … from 2. Every row and column holds every letter once.
"""

from math import isqrt

import numpy as np

from puzzles.kind import Kind, Look, Transform

LETTERS = "ABCDE"
SIZES = (4, 5)
BLANK = 1


class Latin(Kind):
    name = "latin"
    default_copies = 6

    @classmethod
    def of_cells(cls, cells: int) -> "Latin":
        size = isqrt(cells)
        if size not in SIZES or size * size != cells:
            raise ValueError("a Latin square has 16 or 25 cells")
        return cls(size, size)

    @property
    def title(self) -> str:
        return f"Latin square of {self.rows}×{self.rows}"

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("?", ".", *LETTERS[: self.rows])

    @property
    def look(self) -> Look:
        return Look(fills=(None,) * self.vocab_size, glyphs=("", "", *LETTERS[: self.rows]))

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        squares = answers.reshape(*answers.shape[:-1], self.rows, self.rows)
        letters = np.arange(2, 2 + self.rows)
        rows, columns = (
            (np.sort(board, -1) == letters).all((-2, -1)) for board in (squares, squares.swapaxes(-2, -1))
        )
        return rows & columns & ((inputs == BLANK) | (inputs == answers)).all(-1)

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        square, found = answer.reshape(self.rows, self.rows), []
        for cell in np.flatnonzero((inputs != BLANK) & (inputs != answer)):
            found.append(f"the clue at {self.place(cell)} has changed")
        for unit, lines in (("row", square), ("column", square.T)):
            for number, line in enumerate(lines, start=1):
                if len(set(line.tolist()) - {0, BLANK}) < self.rows:
                    found.append(f"{unit} {number} lacks a letter")
        return found

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        """Rows, columns and letters in any order: there are more than anybody asks for."""
        rng, side = np.random.default_rng(seed), np.arange(self.rows)
        found = [Transform(np.arange(self.seq_len), np.arange(self.vocab_size, dtype=np.uint8))]
        while len(found) < count:
            rows, columns, letters = (rng.permutation(side) for _ in range(3))
            cells = (rows[:, None] * self.rows + columns).ravel()
            found.append(Transform(cells, np.concatenate([[0, 1], 2 + letters]).astype(np.uint8)))
        return found
