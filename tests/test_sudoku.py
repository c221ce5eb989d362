"""Sudokus: text, rules and symmetries: python -m pytest tests/test_sudoku.py"""

import csv
from collections import Counter

import numpy as np
import pytest

from errors import UserError
from puzzles import sudoku
from puzzles.kind import read_puzzle
from puzzles.sudoku import Sudoku
from puzzles.sudoku_generator import all_4x4_grids
from tests.launch import ROOT
from tests.reference_models import REFERENCE

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
SUDOKU = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
DRAWN = """
+-------+-------+-------+
| 5 3 . | . 7 . | . . . |
| 6 . . | 1 9 5 | . . . |
| . 9 8 | . . . | . 6 . |
+-------+-------+-------+
| 8 . . | . 6 . | . . 3 |
| 4 . . | 8 . 3 | . . 1 |
| 7 . . | . 2 . | . . 6 |
+-------+-------+-------+
| . 6 . | . . . | 2 8 . |
| . . . | 4 1 9 | . . 5 |
| . . . | . 8 . | . 7 9 |
+-------+-------+-------+
"""


@pytest.mark.parametrize(
    "text",
    [SUDOKU, SUDOKU.replace(".", "0"), DRAWN, DRAWN.replace("\n", "\r\n"), "\ufeff" + SUDOKU + "\n",
     "\n".join(SUDOKU[i : i + 9] for i in range(0, 81, 9)), DRAWN.replace("|", "│").replace("-", "─")],
)  # fmt: skip
def test_one_sudoku_in_many_hands(text):
    puzzle = read_puzzle(text, "here")
    assert (puzzle.kind, puzzle.title, puzzle.kind.vocab_size) == (Sudoku(9, 9), "9×9 Sudoku", 11)
    assert puzzle.inputs.tolist() == [1 if c == "." else int(c) + 1 for c in SUDOKU]
    assert puzzle.inputs.dtype == np.uint8


@pytest.mark.parametrize(("cells", "size"), [(16, 4), (36, 6), (81, 9)])
def test_sizes(cells, size):
    puzzle = read_puzzle("0" * (cells - 1) + "1", "here")
    assert (puzzle.kind.size, puzzle.kind.vocab_size) == (size, size + 2)
    assert puzzle.inputs.tolist() == [1] * (cells - 1) + [2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "here is empty"),
        ("\n \n", "here is empty"),
        (SUDOKU[:-1], r"here has 80 cells; a Sudoku has 16 \(4×4\), 36 \(6×6\) or 81 \(9×9\)"),
        ("1..4", "here has 4 cells;"),
        (DRAWN.replace("| 4 . .", "| 4 ."), r"here has 80 cells \(line 8 has 8, most have 9\);"),
        ("1..4.4x..1..4..1", "here: character 7 is 'x'; a Sudoku is written in digits"),
        (" 1..4 .4x. .1.. 4..1", "here: character 9 is 'x'"),
        (DRAWN.replace("4 1 9", "4 l 9"), "here: line 12, column 13 is 'l'"),
        ("1..4\n.4..\n.1..\n4..5", r"here: line 4, column 4 \(row 4, column 4\) is 5; the digits of a 4×4 .* 1 to 4"),
        ("7" + "." * 35, r"here: character 1 \(row 1, column 1\) is 7; .* 6×6 Sudoku are 1 to 6"),
        (
            "1..1" + "." * 12,
            r"row 1 has the clue 1 .* character 1 \(row 1, column 1\) and character 4 \(row 1, column 4",
        ),
        ("...2" + "...." + "...2" + "....", r"column 4 has the clue 2 .* character 4 .* and character 12 "),
        ("3..." + ".3.." + "." * 8, r"box 1 has the clue 3 .* character 1 .* and character 6 "),
        ("٣..." + "." * 12, "here: character 1 is '٣'"),
    ],
)
def test_malformed_input_is_named_with_its_place(text, problem):
    with pytest.raises(UserError, match=problem):
        read_puzzle(text, "here")


def sudoku_tokens(text: str) -> np.ndarray:
    return np.array([1 if c == "." else int(c) + 1 for c in text], np.uint8)


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
    kind = Sudoku(size, size)
    expected = [oracle_sudoku(i, a, *BOXES[size]) for i, a in zip(inputs, answers, strict=True)]
    assert 50 < sum(expected) < 200
    assert kind.valid(inputs, answers).tolist() == expected
    assert [bool(kind.valid(i, a)) for i, a in zip(inputs, answers, strict=True)] == expected
    assert [not kind.violations(i, a) for i, a in zip(inputs, answers, strict=True)] == expected


def test_real_sudokus():
    rows = [row for split in ("train", "test") for row in csv.DictReader(open(REFERENCE / f"sudoku/{split}.csv"))]
    for row in rows:
        question, answer = sudoku_tokens(row["question"]), sudoku_tokens(row["answer"])
        assert Sudoku(9, 9).valid(question, answer)
        assert not Sudoku(9, 9).valid(question, question)


