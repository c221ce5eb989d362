"""Generated Sudokus against plain-Python searches and the complete list of 4×4 grids.

python -m pytest tests/test_sudoku_generator.py
"""

import numpy as np
import pytest
from numba import njit

from errors import UserError
from puzzles.compiled import compiled, interruptible
from puzzles.sudoku_generator import _search, _units, all_4x4_grids, carve, generate_sudokus, random_grids

BOXES = [(2, 2), (2, 3), (3, 3)]


def peers(box: tuple[int, int], cell: int) -> set[int]:
    """Cells that share a row, column or box with `cell`."""
    rows, columns = box
    size = rows * columns
    row, column = divmod(cell, size)
    place = (row // rows, column // columns)
    return {
        other
        for other in range(size * size)
        if other // size == row or other % size == column or (other // size // rows, other % size // columns) == place
    } - {cell}


def solutions_of(box: tuple[int, int], puzzle: list[int], limit: int) -> list[list[int]]:
    """Solutions up to `limit`, by a plain recursive search."""
    size = box[0] * box[1]
    neighbours = [peers(box, cell) for cell in range(size * size)]
    found: list[list[int]] = []

    def search(grid: list[int]) -> None:
        blanks = [
            (size - len({grid[peer] for peer in neighbours[cell]} - {0}), cell) for cell, d in enumerate(grid) if not d
        ]
        if not blanks:
            found.append(list(grid))
            return
        cell = min(blanks)[1]
        for digit in set(range(1, size + 1)) - {grid[peer] for peer in neighbours[cell]}:
            if len(found) < limit:
                grid[cell] = digit
                search(grid)
                grid[cell] = 0

    search(list(puzzle))
    return found


def solved_by_single_candidates(box: tuple[int, int], puzzle: list[int]) -> bool:
    """Whether filling cells that have one candidate left solves it."""
    size, grid = box[0] * box[1], list(puzzle)
    while True:
        options = {c: set(range(1, size + 1)) - {grid[p] for p in peers(box, c)} for c, d in enumerate(grid) if not d}
        cell = next((cell for cell, digits in options.items() if len(digits) == 1), None)
        if cell is None:
            return not options
        grid[cell] = options[cell].pop()


def digits(text: np.ndarray) -> list[list[int]]:
    """(n, cells) ASCII -> digits, 0 for a blank."""
    return [[0 if code == ord(".") else code - ord("0") for code in row] for row in text.tolist()]


def test_all_4x4_grids() -> None:
    grids = all_4x4_grids().tolist()
    assert sorted(grids) == sorted(solutions_of((2, 2), [0] * 16, limit=1000))
    assert len(grids) == 288


def count_solutions(box: tuple[int, int], puzzle: np.ndarray, limit: int) -> int:
    """What the compiled search finds for one puzzle (cells,), blanks 0."""
    size = box[0] * box[1]
    return _search(_units(box), puzzle, limit, np.tile(np.arange(size), (size * size, 1)), np.zeros_like(puzzle))[0]


def test_count_solutions_of_4x4_exhaustively() -> None:
    grids, rng = all_4x4_grids(), np.random.default_rng(2)
    counts = []
    for grid in grids[rng.integers(0, 288, 200)]:
        puzzle = np.where(rng.random(16) < rng.uniform(0.1, 0.6), grid, 0).astype(np.uint8)
        given = puzzle > 0
        counts.append(int((grids[:, given] == puzzle[given]).all(axis=1).sum()))
        assert count_solutions((2, 2), puzzle, 1000) == counts[-1]
        assert count_solutions((2, 2), puzzle, 2) == min(counts[-1], 2)
    assert {1, 2, 288} & set(counts) >= {1, 2}
    assert count_solutions((2, 2), np.array([1, 1, *[0] * 14], np.uint8), 2) in (0, 1, 2)
    assert count_solutions((2, 2), np.array([1, 2, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0], np.uint8), 2) == 0


@pytest.mark.parametrize("box", BOXES)
def test_puzzles_have_one_solution_and_no_needless_clue(box: tuple[int, int]) -> None:
    made = generate_sudokus(box, 6, 3, np.random.SeedSequence(5))
    for questions, answers, ratings in made.values():
        for question, answer, rating in zip(digits(questions), digits(answers), ratings, strict=True):
            assert solutions_of(box, question, limit=2) == [answer]
            assert (rating == 0) == solved_by_single_candidates(box, question)
            for cell in [cell for cell, digit in enumerate(question) if digit][::3]:
                spared = [0 if c == cell else digit for c, digit in enumerate(question)]
                assert len(solutions_of(box, spared, limit=2)) == 2


@pytest.mark.parametrize("box", BOXES)
def test_splits_share_nothing(box: tuple[int, int]) -> None:
    made = generate_sudokus(box, 300, 100, np.random.SeedSequence(1), extra_clues=2)
    (train, train_answers, _), (test, test_answers, _) = made["train"], made["test"]
    assert (len(train), len(test)) == (300, 100)
    assert len({row.tobytes() for row in np.concatenate([train, test])}) == 400
    solutions = [{row.tobytes() for row in answers} for answers in (train_answers, test_answers)]
    assert not solutions[0] & solutions[1]
    if box == (2, 2):
        assert [len(part) for part in solutions] == [216, 72]  # all 288, in proportion
    else:
        assert [len(part) for part in solutions] == [300, 100]


def test_4x4_puzzles_are_all_different() -> None:
    questions, answers, _ = generate_sudokus((2, 2), 5000, 10, np.random.SeedSequence(1))["train"]
    assert len(np.unique(questions, axis=0)) == 5000
    carved, _, _ = carve((2, 2), answers - ord("0"), 0, np.random.default_rng(1))
    assert len(np.unique(carved, axis=0)) < 5000  # chance alone repeats some


def test_extra_clues_vary_the_number_of_clues() -> None:
    grids = random_grids((3, 3), 300, np.random.default_rng(0))
    extras = [3, 0]
    clues = []
    for extra in extras:
        questions, answers, _ = carve((3, 3), grids, extra, np.random.default_rng(7))
        assert (answers == grids).all()
        clues.append((questions > 0).sum(axis=1))
    counts = np.bincount(clues[0] - clues[1], minlength=4)  # the removals are the same, the last ones taken back
    assert counts.sum() == 300
    assert len(counts) == 4
    assert (abs(counts - 75) < 4 * (300 * 0.25 * 0.75) ** 0.5).all()


def test_random_grids_are_valid_and_varied() -> None:
    for box in BOXES:
        size = box[0] * box[1]
        grids = random_grids(box, 500, np.random.default_rng(3))
        for grid in grids[:50].tolist():
            assert all(grid[cell] != grid[peer] for cell in range(size * size) for peer in peers(box, cell))
        # Every digit as often as any other in the corner and in the centre: 5 standard deviations.
        for cell in (0, size * size // 2):
            counts = np.bincount(grids[:, cell], minlength=size + 1)[1:]
            assert (abs(counts - 500 / size) < 5 * (500 / size) ** 0.5).all()


def test_min_rating_and_seed() -> None:
    first, again, other = (
        generate_sudokus((3, 3), 20, 5, np.random.SeedSequence(seed), min_rating=30) for seed in (1, 1, 2)
    )
    for split in ("train", "test"):
        assert (first[split][2] >= 30).all()
        for a, b, c in zip(first[split], again[split], other[split], strict=True):
            assert (a == b).all()
            assert (a != c).any()


def test_gives_up_with_a_reason() -> None:
    with pytest.raises(UserError, match=r"found 0 of 5 different 4×4 Sudokus \(rating >= 50.*lower --min-difficulty"):
        generate_sudokus((2, 2), 5, 5, np.random.SeedSequence(0), min_rating=50)


def test_code_without_a_place_for_its_machine_code_is_compiled_all_the_same():
    names = {}
    exec("def double(x):\n    return 2 * x", names)  # from no file, so that numba finds no place beside it
    with pytest.raises(RuntimeError, match="cannot cache"):
        njit(cache=True)(names["double"])
    assert compiled(names["double"])(21) == 42


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(143), OSError("else")])
def test_a_signal_is_not_lost_in_compiled_code(raised):
    """Numba makes a SystemError of what a signal's handler raises while its code runs."""
    with pytest.raises(SystemError if isinstance(raised, OSError) else type(raised)), interruptible():
        raise SystemError("returned a result with an exception set") from raised
