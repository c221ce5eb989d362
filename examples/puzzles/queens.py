"""N queens on an N×N board, some of which stand already, so that none attacks another: docs/own-puzzle.md.

Tokens are PAD 0, a free square 1, a queen 2. Many puzzles have several answers; any that obeys the rules is right.
"""

from math import isqrt

import numpy as np

from errors import UserError
from puzzles.kind import Kind, Look, Transform
from puzzles.symmetry import dihedral_transform

QUEEN = 2


class Queens(Kind):
    name = "queens"
    symbols = ("?", ".", "Q")
    look = Look(fills=(None, None, None), glyphs=("", "", "♛"))

    @classmethod
    def of_cells(cls, cells: int) -> "Queens":
        size = isqrt(cells)
        if size * size != cells or size < 4:
            raise ValueError("a board of queens has 16, 25, 36, …")
        return cls(size, size)

    @property
    def title(self) -> str:
        return f"board of {self.rows} queens"

    def attacks(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Boards (…, cells) -> for each sort of line whether one has more than a queen: (…) bool."""
        queens = np.asarray(answers).reshape(*answers.shape[:-1], self.rows, self.rows) == QUEEN
        diagonals = range(1 - self.rows, self.rows)
        along = [queens.trace(offset, axis1=-2, axis2=-1) for offset in diagonals]
        against = [queens[..., ::-1].trace(offset, axis1=-2, axis2=-1) for offset in diagonals]
        return {
            "a row": (queens.sum(-1) > 1).any(-1),
            "a column": (queens.sum(-2) > 1).any(-1),
            "a diagonal": (np.stack(along + against, axis=-1) > 1).any(-1),
        }

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        kept = ((inputs != QUEEN) | (answers == QUEEN)).all(-1)
        enough = (answers == QUEEN).sum(-1) == self.rows
        return kept & enough & ~np.logical_or.reduce(list(self.attacks(answers).values()))

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        gone = np.flatnonzero((inputs == QUEEN) & (answer != QUEEN))
        found = [f"the queen at {self.place(cell)} has gone" for cell in gone]
        count = int((answer == QUEEN).sum())
        if count != self.rows:
            found.append(f"there are {count} queens, not {self.rows}")
        return found + [f"{line} has two queens" for line, crowded in self.attacks(answer).items() if crowded]

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        if count > 8:
            raise UserError(f"{count} copies: a {self.title} has 8 different ones; choose at most that")
        cells, tokens = np.arange(self.seq_len).reshape(self.rows, -1), np.arange(3, dtype=np.uint8)
        found = [Transform(dihedral_transform(cells, tid).ravel(), tokens) for tid in range(8)]
        return found[:count]
