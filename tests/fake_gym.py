"""Stands in for the package reasoning-gym: a few of its tasks, with entries of the same shapes."""

import random
import sys
from itertools import permutations
from types import MappingProxyType, ModuleType, SimpleNamespace

import pytest


class Task:
    def __init__(self, seed: int, size: int, **config):
        assert size > 0
        self.seed, self.config = seed, {**self.defaults, **config}
        if unknown := config.keys() - self.defaults.keys():
            raise TypeError(f"Config.__init__() got an unexpected keyword argument '{unknown.pop()}'")

    def __getitem__(self, index: int) -> dict:
        question, answer, metadata = self.make(random.Random(self.seed + index), **self.config)
        return {"question": question, "answer": answer, "metadata": metadata}

    def score_answer(self, answer, entry) -> float:
        return float(answer == entry["answer"])


class Sudoku(Task):
    defaults = MappingProxyType({"min_empty": 8})

    def make(self, rng, min_empty):
        names = rng.sample([1, 2, 3, 4], 4)
        solution = [[names[i] for i in row] for row in ((0, 1, 2, 3), (2, 3, 0, 1), (1, 0, 3, 2), (3, 2, 1, 0))]
        puzzle = [list(row) for row in solution]
        for cell in rng.sample(range(16), min_empty):
            puzzle[cell // 4][cell % 4] = 0
        return "Solve it:", "", {"puzzle": puzzle, "solution": solution}


class Futoshiki(Task):
    defaults = MappingProxyType({"max_board_size": 3})

    def make(self, rng, max_board_size):
        names, shown = rng.sample([1, 2, 3], 3), rng.randrange(9)
        solution = [[names[(r + c) % 3] for c in range(3)] for r in range(3)]
        puzzle = [[solution[r][c] if 3 * r + c == shown else 0 for c in range(3)] for r in range(3)]
        pairs = ((0, 0, 0, 1), (0, 1, 1, 1), (1, 2, 2, 2))
        signs = [(*pair, "<" if solution[pair[0]][pair[1]] < solution[pair[2]][pair[3]] else ">") for pair in pairs]
        return "Solve it:", "", {"puzzle": puzzle, "solution": solution, "constraints": signs}


class Queens(Task):
    defaults = MappingProxyType({"n": 4, "min_remove": 1, "max_remove": 4})

    def make(self, rng, n, min_remove, max_remove):
        assert 4 <= n <= 12, "n must be between 4 and 12"
        boards = []
        for columns in permutations(range(n)):
            if all(abs(columns[i] - columns[j]) != i - j for i in range(n) for j in range(i)):
                boards.append([["Q" if c == column else "_" for c in range(n)] for column in columns])
        puzzle = [list(row) for row in rng.choice(boards)]
        for r in rng.sample(range(n), rng.randint(min_remove, max_remove)):
            puzzle[r] = ["_"] * n
        fits = [b for b in boards if all(b[r] == row for r, row in enumerate(puzzle) if "Q" in row)]
        texts = sorted("\n".join(map(" ".join, board)) for board in fits)
        return "Place them:", rng.choice(texts), {"puzzle": puzzle, "solutions": fits, "valid_answers": texts}

    def score_answer(self, answer, entry):
        return float(answer in entry["metadata"]["valid_answers"])


class Rotation(Task):
    defaults = MappingProxyType({"max_n": 3})

    def make(self, rng, max_n):
        n, turns = rng.randint(2, max_n), rng.randint(0, 10)
        solution = matrix = [[rng.randint(0, 9) for _ in range(n)] for _ in range(n)]
        for _ in range(turns % 4):
            solution = [list(row) for row in zip(*solution[::-1], strict=True)]
        return "Rotate it:", "", {"matrix": matrix, "solution": solution, "num_rotations": turns}


class Binary(Task):
    defaults = MappingProxyType({"max_n": 3})

    def make(self, rng, max_n):
        matrix = [[rng.randint(0, 1) for _ in range(max_n)] for _ in range(max_n)]
        return "Distances of:", "", {"matrix": matrix, "solution": matrix}


class Spiral(Task):
    defaults = MappingProxyType({})

    def make(self, rng):
        a, b, c, d = (rng.randint(0, 9) for _ in range(4))
        return "Spiral of:", "", {"matrix": [[a, b], [c, d]], "solution": [a, b, d, c]}


class Life(Task):
    defaults = MappingProxyType({"size_x": 3})

    def make(self, rng, size_x):
        rows = [[rng.randint(0, 1) for _ in range(size_x)] for _ in range(3)]
        text = ",\n ".join(str(row).replace(" ", "") for row in rows)
        return f"(Empty would be [[0,0,0],[0,0,0]])\n\n[{text}].", str(rows[::-1]), {"simulation_steps": 1}


class ReArc(Task):
    defaults = MappingProxyType({})

    def make(self, rng):
        task = rng.choice("ab")
        grid = tuple(tuple(rng.randint(0, 9) for _ in range(3)) for _ in range(2))
        return "Find:", "", {"input": grid, "output": grid[::-1] if task == "a" else grid[:1], "task_id": task}


class Arc1d(Task):
    defaults = MappingProxyType({})

    def make(self, rng):
        cells = [rng.randint(0, 9) for _ in range(6)]
        return "Find:", "", {"test_example": {"input": cells, "output": cells[::-1]}, "task_name": "flip"}


class Oranges(Task):
    defaults = MappingProxyType({})


TASKS = {
    "arc_1d": Arc1d, "binary_matrix": Binary, "futoshiki": Futoshiki, "game_of_life": Life, "mini_sudoku": Sudoku,
    "n_queens": Queens, "rearc": ReArc, "rotate_matrix": Rotation, "rotten_oranges": Oranges, "spiral_matrix": Spiral,
    "sudoku": Sudoku,
}  # fmt: skip


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import reasoning_gym` find this one."""
    package = ModuleType("reasoning_gym")
    package.create_dataset = lambda name, **config: TASKS[name](**config)
    package.factory = SimpleNamespace(DATASETS=TASKS)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
