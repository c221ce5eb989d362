"""Copies of a Sudoku or a maze whose solution is the original's, changed in the same way; and the way back.

A transform moves cells and renames tokens. Both are bijections, so any board comes back exactly, an answer with wrong
cells in it too. The symmetries themselves are the builders' (dataset/build_sudoku_dataset.py, build_maze_dataset.py).
"""

from dataclasses import dataclass
from math import factorial

import numpy as np

from errors import UserError
from puzzles.maze import CHARACTERS, GOAL, START, dihedral_copies
from puzzles.sudoku import SudokuSymmetries

FIRST_DIGIT = 2  # Sudoku tokens: 0 PAD, 1 blank, then the digits


@dataclass(frozen=True)
class Transform:
    cells: np.ndarray  # (cells,): where cell i of the copy comes from
    tokens: np.ndarray  # (vocabulary,) uint8: what token t becomes

    def apply(self, boards: np.ndarray) -> np.ndarray:
        """Boards (…, cells) -> their copies (…, cells) uint8."""
        return self.tokens[boards[..., self.cells]]

    def undo(self, copies: np.ndarray) -> np.ndarray:
        """The boards that `apply` made these copies from."""
        return np.argsort(self.tokens).astype(np.uint8)[copies[..., np.argsort(self.cells)]]


def sudoku_transforms(size: int, count: int, seed: int) -> list[Transform]:
    """`count` different symmetries of the Sudokus of one size, the identity first, the others drawn uniformly.

    They relabel the digits (a cyclic shift is one relabelling), permute bands, rows in a band, stacks and columns in a
    stack, and exchange rows and columns (not in 6×6, whose boxes are no squares). The same on every machine; a smaller
    count gives the first ones of a larger.
    """
    symmetries = SudokuSymmetries(size)
    there_are = factorial(size) * len(symmetries.row_orders) * len(symmetries.column_orders)
    there_are *= 2 if symmetries.transposes else 1
    if count > there_are:
        raise UserError(f"copies={count}: a {size}×{size} Sudoku has {there_are} different ones; choose at most that")
    rng = np.random.Generator(np.random.PCG64(seed))  # its doubles have been the same in every numpy
    cells, digits = np.arange(size * size), np.arange(size, dtype=np.uint8)
    found: dict[bytes, Transform] = {}
    while True:
        tokens = np.concatenate([np.arange(FIRST_DIGIT, dtype=np.uint8), digits + np.uint8(FIRST_DIGIT)])
        found.setdefault(cells.tobytes() + tokens.tobytes(), Transform(cells, tokens))
        if len(found) == count:
            return list(found.values())
        (cells,), (digits,) = symmetries.draw(rng.random((1, symmetries.numbers)))


def maze_transforms(size: int, count: int) -> list[Transform]:
    """The first `count` of 16: the 8 rotations and reflections, the identity first; then these with S and G swapped."""
    as_it_is = np.arange(1 + len(CHARACTERS), dtype=np.uint8)
    swapped = as_it_is.copy()
    swapped[[START, GOAL]] = GOAL, START
    sources = dihedral_copies(np.arange(size * size)[None])[0]  # (8, cells): rotating the cells' numbers
    transforms = [Transform(cells, tokens) for tokens in (as_it_is, swapped) for cells in sources]
    if count > len(transforms):
        raise UserError(f"copies={count}: a maze has {len(transforms)} different ones; choose at most that")
    return transforms[:count]
