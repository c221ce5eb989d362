"""Mazes: text, rules and symmetries: python -m pytest tests/test_maze.py"""

import csv
from collections import deque
from math import isqrt

import numpy as np
import pytest

from errors import UserError
from puzzles.kind import read_puzzle
from puzzles.maze import Maze
from tests.launch import ROOT
from tests.reference_models import REFERENCE

TOKENS = {character: token for token, character in enumerate("# SGo", start=1)}
MAZES = np.load(ROOT / "tests/reference/maze/built.npz")


def rows() -> list[dict]:
    return [row for split in ("train", "test") for row in csv.DictReader(open(REFERENCE / f"maze/{split}.csv"))]


def maze_tokens(text: str) -> np.ndarray:
    return np.array([TOKENS[c] for c in text], np.uint8)


def test_a_real_maze_in_lines_in_one_line_and_with_dots():
    row = next(csv.DictReader(open(REFERENCE / "maze/test.csv")))
    question, expected = row["question"], np.load(REFERENCE / "maze/built.npz")["test/inputs"][0]
    lines = "\n".join(question[i : i + 30] for i in range(0, 900, 30))
    for text in (question, lines, lines + "\n\n", lines.replace(" ", "."), "\n" + lines.replace("\n", "\r\n")):
        puzzle = read_puzzle(text, "here")
        assert (puzzle.kind, puzzle.title, puzzle.notes) == (Maze(30, 30), "30×30 maze", ())
        assert np.array_equal(puzzle.inputs, expected)


def test_what_a_person_should_know_about_a_maze():
    drawn = read_puzzle("Soo\n##o\n##G", "here")
    assert drawn.inputs.tolist() == [3, 2, 2, 1, 1, 2, 1, 1, 4]
    assert ["taken out" in note for note in drawn.notes] == [True]
    assert ["no path leads" in note for note in read_puzzle("S#.\n##.\n..G", "here").notes] == [True]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("S.#\n..\n#.G", "here: line 2 has 2 characters, the maze is 3 wide; write free cells at the end .* as `.`"),
        ("S.#\n...#\n#.G", "here: line 2 has 4 characters, the maze is 3 wide$"),
        ("S.#\n\n#.G", "here: line 2 has 0 characters"),
        ("S.#\n..#", "a maze is a square, this one has 2 lines of 3 characters"),
        ("S.#\n..#\n#.G\n...", "a maze is a square, this one has 4 lines of 3 characters"),
        ("S.#.G", "a maze is a square; 5 characters in one line do not make one"),
        ("S.#\n.x#\n#.G", "here: line 2, column 2 is 'x'; a maze is written in"),
        ("S\t#\n..#\n#.G", "here: line 1, column 2 is a tab"),
        ("S.#\n..#\n#..", "one goal G, this one has none"),
        ("S.#\n.S#\n#.G", "one start S, this one has 2: line 1, column 1 and line 2, column 2"),
    ],
)
def test_malformed_input_is_named_with_its_place(text, problem):
    with pytest.raises(UserError, match=problem):
        read_puzzle(text, "here")


def oracle_path(inputs: np.ndarray, answer: np.ndarray) -> bool:
    """Walk from S: at every cell there must be exactly one way on, until G, and then no cell may be left."""
    size = round(len(inputs) ** 0.5)
    for before, after in zip(inputs.tolist(), answer.tolist(), strict=True):
        if before != after and (before, after) != (TOKENS[" "], TOKENS["o"]):
            return False
    left = {divmod(i, size) for i, token in enumerate(answer.tolist()) if token >= TOKENS["S"]}
    at, goal = (divmod(answer.tolist().index(TOKENS[letter]), size) for letter in "SG")
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
    found = rows()
    questions = np.stack([maze_tokens(row["question"]) for row in found])
    answers = np.stack([maze_tokens(row["answer"]) for row in found])
    assert Maze(30, 30).valid(questions, answers).all()
    assert not Maze(30, 30).valid(questions, questions).any()
    assert not Maze(30, 30).valid(questions, np.roll(answers, 1, axis=0)).any()
    for row, question, answer in zip(found, questions, answers, strict=True):
        assert Maze(30, 30).shortest_path_steps(question) == int(row["rating"]) == oracle_shortest(row["question"])
        assert Maze(30, 30).violations(question, answer) == []


