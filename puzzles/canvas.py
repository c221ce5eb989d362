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


def with_ends(boards: np.ndarray, shapes: np.ndarray, end: int) -> np.ndarray:
    """Boards (n, rows, columns) with `end` in the row below grids of these shapes (n, 2) and in the column to their
    right, where these are inside the canvas."""
    boards = boards.copy()
    r, c = np.arange(boards.shape[1])[:, None], np.arange(boards.shape[2])
    rows, columns = shapes[:, 0, None, None], shapes[:, 1, None, None]
    boards[(r == rows) & (c < columns) | (c == columns) & (r < rows)] = end
    return boards


def grids_alone(boards: np.ndarray, is_cell: np.ndarray, end: int) -> np.ndarray:
    """Boards (n, rows, columns), of which `is_cell` says where there are cells, as labels are written: with their grid,
    its end marks and nothing else."""
    shapes = corner_shapes(is_cell)
    r, c = np.arange(boards.shape[1])[:, None], np.arange(boards.shape[2])
    inside = (r < shapes[:, 0, None, None]) & (c < shapes[:, 1, None, None])
    return with_ends(np.where(inside, boards, np.uint8(0)).astype(np.uint8), shapes, end)
