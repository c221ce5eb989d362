"""Puzzles that reasoning-gym makes, with a stand-in for it and, where it is installed, with itself."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dataset.build_grid_dataset import GridConfig, build
from dataset.gym_readers import READERS
from dataset.gym_tasks import GymTask, read_config
from errors import UserError
from puzzles.gym import scorer_of
from tests import fake_gym
from tests.sample_datasets import Arrays
from tests.test_own_puzzles import kind_at, pairs_of


def built(folder: Path, task: str, train: int = 8, test: int = 3, **options) -> Path:
    out = folder / f"{task}-built"
    build(GridConfig(source="reasoning-gym", task=task, num_train=train, num_test=test, output_dir=out, **options))
    return out


def small(task: str, package: str) -> list[str]:
    """The settings with which the package does not take seconds for each puzzle."""
    return [f"{key}={value}" for key, value in fake_gym.SMALLER.get(task, {}).items() if package == "real"]


def boards(dataset: Path, split: str) -> list[tuple]:
    """Rows of input and answer for each example."""
    arrays, kind = Arrays(dataset, split), kind_at(dataset, split)
    return [tuple(kind.rows_of(board) for board in pair) for pair in zip(arrays.inputs, arrays.labels, strict=True)]


@pytest.mark.parametrize("task", READERS)
def test_every_task_that_fits_is_built_and_its_splits_share_nothing(package, task, tmp_path):
    dataset = built(tmp_path, task, train=3, test=2, task_config=small(task, package))
    kind = kind_at(dataset)
    names = json.loads((dataset / "identifiers.json").read_text())
    seen = {}
    for split, count in (("train", 3), ("test", 2)):
        arrays = Arrays(dataset, split)
        seen[split] = {
            (id, board.tobytes()) for id, board in zip(arrays.puzzle_identifiers, arrays.inputs, strict=True)
        }
        assert len(seen[split]) == len(arrays.inputs) == count
    assert not seen["train"] & seen["test"]
    assert (len(names) > 1) == (task in ("arc_1d", "rearc"))
    assert kind.rule == scorer_of(task)
    assert json.loads((dataset / "source.json").read_text())["task"] == task


def test_a_dataset_is_built_anew_in_its_folder(package, tmp_path):
    for count in (2, 3):
        dataset = built(tmp_path, next(iter(READERS)), train=count, test=2)
        assert len(boards(dataset, "train")) == count


def right_rotation(puzzle, answer):
    (arrow,) = set(puzzle[0])
    return np.array_equal(np.rot90(np.array(puzzle[1:]), -"↑→↓←".index(arrow)), answer)


def right_futoshiki(puzzle, answer):
    """Every sign, read off the drawing, holds; what is given stays."""
    for r, row in enumerate(answer):
        for c, sign in enumerate(row):
            assert puzzle[r][c] in (sign, ".")
            if sign in ("<", ">"):
                assert (row[c - 1] < row[c + 1]) == (sign == "<")
            if sign in ("∧", "∨"):
                assert (answer[r - 1][c] < answer[r + 1][c]) == (sign == "∧")
    return True


def right_sudoku(puzzle, answer):
    given = all(p in (a, ".") for row, full in zip(puzzle, answer, strict=True) for p, a in zip(row, full, strict=True))
    return given and all(len(set(line)) == len(line) for line in [*answer, *zip(*answer, strict=True)])


@pytest.mark.parametrize(
    ("task", "is_right"),
    [("rotate_matrix", right_rotation), ("futoshiki", right_futoshiki), ("mini_sudoku", right_sudoku)],
)
def test_an_input_says_all_that_its_answer_depends_on(package, task, is_right, tmp_path):
    assert all(is_right(*pair) for pair in boards(built(tmp_path, task, task_config=small(task, package)), "train"))


def test_arrays_are_read_out_of_the_question(fake_package, tmp_path):
    assert all(answer == puzzle[::-1] for puzzle, answer in boards(built(tmp_path, "game_of_life"), "train"))


def test_the_scorer_accepts_every_right_answer(package, tmp_path):
    kind = kind_at(built(tmp_path, "n_queens", train=2, test=1, task_config=["n=4", "max_remove=4"]))
    assert kind.has_rules
    puzzle, other = kind.read("____\n____\n____\n____", "it").inputs, kind.read("_Q__\n____\n____\n____", "it").inputs
    solutions = ["_Q__\n___Q\nQ___\n__Q_", "__Q_\nQ___\n___Q\n_Q__"]
    answers = np.stack([kind.read(text, "it").inputs for text in (*solutions, "Q___\n_Q__\n__Q_\n___Q")])
    assert kind.valid(puzzle[None], answers).tolist() == [True, True, False]
    assert kind.valid(other[None], answers).tolist() == [True, False, False]
    assert kind.violations(other, answers[1]) == ["reasoning-gym's scorer finds that it does not solve the puzzle"]


def test_without_the_package_the_dataset_has_no_rule(fake_package, tmp_path, monkeypatch):
    kind = kind_at(built(tmp_path, "n_queens"))
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert not kind.has_rules
    board = kind.read("QQQQ\nQQQQ\nQQQQ\nQQQQ", "it").inputs
    assert kind.violations(board, board) == []


def test_the_seed_decides_and_test_does_not_depend_on_train(fake_package, tmp_path):
    one, more, other = (
        built(tmp_path / str(n), "rotate_matrix", train, seed=seed)
        for n, (train, seed) in enumerate([(4, 1), (9, 1), (4, 2)])
    )
    assert pairs_of(one, "train") == pairs_of(more, "train")[:4]
    assert pairs_of(one, "test") == pairs_of(more, "test") != pairs_of(other, "test")


def test_splits_are_made_from_seeds_of_their_own(fake_package):
    train, test = (
        {one.file for one in GymTask("rotate_matrix", {}, 1).examples(split, 20)} for split in ("train", "test")
    )
    assert len(train) == len(test) == 20
    assert not train & test


FAULTS = [
    ({"task": "rotten_oranges"}, "--task rotten_oranges: its question and answer are not grids or .*n_queens.*sudoku"),
    ({"task": "rush_hour"}, "--task rush_hour: the package has no answers to it; those that fit are ab, arc_1d"),
    ({"task": "arc_agi"}, "--task arc_agi: .*dataset/build_arc_dataset.py.*; those that fit are ab, arc_1d"),
    ({"task": "sudokuu"}, "--task sudokuu: reasoning-gym has no such task; those that fit are ab, arc_1d"),
    ({"task_config": ["x"]}, "--task-config 'x': write key=value"),
    ({"task_config": ["n=4", "n=5"]}, "--task-config 'n=5': .* each key once"),
    ({"task_config": ["{"]}, "--task-config is not JSON"),
    ({"task_config": ["zz=1"]}, "--task-config: n_queens refuses it: got an unexpected keyword argument 'zz'"),
    ({"task_config": ["seed=1"]}, "--task-config seed: say it by --seed"),
    (
        {"num_train": 50, "task_config": ["n=4", "max_remove=4"]},
        "--num-train 50: n_queens made only [0-9]+ more different examples in 2,500 tries; ask for fewer",
    ),
]


def test_more_symbols_than_there_are_tokens_are_refused(fake_package, monkeypatch, tmp_path):
    def make(self, rng):
        return "", "", {"matrix": [[rng.randrange(10**6) for _ in range(2)]], "solution": [0]}

    monkeypatch.setattr(fake_gym.Spiral, "make", make)
    with pytest.raises(UserError, match=r"^--task-config: spiral_matrix has more than 250 symbols; make it smaller$"):
        built(tmp_path, "spiral_matrix", train=200)


@pytest.mark.parametrize(("options", "message"), FAULTS)
def test_mistakes_are_one_line_and_leave_nothing(package, options, message, tmp_path):
    given = {"task": "n_queens", "num_train": 2, "num_test": 1} | options
    with pytest.raises(UserError, match=message) as caught:
        build(GridConfig(source="reasoning-gym", output_dir=tmp_path / "out", **given))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "reasoning-gym", "task": "sudoku", "num_train": 2}, "--source needs --task, --num-train and"),
        ({"input_file": "x.jsonl", "task": "sudoku"}, "go with --source reasoning-gym"),
        ({"source": "reasoning-gym", "input_file": "x.jsonl"}, "--input-file is not read with --source"),
        ({"source": "other"}, "reasoning-gym"),
        ({"kind": "sudoku", "task_config": ["n=4"]}, "--task-config is not read with --kind"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValidationError, match=message):
        GridConfig(output_dir="out", **options)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="pip install reasoning-gym"):
        built(tmp_path, "sudoku")
    assert not list(tmp_path.iterdir())


def test_an_entry_of_another_shape_is_one_line(fake_package, monkeypatch):
    monkeypatch.setattr(fake_gym.Sudoku, "make", lambda self, rng, **config: ("", "", {}))
    with pytest.raises(UserError, match=r"sudoku, example 0: KeyError: 'puzzle'"):
        next(GymTask("sudoku", {}, 1).examples("train", 1))


def test_settings_are_json_or_text():
    assert read_config(["n=6", "name=x", "ids=[1, 2]"]) == {"n": 6, "name": "x", "ids": [1, 2]}
    assert read_config(['{"n": 6}']) == {"n": 6}
    assert read_config([]) == {}
