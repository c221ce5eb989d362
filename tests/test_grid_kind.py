"""Grids of one's own, as readers of their datasets see them: python -m pytest tests/test_grid_kind.py"""

import json

import numpy as np
import pytest

from dataset.build_grid_dataset import GridConfig, build
from dataset.format import load_metadata, read_identifiers
from errors import UserError
from evaluators.search import Search, choices_of, think
from evaluators.solution import Solution, answers, as_json, dataset_at_hand, judge, read_typed
from evaluators.trajectories import Plan, Segment
from puzzles.draw import board_image, board_lines, draw_frames
from puzzles.grid import Grid
from tests.scripted import step
from tests.test_own_puzzles import jsonl, kind_at, pair


def grid_kind(tmp_path, *records: dict, **options) -> Grid:
    build(GridConfig(input_file=jsonl(tmp_path / "p.jsonl", *records), output_dir=tmp_path / "out", test_fraction=0,
                     **options))  # fmt: skip
    return kind_at(tmp_path / "out")


def test_the_dataset_describes_the_kind(tmp_path):
    kind = grid_kind(tmp_path, pair("ab?", "b?"), dihedral=True, permute="ab", ignore="?")
    assert dataset_at_hand(tmp_path / "out")[1] == kind
    described = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert list(described)[-2:] == ["options", "digests"]
    assert load_metadata(tmp_path / "out/train").kind == "grid"


TYPED = [
    ("ab\nb.", [[2, 3], [3, 1]]),
    (" a b \n b . \n", [[2, 3], [3, 1]]),
    ('["ab", "b."]', [[2, 3], [3, 1]]),
    ('[["a", "b"], ["b", "."]]', [[2, 3], [3, 1]]),
    ('{"input": ["ab", "b."]}', [[2, 3], [3, 1]]),
    ("a", [[2]]),
]


@pytest.mark.parametrize(("text", "tokens"), TYPED)
def test_a_puzzle_is_typed_as_in_the_files(text, tokens, tmp_path):
    kind = grid_kind(tmp_path, pair(["a.", "bb"], ["bb", "a."]))
    puzzle = read_typed(text, "puzzle", kind)
    assert puzzle.kind == kind and puzzle.expected is None
    expected = np.zeros((2, 2), int)
    expected[: len(tokens), : len(tokens[0])] = tokens
    assert puzzle.inputs.reshape(2, 2).tolist() == expected.tolist()


def test_a_grid_of_blanks_is_one(tmp_path):
    kind = grid_kind(tmp_path, pair(["a ", "  "], ["  ", " a"]))
    assert kind.plain(read_typed("  \n  \n", "puzzle", kind).inputs) == ["  ", "  "]
    for text, other in (("\n\n", kind), ("  ", grid_kind(tmp_path, pair("ab", "ba")))):
        with pytest.raises(UserError, match="puzzle is empty"):
            read_typed(text, "puzzle", other)


def test_brackets_may_be_symbols(tmp_path):
    """Text that is written in the symbols is text; else it is JSON if it can be."""
    kind = grid_kind(tmp_path, pair("[1{}]", "[1[]]"))
    for text in ("[1]", '["[1]"]', '[["[", 1, "]"]]', '{"input": "[1]", "output": "[1]"}'):
        assert kind.plain(read_typed(text, "puzzle", kind).inputs) == ["[1]"]
    assert read_typed('{"input": "{]", "output": "]]"}', "p", kind).expected.tolist() == [3, 3, 0, 0, 0]
    with pytest.raises(UserError, match="puzzle: row 1, column 2 is 'x'"):
        read_typed("[x", "puzzle", kind)
    words = grid_kind(tmp_path, pair("[a b]", "b] [a"), words=True)
    for text in ("[a b]", '[["[a", "b]"]]', '{"input": "[a b]"}'):
        assert words.plain(read_typed(text, "puzzle", words).inputs) == [["[a", "b]"]]


