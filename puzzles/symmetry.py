"""The 8 symmetries of the square."""

import numpy as np

# Transform t is undone by DIHEDRAL_INVERSE[t]: the quarter turns 1 and 3 undo each other, the rest are involutions.
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)


def dihedral_transform(grid: np.ndarray, tid: int) -> np.ndarray:
    """The `tid`-th of the 8 symmetries of the square, on the last two axes of `grid`.

    0 identity, 1–3 counter-clockwise quarter turns, 4 left-right flip, 5 up-down flip, 6 transpose, 7 anti-transpose.
    """
    if tid in (0, 1, 2, 3):
        return np.rot90(grid, tid, axes=(-2, -1))
    if tid == 4:
        return grid[..., :, ::-1]
    if tid == 5:
        return grid[..., ::-1, :]
    if tid == 6:
        return np.swapaxes(grid, -2, -1)
    if tid == 7:
        return np.swapaxes(grid[..., ::-1, ::-1], -2, -1)
    raise ValueError(f"dihedral id {tid} is not in 0..7")


def inverse_dihedral_transform(grid: np.ndarray, tid: int) -> np.ndarray:
    """Undo `dihedral_transform(grid, tid)`."""
    return dihedral_transform(grid, DIHEDRAL_INVERSE[tid])
