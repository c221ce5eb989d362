"""Grids of any size in the top left corner of a canvas."""

import numpy as np


def corner_shapes(is_cell: np.ndarray) -> np.ndarray:
    """(n, rows, columns) bool -> (n, 2): rows and columns of the largest rectangle of cells in the top left corner.

    Among equally large ones it is the one with the fewest rows; 0 × 0 if the first cell is none.
    """
    columns = np.logical_and.accumulate(is_cell, axis=2).sum(axis=2)  # cells at the beginning of each row,
    columns = np.minimum.accumulate(columns, axis=1)  # and of every row above it
    last_row = (columns * np.arange(1, is_cell.shape[1] + 1)).argmax(axis=1)
    columns = columns[np.arange(len(is_cell)), last_row]
    return np.stack([np.where(columns > 0, last_row + 1, 0), columns], axis=1)
