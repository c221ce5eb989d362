"""Transforms of Sudokus and mazes, and the way back: python -m pytest tests/test_transforms.py"""

from collections import deque
from math import isqrt

import numpy as np
import pytest

from errors import UserError
from evaluators.transforms import maze_transforms, sudoku_transforms
from puzzles.sudoku_generator import all_4x4_grids
from tests.launch import ROOT

BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
MAZES = np.load(ROOT / "tests/reference/maze/built.npz")


def sudokus(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Five boards with about half of the cells blank, and their solutions, as tokens."""
    rng = np.random.default_rng(3)
    if size == 9:
        labels = np.load(ROOT / "tests/reference/sudoku/built.npz")["test/labels"][:5].astype(np.uint8)
    elif size == 4:
        labels = rng.permutation(all_4x4_grids())[:5] + np.uint8(1)
    else:  # row after row shifted by a box, with five namings of the digits
        rows, columns = np.indices((6, 6)).reshape(2, -1)
        labels = np.array([rng.permutation(6)[(3 * rows + rows // 2 + columns) % 6] + 2 for _ in range(5)], np.uint8)
    return np.where(rng.random(labels.shape) < 0.5, np.uint8(1), labels), labels


def follows_the_rules(board: list[int], size: int) -> bool:
    """Cell against cell: no two equal digits in a row, a column or a box."""
    rows, columns = BOX[size]
    for a in range(size * size):
        for b in range(a):
            (r, c), (s, d) = divmod(a, size), divmod(b, size)
            if board[a] == board[b] and (r == s or c == d or (r // rows, c // columns) == (s // rows, d // columns)):
                return False
    return sorted(set(board)) == list(range(2, size + 2))


def steps_to_goal(board: np.ndarray, walkable: set[int]) -> int | None:
    """Breadth-first search from S to G through cells with these tokens."""
    size = isqrt(len(board))
    start, goal = (int(np.flatnonzero(board == token)[0]) for token in (3, 4))
    distance, queue = {start: 0}, deque([start])
    while queue:
        cell = queue.popleft()
        r, c = divmod(cell, size)
        for s, d in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            near = s * size + d
            if 0 <= s < size and 0 <= d < size and near not in distance and int(board[near]) in walkable:
                distance[near] = distance[cell] + 1
                queue.append(near)
    return distance.get(goal)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_copies_are_sudokus_with_the_solution_of_the_copy(size):
    inputs, labels = sudokus(size)
    transforms = sudoku_transforms(size, 40, seed=0)
    for transform in transforms:
        copies, solutions = transform.apply(inputs), transform.apply(labels)
        for copy, solution, original in zip(copies.tolist(), solutions.tolist(), inputs.tolist(), strict=True):
            assert follows_the_rules(solution, size)
            assert all(clue in (1, cell) for clue, cell in zip(copy, solution, strict=True))
            assert copy.count(1) == original.count(1)
    # Every kind of change is among them: digits, rows, columns, and (where boxes are square) the transpose.
    rows = np.array([transform.cells.reshape(size, size)[:, 0] // size for transform in transforms])
    columns = np.array([transform.cells.reshape(size, size)[0] % size for transform in transforms])
    transposed = (rows[:, 1:] == rows[:, :1]).all(axis=1)
    assert transposed.any() == (size != 6)
    assert len(np.unique(rows[~transposed], axis=0)) > 5
    assert len(np.unique(columns[~transposed], axis=0)) > 5
    assert len({transform.tokens.tobytes() for transform in transforms}) > 15


def test_a_copy_has_the_solutions_of_the_puzzle_and_no_other():
    """By trying all 288 grids of 4×4, for puzzles with one solution and with many."""
    grids = all_4x4_grids() + np.uint8(1)
    inputs, _ = sudokus(4)
    inputs[0, 4:] = 1  # a row of clues at most
    for transform in sudoku_transforms(4, 20, seed=2):
        for puzzle in inputs:
            of_puzzle = grids[((puzzle == 1) | (puzzle == grids)).all(1)]
            copy = transform.apply(puzzle)
            of_copy = grids[((copy == 1) | (copy == grids)).all(1)]
            assert {row.tobytes() for row in transform.apply(of_puzzle)} == {row.tobytes() for row in of_copy}


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_transforms_are_bijections_and_undone_exactly(size):
    boards = np.random.default_rng(0).integers(0, size + 2, (7, 3, size * size), dtype=np.uint8)  # any wrong answer
    for transform in sudoku_transforms(size, 30, seed=1):
        assert sorted(transform.cells) == list(range(size * size))
        assert sorted(transform.tokens) == list(range(size + 2))
        assert transform.tokens[:2].tolist() == [0, 1]  # PAD and blank stay
        np.testing.assert_array_equal(transform.undo(transform.apply(boards)), boards)
        np.testing.assert_array_equal(transform.apply(transform.undo(boards)), boards)


def test_sudoku_transforms_are_seeded_and_distinct():
    def content(transforms):
        return [(t.cells.tolist(), t.tokens.tolist()) for t in transforms]

    many = content(sudoku_transforms(9, 100, seed=5))
    assert many[0] == (list(range(81)), list(range(11)))
    assert content(sudoku_transforms(9, 10, seed=5)) == many[:10]
    assert content(sudoku_transforms(9, 10, seed=6))[1:] != many[1:10]
    assert all(a != b for i, a in enumerate(many) for b in many[:i])
    # The same on every machine: the second one, written down.
    assert many[1][0][:9] == [80, 79, 78, 72, 73, 74, 76, 77, 75]
    assert many[1][1] == [0, 1, 6, 7, 3, 10, 2, 4, 5, 9, 8]


def test_all_copies_of_a_4x4_sudoku_and_no_more():
    """4! relabellings, 8 orders of rows, 8 of columns, times 2 for the transpose: each of them once."""
    everything = sudoku_transforms(4, 3072, seed=0)
    assert len({t.cells.tobytes() + t.tokens.tobytes() for t in everything}) == 24 * 8 * 8 * 2
    with pytest.raises(UserError, match="has 3072 different ones"):
        sudoku_transforms(4, 3073, seed=0)


def test_maze_copies_keep_the_shortest_path():
    inputs, labels = MAZES["test/inputs"], MAZES["test/labels"]
    lengths = [steps_to_goal(maze, {2, 3, 4}) for maze in inputs]
    for transform in maze_transforms(30, 16):
        for copy, solution, length in zip(transform.apply(inputs), transform.apply(labels), lengths, strict=True):
            assert steps_to_goal(copy, {2, 3, 4}) == length
            assert steps_to_goal(solution, {3, 4, 5}) == length
            assert (solution == 5).sum() == length - 1
            np.testing.assert_array_equal(np.where(solution == 5, 2, solution), copy)


def test_maze_transforms_are_all_different_and_undone_exactly():
    maze = MAZES["test/inputs"][0].astype(np.uint8)
    boards = np.random.default_rng(0).integers(0, 6, (4, 2, 900), dtype=np.uint8)
    transforms = maze_transforms(30, 16)
    np.testing.assert_array_equal(transforms[0].apply(maze), maze)
    assert len({transform.apply(maze).tobytes() for transform in transforms}) == 16
    for i, transform in enumerate(transforms):
        np.testing.assert_array_equal(transform.undo(transform.apply(boards)), boards)
        ends = np.flatnonzero(np.isin(transform.undo(transform.apply(maze)), (3, 4)))
        assert transform.apply(maze)[np.isin(transform.cells, ends)].sum() == 7
        start = transform.cells[np.flatnonzero(transform.apply(maze) == 3)[0]]
        assert maze[start] == (3 if i < 8 else 4)
    with pytest.raises(UserError, match="16 different ones"):
        maze_transforms(30, 17)
