"""Rules without labels: python -m pytest tests/test_rules.py"""

import csv
from collections import deque

import numpy as np
import pytest

from evaluators.rules import (
    is_valid_maze_path,
    is_valid_sudoku,
    maze_violations,
    shortest_path_steps,
    sudoku_violations,
)
from tests.reference_models import REFERENCE

MAZE = {character: token for token, character in enumerate("# SGo", start=1)}


def rows(kind: str) -> list[dict]:
    return [row for split in ("train", "test") for row in csv.DictReader(open(REFERENCE / kind / f"{split}.csv"))]


def sudoku_tokens(text: str) -> np.ndarray:
    return np.array([1 if c == "." else int(c) + 1 for c in text], np.uint8)


def maze_tokens(text: str) -> np.ndarray:
    return np.array([MAZE[c] for c in text], np.uint8)


def pattern_grid(size: int, box_rows: int, box_columns: int) -> np.ndarray:
    """A right grid: every row is the first one, shifted by a box, and by one more every band."""
    return np.array([[2 + (c + box_columns * r + r // box_rows) % size for c in range(size)] for r in range(size)])


def oracle_sudoku(inputs: np.ndarray, answer: np.ndarray, box_rows: int, box_columns: int) -> bool:
    size = box_rows * box_columns
    digits = set(range(2, size + 2))
    grid = answer.reshape(size, size).tolist()
    lines = [set(row) for row in grid] + [{row[c] for row in grid} for c in range(size)]
    boxes = [
        {grid[top + r][left + c] for r in range(box_rows) for c in range(box_columns)}
        for top in range(0, size, box_rows)
        for left in range(0, size, box_columns)
    ]
    kept = all(i in (1, a) for i, a in zip(inputs.tolist(), answer.tolist(), strict=True))
    return all(unit == digits for unit in lines + boxes) and kept


BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


@pytest.mark.parametrize("size", BOXES)
def test_sudokus_and_their_mutations_against_sets(size):
    rng = np.random.default_rng(size)
    right = pattern_grid(size, *BOXES[size]).ravel()
    inputs = np.where(rng.random((300, size * size)) < 0.4, right, 1)
    answers = np.tile(right, (300, 1))
    for i, answer in enumerate(answers[50:]):
        kind = i % 5
        a, b = rng.choice(size * size, 2, replace=False)
        if kind == 0:
            answer[[a, b]] = answer[[b, a]]
        elif kind == 1:
            answer[a] = rng.integers(0, size + 3)  # PAD, blank and what is no token too
        elif kind == 2:  # rows of one band change places: still a right grid, but hardly with these clues
            answer.reshape(size, size)[:2] = answer.reshape(size, size)[1::-1].copy()
        elif kind == 3:  # rows of two bands: rows and columns are right, boxes are not
            answer.reshape(size, size)[[0, size - 1]] = answer.reshape(size, size)[[size - 1, 0]]
            inputs[50 + i] = 1
        else:  # as two back, without clues
            answer.reshape(size, size)[:2] = answer.reshape(size, size)[1::-1].copy()
            inputs[50 + i] = 1
    expected = [oracle_sudoku(i, a, *BOXES[size]) for i, a in zip(inputs, answers, strict=True)]
    assert 50 < sum(expected) < 200
    assert is_valid_sudoku(inputs, answers).tolist() == expected
    assert [bool(is_valid_sudoku(i, a)) for i, a in zip(inputs, answers, strict=True)] == expected
    assert [not sudoku_violations(i, a) for i, a in zip(inputs, answers, strict=True)] == expected


def test_real_sudokus():
    for row in rows("sudoku"):
        question, answer = sudoku_tokens(row["question"]), sudoku_tokens(row["answer"])
        assert is_valid_sudoku(question, answer)
        assert not is_valid_sudoku(question, question)


def test_sudoku_violations_name_the_place():
    question = sudoku_tokens("1...............")
    answer = sudoku_tokens("1234341221434321")
    assert sudoku_violations(question, answer) == []
    answer[1] = 1
    assert sudoku_violations(question, answer) == ["row 1, column 2 is empty"]
    answer[:2] = 3, 2  # 2 and 1 for 1 and 2
    found = sudoku_violations(question, answer)
    assert found[0] == "the clue 1 at row 1, column 1 has become 2"
    assert "column 1 has two 2s" in found
    assert "column 2 has two 1s" in found
    assert len(found) == 3


def oracle_path(inputs: np.ndarray, answer: np.ndarray) -> bool:
    """Walk from S: at every cell there must be exactly one way on, until G, and then no cell may be left."""
    size = round(len(inputs) ** 0.5)
    for before, after in zip(inputs.tolist(), answer.tolist(), strict=True):
        if before != after and (before, after) != (MAZE[" "], MAZE["o"]):
            return False
    left = {divmod(i, size) for i, token in enumerate(answer.tolist()) if token >= MAZE["S"]}
    at, goal = (divmod(answer.tolist().index(MAZE[letter]), size) for letter in "SG")
    while at != goal:
        left.remove(at)
        r, c = at
        ways = left & {(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)}
        if len(ways) != 1:
            return False
        (at,) = ways
    return left == {goal}


def oracle_shortest(text: str) -> int | None:
    size = round(len(text) ** 0.5)
    start = divmod(text.index("S"), size)
    distance, queue = {start: 0}, deque([start])
    while queue:
        r, c = queue.popleft()
        for cell in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            inside = 0 <= cell[0] < size and 0 <= cell[1] < size
            if inside and text[cell[0] * size + cell[1]] != "#" and cell not in distance:
                distance[cell] = distance[r, c] + 1
                queue.append(cell)
    return distance.get(divmod(text.index("G"), size))


def test_real_mazes():
    found = rows("maze")
    questions = np.stack([maze_tokens(row["question"]) for row in found])
    answers = np.stack([maze_tokens(row["answer"]) for row in found])
    assert is_valid_maze_path(questions, answers).all()
    assert not is_valid_maze_path(questions, questions).any()
    assert not is_valid_maze_path(questions, np.roll(answers, 1, axis=0)).any()
    for row, question, answer in zip(found, questions, answers, strict=True):
        assert shortest_path_steps(question) == int(row["rating"]) == oracle_shortest(row["question"])
        assert maze_violations(question, answer) == []


def test_mutated_mazes_against_a_walk():
    rng = np.random.default_rng(0)
    row = rows("maze")[0]
    question, right = maze_tokens(row["question"]), maze_tokens(row["answer"])
    answers = np.tile(right, (120, 1))
    for i, answer in enumerate(answers[1:]):
        path, free = np.flatnonzero(answer == MAZE["o"]), np.flatnonzero(answer == MAZE[" "])
        if i % 3 == 0:
            answer[rng.choice(path)] = MAZE[" "]
        elif i % 3 == 1:
            answer[rng.choice(free)] = MAZE["o"]
        else:
            answer[rng.integers(len(answer))] = rng.integers(0, 6)
    expected = [oracle_path(question, answer) for answer in answers]
    assert expected[0]
    assert 1 < sum(expected) < 40
    assert is_valid_maze_path(np.tile(question, (120, 1)), answers).tolist() == expected
    assert [not maze_violations(question, answer) for answer in answers] == expected


def maze(*lines: str) -> np.ndarray:
    return maze_tokens("".join(lines))


QUESTION = maze("S    ", " ### ", "     ", "  #  ", "    G")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (maze("S    ", "o### ", "o    ", "o #  ", "ooooG"), None),  # a shortest one
        (maze("Soooo", " ###o", "  ooo", " o#  ", "    G"), "breaks off at row 3, column 3"),
        (maze("Soooo", " ###o", "    o", "  # o", "    G"), None),  # the other way round
        (maze("S    ", "o### ", "ooooo", "  # o", "    G"), None),
        (maze("S    ", "o### ", "oo   ", "o #  ", "ooooG"), "branches or touches itself at row 3, column 1"),
        (maze("Soo  ", "o### ", "o    ", "o #  ", "ooooG"), "branches or touches itself at S, row 1, column 1"),
        (maze("S    ", "o### ", "o  oo", "o #oo", "ooooG"), "branches or touches itself at row 4, column 4"),
        (maze("S    ", "o#o# ", "o    ", "o #  ", "ooooG"), "a wall at row 2, column 3 has become a path cell"),
        (maze("o    ", "o### ", "o    ", "o #  ", "ooooG"), "S at row 1, column 1 has become a path cell"),
        (maze("S   S", "o### ", "o    ", "o #  ", "ooooG"), "a free cell at row 1, column 5 has become S"),
        (QUESTION, "breaks off at S"),
    ],
)
def test_drawn_paths(answer, problem):
    found = maze_violations(QUESTION, answer)
    assert bool(is_valid_maze_path(QUESTION, answer)) == (problem is None)
    assert any(problem in text for text in found) if problem else found == []


def test_a_loop_apart_is_no_part_of_the_path():
    """Each of its cells has two neighbours, as on a path."""
    question = maze("SG   ", "#### ", "     ", "     ", "     ")
    answer = maze("SG   ", "#### ", "     ", " oo  ", " oo  ")
    assert is_valid_maze_path(question, question)
    assert not is_valid_maze_path(question, answer)
    assert maze_violations(question, answer) == ["4 cells form a loop apart from the path"]


def test_a_maze_without_a_way():
    assert shortest_path_steps(maze("S# ", "## ", "  G")) is None
    assert shortest_path_steps(maze("SG", "  ")) == 1
