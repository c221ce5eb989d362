"""N queens, the kind that docs/own-puzzle.md builds from nothing: python -m pytest tests/test_queens.py"""

import importlib.util

import numpy as np
import pytest

from errors import UserError
from tests.latin_squares import EXAMPLES


def load(name: str):
    spec = importlib.util.spec_from_file_location(name.rpartition("/")[2] + "_under_test", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def queens():
    return load("puzzles/queens").Queens.of_cells(36)


def board(*columns: int | None, size: int = 6) -> np.ndarray:
    """(cells,) with a queen in the given column of each row."""
    tokens = np.ones((size, size), np.uint8)
    for row, column in enumerate(columns):
        if column is not None:
            tokens[row, column] = 2
    return tokens.ravel()


def test_exactly_the_solutions_obey_the_rules(queens):
    """Of all boards with a queen in each row and column, by plain counting along every line."""
    module, empty = load("queens_csv"), board()
    right = set(module.solutions(6))
    assert len(right) == 4 and len(module.solutions(8)) == 92
    permutations = np.stack(np.meshgrid(*[range(6)] * 6, indexing="ij"), -1).reshape(-1, 6)
    permutations = permutations[[len(set(row)) == 6 for row in permutations.tolist()]]
    boards = np.stack([board(*row) for row in permutations.tolist()])
    valid = queens.valid(empty, boards)
    assert {tuple(row) for row in permutations[valid].tolist()} == right
    assert all(bool(queens.violations(empty, one)) != obeys for one, obeys in zip(boards, valid, strict=True))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((1, 3, 5, 0, 2, None), ["there are 5 queens, not 6"]),
        ((1, 3, 5, 0, 2, 2), ["a column has two queens"]),
        ((0, 1, 5, 2, 4, 3), ["the queen at row 1, column 2 has gone", "a diagonal has two queens"]),
    ],
)
def test_what_is_wrong_is_said(queens, columns, said):
    found = queens.violations(board(1), board(*columns))
    assert all(sentence in found for sentence in said)


def test_symmetries_keep_solutions(queens):
    solution = board(*load("queens_csv").solutions(6)[0])
    copies = np.stack([transform.apply(solution) for transform in queens.symmetries(8, 0)])
    assert queens.valid(board(), copies).all()
    assert (copies[0] == solution).all()
    with pytest.raises(UserError, match=r"9 copies: a .* has 8 different ones"):
        queens.symmetries(9, 0)


def test_test_shares_no_solution_with_train(tmp_path):
    module = load("queens_csv")
    module.main(str(tmp_path), "7")
    answers = {
        split: {line.split(",")[2] for line in (tmp_path / f"{split}.csv").read_text().splitlines()[1:]}
        for split in ("train", "test")
    }
    assert sum(map(len, answers.values())) == 40 and all(answers.values())
    assert not answers["train"] & answers["test"]