def test_mutated_mazes_against_a_walk():
    rng = np.random.default_rng(0)
    row = rows()[0]
    question, right = maze_tokens(row["question"]), maze_tokens(row["answer"])
    answers = np.tile(right, (120, 1))
    for i, answer in enumerate(answers[1:]):
        path, free = np.flatnonzero(answer == TOKENS["o"]), np.flatnonzero(answer == TOKENS[" "])
        if i % 3 == 0:
            answer[rng.choice(path)] = TOKENS[" "]
        elif i % 3 == 1:
            answer[rng.choice(free)] = TOKENS["o"]
        else:
            answer[rng.integers(len(answer))] = rng.integers(0, 6)
    expected = [oracle_path(question, answer) for answer in answers]
    assert expected[0]
    assert 1 < sum(expected) < 40
    assert Maze(30, 30).valid(np.tile(question, (120, 1)), answers).tolist() == expected
    assert [not Maze(30, 30).violations(question, answer) for answer in answers] == expected


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
    found = Maze(5, 5).violations(QUESTION, answer)
    assert bool(Maze(5, 5).valid(QUESTION, answer)) == (problem is None)
    assert any(problem in text for text in found) if problem else found == []


def test_a_loop_apart_is_no_part_of_the_path():
    """Each of its cells has two neighbours, as on a path."""
    question = maze("SG   ", "#### ", "     ", "     ", "     ")
    answer = maze("SG   ", "#### ", "     ", " oo  ", " oo  ")
    assert Maze(5, 5).valid(question, question)
    assert not Maze(5, 5).valid(question, answer)
    assert Maze(5, 5).violations(question, answer) == ["4 cells form a loop apart from the path"]


def test_a_maze_without_a_way():
    assert Maze(3, 3).shortest_path_steps(maze("S# ", "## ", "  G")) is None
    assert Maze(2, 2).shortest_path_steps(maze("SG", "  ")) == 1


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


def test_maze_copies_keep_the_shortest_path():
    inputs, labels = MAZES["test/inputs"], MAZES["test/labels"]
    lengths = [steps_to_goal(maze, {2, 3, 4}) for maze in inputs]
    for transform in Maze(30, 30).symmetries(16, seed=0):
        for copy, solution, length in zip(transform.apply(inputs), transform.apply(labels), lengths, strict=True):
            assert steps_to_goal(copy, {2, 3, 4}) == length
            assert steps_to_goal(solution, {3, 4, 5}) == length
            assert (solution == 5).sum() == length - 1
            np.testing.assert_array_equal(np.where(solution == 5, 2, solution), copy)


def test_maze_transforms_are_all_different_and_undone_exactly():
    maze = MAZES["test/inputs"][0].astype(np.uint8)
    boards = np.random.default_rng(0).integers(0, 6, (4, 2, 900), dtype=np.uint8)
    transforms = Maze(30, 30).symmetries(16, seed=0)
    np.testing.assert_array_equal(transforms[0].apply(maze), maze)
    assert len({transform.apply(maze).tobytes() for transform in transforms}) == 16
    for i, transform in enumerate(transforms):
        np.testing.assert_array_equal(transform.undo(transform.apply(boards)), boards)
        ends = np.flatnonzero(np.isin(transform.undo(transform.apply(maze)), (3, 4)))
        assert transform.apply(maze)[np.isin(transform.cells, ends)].sum() == 7
        start = transform.cells[np.flatnonzero(transform.apply(maze) == 3)[0]]
        assert maze[start] == (3 if i < 8 else 4)
    with pytest.raises(UserError, match="16 different ones"):
        Maze(30, 30).symmetries(17, seed=0)
