"""Kinds of puzzle: which one a dataset holds, and kinds that are dropped in: python -m pytest tests/test_kind.py"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from dataset.format import load_metadata
from errors import UserError
from extension import modules_below
from puzzles.arc import Arc
from puzzles.draw import PALETTE
from puzzles.kind import _HELPERS, Kind, Look, Transform, all_kinds, find_kind, kind_of, read_puzzle
from puzzles.maze import Maze
from puzzles.sudoku import Sudoku
from puzzles.sudoku_generator import all_4x4_grids
from tests.latin_squares import latin_dropped_in
from tests.launch import ROOT

KINDS = [Sudoku(4, 4), Sudoku(6, 6), Sudoku(9, 9), Maze(2, 2), Maze(4, 4), Maze(30, 30), Arc(30, 30)]
MAZE = np.array(["?# SGo".index(c) for c in "S  # # # G      "], np.uint8)


def numbers(vocab_size: int, seq_len: int) -> dict:
    """A description that does not say the kind."""
    return {"vocab_size": vocab_size, "seq_len": seq_len}


def sudokus(count: int = 50) -> np.ndarray:
    """4×4 questions, the first of which passes for a maze: one 2 (S), one 3 (G) and no 4 (path)."""
    rng = np.random.default_rng(0)
    answers = rng.permutation(all_4x4_grids())[:count] + np.uint8(1)
    questions = np.where(rng.random(answers.shape) < 0.5, np.uint8(1), answers)
    questions[0] = 1
    questions[0, :2] = 3, 4
    return questions


def test_four_by_four_sudokus_and_mazes_are_told_apart_by_their_inputs():
    mazes, same_size = np.tile(MAZE, (50, 1)), numbers(6, 16)
    assert kind_of(same_size, [mazes], "here") == Maze(4, 4)
    assert kind_of(same_size, [sudokus()], "here") == Sudoku(4, 4)
    assert kind_of(same_size, [mazes, sudokus()], "here") == Sudoku(4, 4)  # all of its sets must be mazes
    for spoilt in (5, 3, 4):  # a path cell, a second start, a second goal in one of them
        almost = mazes.copy()
        almost[30, np.flatnonzero(MAZE == 2)[0]] = spoilt
        assert kind_of(same_size, [almost], "here") == Sudoku(4, 4)


@pytest.mark.parametrize(
    ("vocab_size", "seq_len", "expected"),
    [(8, 36, Sudoku(6, 6)), (11, 81, Sudoku(9, 9)), (12, 900, Arc(30, 30)), (12, 899, None), (11, 900, None),
     (6, 9, None), (7, 16, None), (10, 64, None)],
)  # fmt: skip
def test_kinds_by_their_numbers(vocab_size, seq_len, expected):
    inputs = np.full((3, seq_len), 1)
    if expected:
        assert kind_of(numbers(vocab_size, seq_len), [inputs], "here") == expected
    else:
        with pytest.raises(
            UserError, match=f"here does not say .* {seq_len} cells with {vocab_size} tokens .* arc, grid, maze"
        ):
            kind_of(numbers(vocab_size, seq_len), [inputs], "here")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.name}-{kind.rows}")
def test_a_description_gives_the_kind_back_whatever_the_inputs_look_like(kind):
    described = json.loads(json.dumps(numbers(kind.vocab_size, kind.seq_len) | kind.describe()))
    assert kind_of(described, [np.tile(MAZE, (3, 1))], "here") == kind
    assert len(described["symbols"]) == kind.vocab_size
    for of_each in ("fills", "glyphs"):
        assert len(described["look"][of_each]) == kind.vocab_size
    assert all(fill is None or fill in PALETTE for fill in described["look"]["fills"])
    assert described["symbols"][0] == "?"


@pytest.mark.parametrize(
    "change",
    [{"rows": 6}, {"rows": 7, "columns": 7}, {"rows": None}, {"kind": "maze"}, {"vocab_size": 7}, {"seq_len": 9}],
)
def test_a_description_that_contradicts_itself(change):
    described = numbers(6, 16) | Sudoku(4, 4).describe() | change
    if change == {"kind": "maze"}:  # the numbers fit: what is written counts
        assert kind_of(described, [], "here") == Maze(4, 4)
        return
    with pytest.raises(UserError, match=r"^here: dataset.json says sudoku of .*; build the dataset again$"):
        kind_of(described, [], "here")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "kind", "sudoku.x", "x" * 1000, "\u0000"])
def test_a_name_that_no_kind_can_have(name):
    described = numbers(6, 16) | Sudoku(4, 4).describe() | {"kind": name}
    with pytest.raises(UserError, match=r"^here: its dataset\.json says kind '.*, but .*$"):
        kind_of(described, [], "here")


BROKEN_KIND = """
from puzzles.latin import Latin