def test_a_line_of_jsonl_says_the_output_and_the_id(tmp_path):
    kind = grid_kind(tmp_path, pair(["abc"], ["c"]), ignore="b")
    puzzle = read_typed('{"input": "aab", "output": ["cb", "aa"], "id": 7}', "p", grid_kind(
        tmp_path, pair(["abc"], ["c"]), ignore="b", canvas="3x4"))  # fmt: skip
    assert (kind.columns, puzzle.kind.columns, puzzle.name) == (3, 4, "7")
    assert puzzle.expected.tolist() == [4, 0, 1, 0, 2, 2, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ax", "puzzle: row 1, column 2 is 'x'; a 2×2 grid of this dataset is written in . a b"),
        ("aab", "puzzle has 1×3 cells; the dataset's canvas has 2×2"),
        ("ab\na", "puzzle has 1 cells in row 2 and 2 in row 1"),
        ("[1", "puzzle is not JSON"),
        ('{"question": 1}', "puzzle: the JSON object has no key 'input'"),
        ('{"input": "a", "output": "x"}', "puzzle: the output: row 1, column 1 is 'x'"),
        ("[[1]]", "puzzle: row 1, column 1 is '1'"),  # though it could be an ARC grid
    ],
)
def test_what_is_typed_wrong_is_named(text, problem, tmp_path):
    kind = grid_kind(tmp_path, pair(["a.", "bb"], ["bb", "a."]))
    with pytest.raises(UserError) as caught:
        read_typed(text, "puzzle", kind)
    assert problem in str(caught.value)


def test_only_cells_of_the_input_count_where_shapes_agree(tmp_path):
    kind = grid_kind(tmp_path, pair(["ab", "b"], ["bb", "a"]), ragged=True)
    inputs, answer = np.array([1, 2, 2, 0], np.uint8), np.array([[2, 1, 1, 2], [2, 1, 1, 1]], np.uint8)
    assert kind.counted(inputs, answer).tolist() == [[2, 1, 1, 0]] * 2
    assert kind.plain(kind.counted(inputs, answer[0])) == [["b", "a"], ["a", None]]


def test_only_the_grid_and_its_end_marks_count_where_shapes_differ(tmp_path):
    kind = grid_kind(tmp_path, pair(["aaa"] * 3, ["b"]))
    inputs, answer = np.full(9, 2, np.uint8), np.array([3, 3, 1, 2, 2, 1, 1, 1, 3], np.uint8)
    assert kind.counted(inputs, answer).tolist() == [3, 3, 1, 2, 2, 1, 1, 1, 0]
    assert kind.extent(answer) == (2, 2)
    assert kind.plain(answer) == ["bb", "aa"]
    assert kind.violations(inputs, np.zeros(9, np.uint8)) == ["there is no grid"]


def test_answers_are_compared_in_the_cells_that_count(tmp_path):
    torch = pytest.importorskip("torch")
    kind = grid_kind(tmp_path, pair("ab.?", "b..?"), ignore="?", canvas="2x4")
    puzzle = read_typed('{"input": "aa", "output": "b?"}', "puzzle", kind)
    tokens = {symbol: kind.tokens[symbol] for symbol in ".?ab"}
    row = [tokens["b"], tokens["a"], *[tokens["b"]] * 6]
    ((found,),) = (one.values() for one in answers([puzzle], [step(1, torch.tensor([row]), torch.tensor([0.0]))]))
    assert kind.plain(found.tokens) == ["ba"]
    assert found.changed.tolist() == [True] + [False] * 7
    assert judge(puzzle, found.tokens).text == "right: equal to the stated output"
    wrong = found.tokens.copy()
    wrong[0] = tokens["."]
    assert judge(puzzle, wrong).text == "wrong: 1 of 2 cells differ from the stated output"
    reported = as_json(Solution(puzzle, [found], judge(puzzle, found.tokens)))
    assert (reported["kind"], reported["puzzle"], reported["answer"]) == ("grid", ["aa"], ["ba"])
    assert len(draw_frames(puzzle, [found], judge(puzzle, found.tokens))) == 2


