"""Whether an answer obeys the rules of its puzzle, without a label; and what it breaks.

Boards are token arrays as in the datasets, row by row: Sudokus of 4×4, 6×6 and 9×9, mazes of any square. A Sudoku is
right when every row, column and box holds every digit once and the clues are kept: with several solutions, any of them
is. A maze is right when S, G and the `o` cells form one path, each cell beside only the one before and the one after
it, and nothing else has changed; the path need not be a shortest one.
"""

from functools import lru_cache
from math import isqrt

import numpy as np

from puzzles.maze import CHARACTERS, FREE, GOAL, PATH, START, WALL
from puzzles.sudoku import BOXES

BLANK, FIRST_DIGIT = 1, 2  # Sudoku tokens: digit d is d + 1


@lru_cache
def sudoku_units(size: int) -> dict[str, np.ndarray]:
    """`row`, `column` and `box` -> (size, size): the cells of each."""
    box_rows, box_columns = BOXES[size]
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // box_rows, box_rows, size // box_columns, box_columns).swapaxes(1, 2)
    return {"row": cells, "column": cells.T, "box": boxes.reshape(size, size)}


def is_valid_sudoku(inputs: np.ndarray, answer: np.ndarray) -> np.ndarray | bool:
    """Puzzles and answers (…, cells) -> (…) bool."""
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    size = isqrt(answer.shape[-1])
    units = np.concatenate(list(sudoku_units(size).values()))  # (3 size, size)
    complete = np.sort(answer[..., units], axis=-1) == np.arange(FIRST_DIGIT, FIRST_DIGIT + size)
    return complete.all((-2, -1)) & ((inputs == BLANK) | (inputs == answer)).all(-1)


def sudoku_violations(inputs: np.ndarray, answer: np.ndarray) -> list[str]:
    """What is wrong with the answer (cells,) to one puzzle (cells,), in words; empty where it is right."""
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    size, found = isqrt(len(answer)), []
    empty = np.flatnonzero((answer < FIRST_DIGIT) | (answer >= FIRST_DIGIT + size))
    found += [f"{_cell(cell, size)} is empty" for cell in empty]
    changed = np.flatnonzero((inputs != BLANK) & (inputs != answer) & ~np.isin(np.arange(len(answer)), empty))
    found += [f"the clue {inputs[cell] - 1} at {_cell(cell, size)} has become {answer[cell] - 1}" for cell in changed]
    return found + [
        f"{unit} {which + 1} has {_times(len(cells))} {digit}s" for unit, which, digit, cells in repeated_digits(answer)
    ]


def repeated_digits(tokens: np.ndarray) -> list[tuple[str, int, int, np.ndarray]]:
    """(unit, its index, digit, cells) of each digit that stands twice or more in a unit of a Sudoku (cells,)."""
    size = isqrt(len(tokens))
    found = []
    for unit, members in sudoku_units(size).items():
        for which, cells in enumerate(members):
            for digit in range(1, size + 1):
                same = cells[tokens[cells] == digit + 1]
                if len(same) > 1:
                    found.append((unit, which, digit, same))
    return found


def _cell(cell: int, size: int) -> str:
    return f"row {cell // size + 1}, column {cell % size + 1}"


def _times(count: int) -> str:
    return {2: "two", 3: "three", 4: "four"}.get(count, str(count))


def is_valid_maze_path(inputs: np.ndarray, answer: np.ndarray) -> np.ndarray | bool:
    """Mazes and answers (…, cells) -> (…) bool."""
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    kept = ((answer == inputs) | ((inputs == FREE) & (answer == PATH))).all(-1)
    ends = ((answer == START).sum(-1) == 1) & ((answer == GOAL).sum(-1) == 1)
    path, neighbours = _path_cells(answer)
    simple = (~path | (neighbours == np.where(_squares(answer) == PATH, 2, 1))).all((-2, -1))
    return kept & ends & simple & (_reached_from_start(answer) == path).all((-2, -1))


def maze_violations(inputs: np.ndarray, answer: np.ndarray) -> list[str]:
    """What is wrong with the answer (cells,) to one maze (cells,), in words; empty where it is right."""
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    size = isqrt(len(answer))
    found = []
    for cell in np.flatnonzero((answer != inputs) & ~((inputs == FREE) & (answer == PATH))):
        found.append(f"{_cell_name(inputs[cell])} at {_cell(cell, size)} has become {_cell_name(answer[cell])}")
    if (answer == START).sum() != 1 or (answer == GOAL).sum() != 1:
        return found or ["the maze has not exactly one S and one G"]
    path, neighbours = (grid.ravel() for grid in _path_cells(answer))
    for cell in np.flatnonzero(path):
        wanted = 2 if answer[cell] == PATH else 1
        if neighbours[cell] < wanted:
            found.append(f"the path breaks off at {_place(answer[cell], cell, size)}")
        elif neighbours[cell] > wanted:
            found.append(f"the path branches or touches itself at {_place(answer[cell], cell, size)}")
    apart = (path & ~_reached_from_start(answer).ravel()).sum()
    if apart and not found:
        found.append(f"{apart} cells form a loop apart from the path")
    return found


def _cell_name(token: int) -> str:
    return {WALL: "a wall", FREE: "a free cell", PATH: "a path cell", START: "S", GOAL: "G"}.get(int(token), "nothing")


def _place(token: int, cell: int, size: int) -> str:
    name = f"{CHARACTERS[token - 1]}, " if token in (START, GOAL) else ""
    return name + _cell(cell, size)


def _squares(boards: np.ndarray) -> np.ndarray:
    size = isqrt(boards.shape[-1])
    return boards.reshape(*boards.shape[:-1], size, size)


def _path_cells(answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, cells) -> (…, size, size): which cells are S, G or `o`, and how many of the four neighbours are."""
    path = _squares(answer) >= START
    framed = _framed(path).astype(np.int8)
    return path, sum(framed[..., rows, columns] for rows, columns in _NEIGHBOURS)


def _reached_from_start(answer: np.ndarray) -> np.ndarray:
    """(…, cells) -> (…, size, size): the cells to which S, G and `o` cells lead from S."""
    return _spread(_squares(answer) == START, _squares(answer) >= START)[0]


def shortest_path_steps(inputs: np.ndarray) -> int | None:
    """Moves on a shortest path from S to G in one maze (cells,); None where there is none."""
    grid = _squares(np.asarray(inputs))
    reached, steps = _spread(grid == START, grid != WALL, until=grid == GOAL)
    return steps if (reached & (grid == GOAL)).any() else None


# The four neighbours of every cell, as slices of a board with a frame one cell wide.
_NEIGHBOURS = tuple(
    (slice(1 + row, row - 1 or None), slice(1 + column, column - 1 or None))
    for row, column in ((-1, 0), (1, 0), (0, -1), (0, 1))
)


def _framed(grids: np.ndarray) -> np.ndarray:
    return np.pad(grids, [(0, 0)] * (grids.ndim - 2) + [(1, 1), (1, 1)])


def _spread(start: np.ndarray, open_cells: np.ndarray, until: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Breadth-first, in all boards (…, size, size) at once: the cells reached, and after how many rounds."""
    reached, steps = start & open_cells, 0
    while until is None or not (reached & until).any():
        framed = _framed(reached)
        grown = reached | (open_cells & np.logical_or.reduce([framed[..., r, c] for r, c in _NEIGHBOURS]))
        if np.array_equal(grown, reached):
            break
        reached, steps = grown, steps + 1
    return reached, steps