class Broken(Latin):
    name = "a_broken_one"

    @classmethod
    def infer(cls, vocab_size, seq_len, inputs):
        raise IndexError("no such cell")

    @classmethod
    def recognises(cls, text):
        return text[1000]

    @classmethod
    def from_description(cls, description):
        return 1 / 0
"""


def test_a_kind_that_fails_is_passed_over(tmp_path, caplog):
    """It has nothing to do with the datasets and puzzles of others."""
    with latin_dropped_in(tmp_path), caplog.at_level("WARNING"):
        (tmp_path / "puzzles/a_broken_one.py").write_text(BROKEN_KIND)
        inputs = np.full((3, 16), 1, np.uint8)
        assert kind_of(numbers(6, 16), [inputs], "here") == Sudoku(4, 4)
        assert read_puzzle("1" + "." * 15, "here").kind == Sudoku(4, 4)
        assert caplog.messages == [
            "passing over puzzles/a_broken_one.py: IndexError: no such cell",
            "passing over puzzles/a_broken_one.py: IndexError: string index out of range",
        ]
        described = numbers(6, 16) | Sudoku(4, 4).describe() | {"kind": "a_broken_one"}
        with pytest.raises(UserError, match=r"^here: dataset.json says a_broken_one of 4×4, but also 16 cells"):
            kind_of(described, [], "here")
        (tmp_path / "puzzles/faulty.py").write_text("import no_such_package")
        with pytest.raises(
            UserError, match=r"^here: its dataset.json says kind 'faulty', but puzzles/faulty.py: Modul"
        ):
            kind_of(described | {"kind": "faulty"}, [], "here")


def test_an_unknown_kind():
    message = "no kind of puzzle called 'kakuro'; choose one of arc, grid, maze, sudoku, or bring puzzles/kakuro.py"
    with pytest.raises(UserError, match=message):
        kind_of(numbers(6, 16) | {"kind": "kakuro"}, [], "here")
    with pytest.raises(UserError, match="is not the name of a module below puzzles/"):
        find_kind("../sudoku")
    with pytest.raises(UserError, match="no kind of puzzle called 'draw'"):
        find_kind("draw")


def test_what_a_search_for_kinds_does_not_load():
    """Generators compile with numba, pictures need PIL: who only asks for the kind waits for neither."""
    code = "import sys; from puzzles.kind import *; all_kinds(); print({'numba', 'PIL', 'pydantic'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_kind_dropped_in_as_one_file(tmp_path):
    assert [kind.name for kind in all_kinds()] == ["arc", "grid", "maze", "sudoku"]
    with latin_dropped_in(tmp_path):
        latin = find_kind("latin").of_cells(16)
        assert [kind.name for kind in all_kinds()] == ["arc", "grid", "latin", "maze", "sudoku"]
        assert kind_of(numbers(6, 16) | latin.describe(), [], "here") == latin
        assert kind_of(numbers(6, 16), [sudokus()], "here") == Sudoku(4, 4)  # it claims nothing that it is not told
        assert latin.title == "4×4 Latin square"

        puzzle = read_puzzle("AB..\n.. AB\r\n....\n...C", "here", type(latin))
        assert (puzzle.kind, puzzle.inputs.tolist()) == (latin, [2, 3, 1, 1, 1, 1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 4])
        assert latin.plain(puzzle.inputs) == "AB....AB.......C"
        with pytest.raises(UserError, match="here has 3 cells; a Latin square has 4, 9, 16, …, 81"):
            read_puzzle("AB.", "here", type(latin))
        with pytest.raises(
            UserError, match=r"here: line 2, column 1 is 'E'; a 4×4 Latin square is written in \. A B C D$"
        ):
            read_puzzle("AB..\nE.AB\n....\n...C", "here", type(latin))
        with pytest.raises(UserError, match="2 copies of a 2×2 Latin square: it has no symmetries"):
            super(type(latin), type(latin).of_cells(4)).symmetries(2, 0)
    assert [kind.name for kind in all_kinds()] == ["arc", "grid", "maze", "sudoku"]
    with pytest.raises(UserError, match="no kind of puzzle called 'latin'"):
        find_kind("latin")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "here is empty"),
        ("\n \n", "here is empty"),
        ("hello", "here is not a puzzle of a kind known here: arc, grid, maze, sudoku"),
    ],
)
def test_a_text_that_is_no_puzzle(text, problem):
    with pytest.raises(UserError, match=problem):
        read_puzzle(text, "here")


@pytest.mark.parametrize(("kind", "rows", "columns"), [(Sudoku, 5, 5), (Sudoku, 4, 9), (Maze, 2, 3), (Arc, 10, 11)])
def test_boards_that_a_kind_does_not_have(kind, rows, columns):
    with pytest.raises(ValueError, match=r"has 4×4, 6×6, 9×9 cells|is a square"):
        kind(rows, columns)


def test_an_arc_grid_typed_in():
    puzzle = read_puzzle(" [[1, 2], [0, 9]]", "here")
    assert puzzle.kind == Arc(30, 30)
    expected = np.zeros((30, 30), int)
    expected[:2, :2] = [[3, 4], [2, 11]]
    expected[:2, 2] = expected[2, :2] = 1
    assert puzzle.inputs.tolist() == expected.ravel().tolist()
    assert puzzle.kind.plain(puzzle.inputs) == [[1, 2], [0, 9]]
    for text, problem in (
        ("[[1, 2]", "here is not an ARC grid in JSON"),
        ("[[1, 10]]", "here holds 10 in row 0, column 1"),
    ):
        with pytest.raises(UserError, match=re.escape(problem)):
            read_puzzle(text, "here")


def test_transforms_undo_what_they_apply():
    """Against a scalar loop, with a permutation that is not its own inverse."""
    cells, tokens = np.array([1, 2, 0, 3]), np.array([0, 2, 3, 1], np.uint8)
    transform = Transform(cells, tokens)
    boards = np.random.default_rng(0).integers(0, 4, (5, 4), dtype=np.uint8)
    for board, copy in zip(boards, transform.apply(boards), strict=True):
        assert copy.tolist() == [int(tokens[board[cells[i]]]) for i in range(4)]
    np.testing.assert_array_equal(transform.undo(transform.apply(boards)), boards)


def test_datasets_of_before_are_recognised():
    """The reference datasets do not say what they hold."""
    folder = ROOT / "tests/reference/pipeline/dataset/train"
    metadata = load_metadata(folder)
    assert metadata.kind is None
    assert kind_of(metadata.model_dump(), [np.load(folder / "all__inputs.npy")], str(folder)) == Sudoku(4, 4)


def test_a_file_that_cannot_be_imported_is_passed_over(tmp_path, caplog):
    with latin_dropped_in(tmp_path):
        (tmp_path / "puzzles/broken.py").write_text("import no_such_package")
        (tmp_path / "puzzles/script.py").write_text("raise SystemExit(3)")
        with caplog.at_level("WARNING"):
            assert [kind.name for kind in all_kinds()] == ["arc", "grid", "latin", "maze", "sudoku"]
        assert [message.split(":")[0] for message in caplog.messages] == [
            "passing over puzzles/broken.py",
            "passing over puzzles/script.py",
        ]
        (tmp_path / "puzzles/nameless.py").write_text("from puzzles.latin import Latin")
        with pytest.raises(
            UserError, match=re.escape("give puzzles/nameless.py a class derived from Kind with name =")
        ):
            find_kind("nameless")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"look": Look(fills=(None,) * 6, glyphs=("",) * 5)}, "look.glyphs has 5 entries for 6 symbols"),
        ({"symbols": ("?", ".", "A", "B", "C", "10")}, "the symbol '10' is not one ASCII character"),
        ({"symbols": ("?", ".", "A", "B", "C", "A")}, "two symbols are the same"),
        (
            {"symmetries": lambda *_: [Transform(np.arange(16)[::-1], np.arange(6, dtype=np.uint8))]},
            "the first of its symmetries is not the identity",
        ),
    ],
)
def test_a_kind_that_does_not_fit_together_is_refused_before_it_is_built_with(tmp_path, changes, message):
    with latin_dropped_in(tmp_path):
        latin = find_kind("latin")
        latin(4, 4).check()
        with pytest.raises(UserError, match=message):
            type("Odd", (latin,), changes)(4, 4).check()


def test_a_kind_without_symmetries_has_one_copy(tmp_path):
    with latin_dropped_in(tmp_path):
        latin = find_kind("latin")
        assert (latin.copies(), Sudoku.copies(), Maze.copies()) == (8, 32, 16)
        assert type("Plain", (latin,), {"symmetries": Kind.symmetries}).copies() == 1


def test_modules_without_a_kind_are_not_imported_in_search_of_one():
    assert {name for name in modules_below("puzzles") if name not in _HELPERS} == {"arc", "grid", "maze", "sudoku"}