def test_sudoku_violations_name_the_place():
    question = sudoku_tokens("1...............")
    answer = sudoku_tokens("1234341221434321")
    assert Sudoku(4, 4).violations(question, answer) == []
    answer[1] = 1
    assert Sudoku(4, 4).violations(question, answer) == ["row 1, column 2 is empty"]
    answer[:2] = 3, 2  # 2 and 1 for 1 and 2
    found = Sudoku(4, 4).violations(question, answer)
    assert found[0] == "the clue 1 at row 1, column 1 has become 2"
    assert "column 1 has two 2s" in found
    assert "column 2 has two 1s" in found
    assert len(found) == 3


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
    rows, columns = BOXES[size]
    for a in range(size * size):
        for b in range(a):
            (r, c), (s, d) = divmod(a, size), divmod(b, size)
            if board[a] == board[b] and (r == s or c == d or (r // rows, c // columns) == (s // rows, d // columns)):
                return False
    return sorted(set(board)) == list(range(2, size + 2))


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_copies_are_sudokus_with_the_solution_of_the_copy(size):
    inputs, labels = sudokus(size)
    transforms = Sudoku(size, size).symmetries(40, seed=0)
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
    for transform in Sudoku(4, 4).symmetries(20, seed=2):
        for puzzle in inputs:
            of_puzzle = grids[((puzzle == 1) | (puzzle == grids)).all(1)]
            copy = transform.apply(puzzle)
            of_copy = grids[((copy == 1) | (copy == grids)).all(1)]
            assert {row.tobytes() for row in transform.apply(of_puzzle)} == {row.tobytes() for row in of_copy}


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_transforms_are_bijections_and_undone_exactly(size):
    boards = np.random.default_rng(0).integers(0, size + 2, (7, 3, size * size), dtype=np.uint8)  # any wrong answer
    for transform in Sudoku(size, size).symmetries(30, seed=1):
        assert sorted(transform.cells) == list(range(size * size))
        assert sorted(transform.tokens) == list(range(size + 2))
        assert transform.tokens[:2].tolist() == [0, 1]  # PAD and blank stay
        np.testing.assert_array_equal(transform.undo(transform.apply(boards)), boards)
        np.testing.assert_array_equal(transform.apply(transform.undo(boards)), boards)


def test_sudoku_transforms_are_seeded_and_distinct():
    def content(transforms):
        return [(t.cells.tolist(), t.tokens.tolist()) for t in transforms]

    many = content(Sudoku(9, 9).symmetries(100, seed=5))
    assert many[0] == (list(range(81)), list(range(11)))
    assert content(Sudoku(9, 9).symmetries(10, seed=5)) == many[:10]
    assert content(Sudoku(9, 9).symmetries(10, seed=6))[1:] != many[1:10]
    assert all(a != b for i, a in enumerate(many) for b in many[:i])
    # The same on every machine: the second one, written down.
    assert many[1][0][:9] == [80, 79, 78, 72, 73, 74, 76, 77, 75]
    assert many[1][1] == [0, 1, 6, 7, 3, 10, 2, 4, 5, 9, 8]


def test_all_copies_of_a_4x4_sudoku_and_no_more():
    """4! relabellings, 8 orders of rows, 8 of columns, times 2 for the transpose: each of them once."""
    everything = Sudoku(4, 4).symmetries(3072, seed=0)
    assert len({t.cells.tobytes() + t.tokens.tobytes() for t in everything}) == 24 * 8 * 8 * 2
    with pytest.raises(UserError, match="has 3072 different ones"):
        Sudoku(4, 4).symmetries(3073, seed=0)


def test_how_many_solutions_a_puzzle_has():
    """4×4: against all boards that there are; 9×9: a hard one, one with a clue less, and none found in time."""
    boards = all_4x4_grids()
    random = np.random.default_rng(0)
    said = Counter()
    for _ in range(300):
        clues = random.random(16) < random.uniform(0.1, 0.6)
        board = np.where(clues, random.integers(1, 5, 16) if random.random() < 0.5 else boards[random.integers(288)], 0)
        solutions = min(2, (boards[:, board > 0] == board[board > 0]).all(1).sum())
        inputs = (board + 1).astype(np.uint8)
        (remark,) = Sudoku(4, 4).remarks(inputs) or [""]
        words = {0: "has no solution", 1: "", 2: "has several solutions" if (board > 0).any() else "is empty"}
        assert words[solutions] in remark and bool(remark) == (solutions != 1)
        said[solutions] += 1
    assert min(said[0], said[1], said[2]) > 20
    hard = "4....5......7....1.72.6....2.....16.....4..8..5...7..99..1..2...41.9..3.5.3......"
    for text, remark in {hard: [], "." + hard[1:]: ["the Sudoku has several solutions, of which any is right"]}.items():
        assert Sudoku(9, 9).remarks(Sudoku.parse(text, "").inputs) == remark


def test_the_search_for_solutions_ends(monkeypatch):
    monkeypatch.setattr(sudoku, "MOST_TRIES", 10)
    sudoku._count_solutions.cache_clear()
    assert sudoku._count_solutions(9, bytes([2] + [1] * 80)) is None
    sudoku._count_solutions.cache_clear()
