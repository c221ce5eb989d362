"""Stands in for the package reasoning-gym: a few tasks that make entries of the same shapes, the others recorded.

python -m tests.fake_gym        # where the package is installed: record them anew
"""

import json
import random
import sys
from functools import cache, partial
from importlib.util import find_spec
from itertools import count, islice, permutations
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace

import pytest

import puzzles.gym
from dataset.gym_readers import READERS
from dataset.gym_tasks import GymTask

RECORDED = Path(__file__).parent / "reference" / "gym_entries.json"
ENTRIES = 6  # of each task; train has the even ones, test the odd ones
QUESTIONS_ARE_READ = {"ab", "list_functions", "modulo_grid", "path_star", "rubiks_cube"}
SMALLER = {  # than what the package makes by itself, in seconds each
    "futoshiki": {"max_board_size": 4, "max_difficulty": 1},
    "sokoban": {"max_w": 7, "max_h": 7, "min_boxes": 2, "max_boxes": 3, "max_depth": 40},
}
NO_PACKAGE = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="no reasoning-gym")


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


class Recorded(Task):
    """Entries that the package made. Its scorer knows their answers, if it is asked what is in the metadata."""

    def __init__(self, name: str, seed: int = 0, size: int = 1, **config):
        self.name, self.seed = name, seed
        self.rules = [(rule, None) for entry in recorded(name) for rule in entry["metadata"].get("selected_rules", ())]

    def __getitem__(self, index: int) -> dict:
        return recorded(self.name)[(self.seed + index) % ENTRIES]

    def score_answer(self, answer, entry) -> float:
        asked = {key: value for key, value in entry["metadata"].items() if value != 24}  # which puzzle24 does not say
        others = ("puzzle24",) if self.name == "countdown" else ()
        return float(
            any(
                says(known["metadata"], asked) and says(known["answer"], answer)
                for name in (self.name, *others)
                for known in recorded(name)
            )
        )

    def _would_capture(self, board, row, column, colour):
        move = f"{chr(ord('A') + column)}{len(board) - row}"
        return any(entry["metadata"]["board"] == board and entry["answer"] == move for entry in recorded(self.name))

    def _get_answer(self, matrix):
        return next(
            entry["metadata"]["solution"] for entry in recorded(self.name) if entry["metadata"]["matrix"] == matrix
        )


class Cube:
    """The package's cube: it is done if it is a recorded one, turned as is recorded."""

    def __init__(self, size: int, state: str):
        self.state = state

    def rotate(self, moves: str) -> None:
        self.moves = moves

    def is_done(self) -> bool:
        return any(
            (self.state, self.moves) == (state_in(entry["question"]), entry["answer"])
            for entry in recorded("rubiks_cube")
        )


def state_in(question: str) -> str:
    """The colours of a cube of 3, face by face."""
    rows = [line.split() for line in question.split("\n") if not line.strip(" WYRGBO") and line.strip()]
    sides = [row[column : column + 3] for column in range(0, 12, 3) for row in rows[3:6]]
    return "".join(cell for row in (*rows[:3], *sides, *rows[6:]) for cell in row)


def back(moves: str) -> list[str]:
    return [move.strip("'") + "'" * ("'" not in move) for move in reversed(moves.split())]


def says(known, asked) -> bool:
    """Whether what is asked of is all in what is known, blanks apart."""
    if isinstance(asked, dict):
        return all(key in known and says(known[key], value) for key, value in asked.items())
    if isinstance(asked, str):
        return "".join(known.split()) == "".join(asked.split())
    return known == json.loads(json.dumps(asked))


@cache
def recorded(name: str) -> list[dict]:
    entries = json.loads(RECORDED.read_text(encoding="utf-8"))[name]
    for entry in entries:
        if name == "graph_color":  # JSON has no numbers for keys
            colouring = {int(vertex): colour for vertex, colour in entry["metadata"]["possible_answer"].items()}
            entry["metadata"]["possible_answer"] = colouring
            entry["answer"] = json.dumps(colouring)
        if name == "rubiks_cube":
            entry["answer"] = " ".join(back(entry["metadata"]["scramble_moves"]))
    return entries


TASKS = {
    "arc_1d": Arc1d, "binary_matrix": Binary, "futoshiki": Futoshiki, "game_of_life": Life, "mini_sudoku": Sudoku,
    "n_queens": Queens, "rearc": ReArc, "rotate_matrix": Rotation, "rotten_oranges": Oranges, "spiral_matrix": Spiral,
    "sudoku": Sudoku, "arc_agi": Oranges, "rush_hour": Oranges,
}  # fmt: skip
TASKS |= {name: partial(Recorded, name) for name in READERS.keys() - TASKS.keys()}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import reasoning_gym` find this one, which no task stays of."""
    for name in ("_task", "_all_queens"):
        monkeypatch.setattr(puzzles.gym, name, cache(getattr(puzzles.gym, name).__wrapped__))
    package = ModuleType("reasoning_gym")
    package.create_dataset = lambda name, **config: TASKS[name](**config)
    package.factory = SimpleNamespace(DATASETS=TASKS)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.cognition.rubiks_cube", SimpleNamespace(Cube=Cube))


def record() -> None:
    unread = {"difficulty", "source_dataset", "source_index", "source_idx", "bfit_code", "example_correct_answer"}
    lines = []
    for name in sorted(name for name, task in TASKS.items() if isinstance(task, partial)):
        task = GymTask(name, SMALLER.get(name, {}), seed=1)
        entries = list(islice(filter(READERS[name], map(task.entry, count())), ENTRIES))
        for entry in entries:
            entry["metadata"] = {key: value for key, value in entry["metadata"].items() if key not in unread}
            entry["question"] = entry["question"] if name in QUESTIONS_ARE_READ else ""
        lines.append(f"{json.dumps(name)}: {json.dumps(entries, ensure_ascii=False)}")
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