def test_symmetries_vote_and_undo_each_other(tmp_path):
    kind = grid_kind(tmp_path, pair(["abc", "..."], ["...", "abc"]), dihedral=True, permute="abc")
    assert (kind.num_symmetries, kind.copies()) == (24, 8)
    found = kind.symmetries(24, seed=3)
    board = np.array([2, 3, 4, 1, 1, 1], np.uint8)
    copies = {transform.apply(board).tobytes() for transform in found}
    assert len(copies) == 12  # three symbols in a row, one of two rows: reversing it is a renaming
    assert all((transform.undo(transform.apply(board)) == board).all() for transform in found)
    assert (found[0].apply(board) == board).all()
    first = kind.symmetries(5, seed=3)
    assert all((one.cells == other.cells).all() for one, other in zip(first, found, strict=False))
    with pytest.raises(UserError, match="25 copies of a 2×3 grid: there are 24, itself included"):
        kind.symmetries(25, seed=3)


def test_words_and_wide_characters_are_written_in_columns(tmp_path):
    kind = grid_kind(tmp_path, pair([["red", "猫"], ["x", None]], [["x", "x"], ["x", None]]))
    board = read_typed('[["red", "猫"], ["x", null]]', "puzzle", kind).inputs
    assert board_lines(kind, board, np.array([True, False, False, False])) == ["red* 猫 ", "  x   _ "]
    assert board_image(kind, board).size == (243, 243)


class Told:
    """Trajectories whose answers are known."""

    def __init__(self, answers: np.ndarray):
        numbers = np.zeros(answers.shape[:2])
        self.segment = Segment(answers, numbers, numbers > 0, numbers)

    def begin(self, *_):
        pass

    def advance(self) -> Segment:
        return self.segment


def test_equal_answers_in_cells_that_count_are_one_vote(tmp_path):
    kind = grid_kind(tmp_path, pair(["ab", "b"], ["bb", "a"]), ragged=True)
    told = Told(np.array([[[1, 1, 1, 0], [2, 2, 2, 1], [2, 2, 2, 2]]], np.uint8))
    search = Search([None], [1], None, kind, Plan(kind.symmetries(1, 0), breadth=3), "majority", None, 3, [told])
    inputs = np.array([[1, 2, 2, 0]])
    found, _ = think(search, inputs, np.zeros(1), np.zeros(1))
    choices, _ = choices_of(search, inputs, found)
    assert choices["majority"].answers[0].tolist() == [2, 2, 2, 0]


def test_a_description_that_does_not_fit_is_refused(tmp_path):
    kind_at_all = grid_kind(tmp_path, pair("ab", "ba"))
    path = tmp_path / "out/train/dataset.json"
    described = json.loads(path.read_text())
    for change in (
        {"options": {}},
        {"options": None},
        {"symbols": ["", "a"]},
        {"look": None},
        {"options": described["options"] | {"permuted": [9]}},
        {"options": described["options"] | {"surprise": 1}},
    ):
        path.write_text(json.dumps({k: v for k, v in (described | change).items() if k != "digests"}))
        with pytest.raises(UserError, match="do not fit together; build the dataset again"):
            kind_at(tmp_path / "out")
    assert kind_at_all.vocab_size == 3


def test_a_model_knows_a_puzzle_by_its_id(tmp_path):
    from evaluators.solver import find_embedding

    kind = grid_kind(tmp_path, pair("ab", "ba", id="x"), pair("ba", "ab", id="y"), identifiers=True)
    names = read_identifiers(tmp_path / "out")
    known, unknown, without = (
        read_typed(json.dumps({"input": "ab"} | labels), "puzzle", kind) for labels in ({"id": "y"}, {"id": "z"}, {})
    )
    for puzzle in (known, unknown):
        find_embedding(puzzle, names)
    assert (known.identifier, unknown.identifier, without.identifier) == (2, 0, 0)
    assert (known.notes, without.name) == ((), None)
    assert "no puzzle called 'z' was in the dataset" in unknown.notes[0]
