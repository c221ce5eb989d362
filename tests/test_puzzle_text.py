"""Sudokus and mazes as people type them: python -m pytest tests/test_puzzle_text.py"""

import csv

import numpy as np
import pytest

from errors import UserError
from evaluators.puzzle_text import read_puzzle
from tests.reference_models import REFERENCE

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
    assert (puzzle.kind, puzzle.size, puzzle.name, puzzle.vocab_size) == ("sudoku", 9, "9×9 Sudoku", 11)
    assert puzzle.inputs.tolist() == [1 if c == "." else int(c) + 1 for c in SUDOKU]
    assert puzzle.inputs.dtype == np.uint8


@pytest.mark.parametrize(("cells", "size"), [(16, 4), (36, 6), (81, 9)])
def test_sizes(cells, size):
    puzzle = read_puzzle("0" * (cells - 1) + "1", "here")
    assert (puzzle.size, puzzle.vocab_size) == (size, size + 2)
    assert puzzle.inputs.tolist() == [1] * (cells - 1) + [2]


def test_a_real_maze_in_lines_in_one_line_and_with_dots():
    row = next(csv.DictReader(open(REFERENCE / "maze/test.csv")))
    question, expected = row["question"], np.load(REFERENCE / "maze/built.npz")["test/inputs"][0]
    lines = "\n".join(question[i : i + 30] for i in range(0, 900, 30))
    for text in (question, lines, lines + "\n\n", lines.replace(" ", "."), "\n" + lines.replace("\n", "\r\n")):
        puzzle = read_puzzle(text, "here")
        assert (puzzle.kind, puzzle.size, puzzle.vocab_size, puzzle.notes) == ("maze", 30, 6, ())
        assert np.array_equal(puzzle.inputs, expected)


def test_what_a_person_should_know_about_a_maze():
    drawn = read_puzzle("Soo\n##o\n##G", "here")
    assert drawn.inputs.tolist() == [3, 2, 2, 1, 1, 2, 1, 1, 4]
    assert ["taken out" in note for note in drawn.notes] == [True]
    assert ["no path leads" in note for note in read_puzzle("S#.\n##.\n..G", "here").notes] == [True]


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
        ("S.#\n..\n#.G", "here: line 2 has 2 characters, the maze is 3 wide; write free cells at the end .* as `.`"),
        ("S.#\n...#\n#.G", "here: line 2 has 4 characters, the maze is 3 wide$"),
        ("S.#\n\n#.G", "here: line 2 has 0 characters"),
        ("S.#\n..#", "a maze is a square, this one has 2 lines of 3 characters"),
        ("S.#\n..#\n#.G\n...", "a maze is a square, this one has 4 lines of 3 characters"),
        ("S.#.G", "a maze is a square; 5 characters in one line are none"),
        ("S.#\n.x#\n#.G", "here: line 2, column 2 is 'x'; a maze is written in"),
        ("S\t#\n..#\n#.G", "here: line 1, column 2 is a tab"),
        ("S.#\n..#\n#..", "one goal G, this one has none"),
        ("S.#\n.S#\n#.G", "one start S, this one has 2: line 1, column 1 and line 2, column 2"),
    ],
)
def test_malformed_input_is_named_with_its_place(text, problem):
    with pytest.raises(UserError, match=problem):
        read_puzzle(text, "here")
