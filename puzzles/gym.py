"""The scorers of reasoning-gym's tasks as rules, `reasoning-gym:task`, for puzzles that have several right answers.

The package is optional: it is imported when a rule is first asked. Where it is absent, a dataset with such a rule has
no rule, and trains and evaluates by its stated answers.

A rule gets a puzzle and an answer as dataset/gym_readers.py draws them. It reads out of the puzzle what the package's
scorer asks of an entry, and writes the answer as the package would have it.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from errors import UserError, first_line
from puzzles.cells import Rows

PACKAGE = "reasoning_gym"
PREFIX = "reasoning-gym:"
ARROWS = {"↑": ("up", -1, 0), "→": ("right", 0, 1), "↓": ("down", 1, 0), "←": ("left", 0, -1)}


def is_installed() -> bool:
    return sys.modules[PACKAGE] is not None if PACKAGE in sys.modules else find_spec(PACKAGE) is not None


def load_package() -> ModuleType:
    """The package. Raises `UserError` where it, or what it needs, is absent."""
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise UserError(f"reasoning-gym cannot be imported ({first_line(error)}): pip install reasoning-gym") from None


def find_scorer(rule: str) -> Callable[[list, list], list[str]]:
    """The rule of this name: rows of a puzzle and of an answer -> what is wrong. `UserError` if there is none."""
    score = _SCORES.get(rule.removeprefix(PREFIX))
    if score is None:
        known = ", ".join(PREFIX + task for task in _SCORES)
        raise UserError(f"there is no rule {rule!r:.80}; those that judge by reasoning-gym's scorers are {known}")
    return partial(_judge, score)


def scorer_of(task: str) -> str | None:
    """The name of the task's rule, if it has one."""
    return PREFIX + task if task in _SCORES else None


def _judge(score: Callable[[Rows, Rows], float], puzzle: list[list], answer: list[list]) -> list[str]:
    load_package()
    sides = ([[None if cell is None else str(cell) for cell in row] for row in rows] for rows in (puzzle, answer))
    try:
        found = score(*sides)
    except Exception as error:  # a model may answer anything; of that, only a part can be written as an answer
        return [f"reasoning-gym's scorer cannot read it: {type(error).__name__}: {first_line(error):.200}"]
    return [] if found == 1 else ["reasoning-gym's scorer finds that it does not solve the puzzle"]


@lru_cache(32)
def _task(name: str) -> Any:
    """The task; its scorer judges all configurations alike."""
    return load_package().create_dataset(name, seed=0, size=1)


# Scores of an answer to a puzzle: 1 if it is right. They may raise whatever an answer leads to.


def _queens(puzzle: Rows, answer: Rows) -> float:
    task, solutions = _all_queens(len(puzzle))
    given = [place for place, cell in enumerate(_written(puzzle)) if cell == "Q"]
    right = [solution for solution in solutions if all(solution[place] == "Q" for place in given)]
    return task.score_answer(_written(answer), {"answer": None, "metadata": {"valid_answers": right}})


@lru_cache(2)
def _all_queens(size: int) -> tuple:
    """The task and all full boards of this size: the answers of a puzzle from which every queen was removed."""
    task = load_package().create_dataset("n_queens", n=size, min_remove=size, max_remove=size, size=1, seed=0)
    return task, task[0]["metadata"]["valid_answers"]


def _expression(puzzle: Rows, answer: Rows) -> float:
    """Of `puzzle24` too, whose own scorer does not ask which numbers were used."""
    text = _text(answer)
    # SymPy runs what it reads: a dataset, which may be anybody's, may hold any code, and a tower of powers has no end.
    if not re.fullmatch("[0-9+*/()-]+", text) or "**" in text or "//" in text:
        return 0
    numbers, _, target = _text(puzzle).partition("=")
    asked = {"numbers": [int(number) for number in numbers.split(",")], "target": int(target or 24)}
    return _task("countdown").score_answer(text, {"metadata": asked})


def _cryptarithm(puzzle: Rows, answer: Rows) -> float:
    pairs = {pair for rows in zip(puzzle, answer, strict=True) for pair in zip(*rows, strict=True)}
    digits = sorted(pair for pair in pairs if pair[0] is not None and pair[0].isalpha())
    if len(digits) > len(dict(digits)) or any(one != other for one, other in pairs.difference(digits)):
        return 0  # a letter has two digits, or a sign has become another
    *words, total = ("".join(filter(None, row[1:])) for row in puzzle)
    asked = {"words_letters": words, "result_letters": total, "allow_leading_zero": puzzle[-1][0] == "≡"}
    return _task("cryptarithm").score_answer(",".join(map("=".join, digits)), {"metadata": asked})


def _graph_color(puzzle: Rows, answer: Rows) -> float:
    colours, *matrix = puzzle
    vertices = list(range(len(matrix)))
    edges = [(one, other) for one in vertices for other in vertices[one:] if matrix[one][other] == "#"]
    asked = {"vertices": vertices, "edges": edges, "color_options": [int(colour) for colour in colours if colour]}
    colouring = dict(zip(vertices, map(int, _row(answer)), strict=True))
    return _task("graph_color").score_answer(json.dumps(colouring), {"metadata": {"puzzle": asked}})


def _jugs(puzzle: Rows, answer: Rows) -> float:
    *capacities, _, target = _row(puzzle)
    asked = {"jug_capacities": [int(capacity) for capacity in capacities], "target": int(target)}
    verbs = {"+": "fill ", "-": "empty "}
    moves = [verbs.get(move[0], "pour ") + move.lstrip("+-").replace("→", "->") for move in _row(answer)]
    return _task("jugs").score_answer(json.dumps(moves), {"metadata": {"puzzle": asked}})


def _kakurasu(puzzle: Rows, answer: Rows) -> float:
    *filled, below = answer
    right = [row.pop() for row in filled]
    if below != puzzle[-1] or right != [row[-1] for row in puzzle[:-1]]:
        return 0
    asked = {"row_sums": [*map(int, right)], "col_sums": [*map(int, below[:-1])]}
    asked |= {"n_rows": len(right), "n_cols": len(below) - 1}
    return _task("kakurasu").score_answer(_written(filled), {"metadata": asked})


def _palindrome(puzzle: Rows, answer: Rows) -> float:
    return _task("palindrome_generation").score_answer(_text(answer), {"metadata": {"letters": _row(puzzle)}})


def _quantum_lock(puzzle: Rows, answer: Rows) -> float:
    (number, light, target), *rows = puzzle
    kinds = {"+": "add", "-": "subtract", "*": "multiply"}
    buttons = [
        {"name": name, "type": kinds[sign], "value": int(value), "active_state": active}
        for name, (sign, value, active) in zip("ABC", rows, strict=True)
    ]
    asked = {"initial_value": int(number), "initial_state": light, "target_value": int(target), "buttons": buttons}
    presses = _row(answer)
    if not set(presses) <= set("ABC"):
        return 0
    shortest = "A" * _fewest_presses(asked)
    return _task("quantum_lock").score_answer(" → ".join(presses), {"answer": shortest, "metadata": asked})


def _fewest_presses(asked: dict) -> int:
    """How many presses lead to the target, in breadth; the package asks for 15 at most."""
    reached, done, presses = {(asked["initial_value"], asked["initial_state"])}, set(), 0
    while asked["target_value"] not in {number for number, _ in reached}:
        if presses == 15:
            raise ValueError("the target cannot be reached")
        done |= reached
        reached = {_press(button, *state) for state in reached for button in asked["buttons"]} - done
        presses += 1
    return presses


def _press(button: dict, number: int, light: str) -> tuple[int, str]:
    if button["active_state"] not in (light, "any"):
        return number, light
    value = button["value"]
    results = {"add": number + value, "subtract": number - value, "multiply": number * value}
    return results[button["type"]], {"red": "green", "green": "red"}[light]


def _rubiks_cube(puzzle: Rows, answer: Rows) -> float:
    """As the package's scorer does: turn the cube, and look. (That one makes the cube from what scrambled it.)"""
    size = len(puzzle) // 3
    strips = [[cell for cell in row if cell is not None] for row in puzzle]
    sides = strips[size : 2 * size]
    faces = [strips[:size], *([row[place : place + size] for row in sides] for place in range(0, 4 * size, size))]
    maker = importlib.import_module(f"{PACKAGE}.cognition.rubiks_cube").Cube
    cube = maker(size, "".join(cell for face in [*faces, strips[2 * size :]] for row in face for cell in row))
    cube.rotate(" ".join(_row(answer)))
    return float(cube.is_done())


def _shortest_path(puzzle: Rows, answer: Rows) -> float:
    cells, drawn = _places(puzzle), _places(answer)
    place = next(place for place, cell in cells.items() if cell == "*")
    path, passed = [], set()
    while drawn.get(place) in ARROWS and place not in passed:
        passed.add(place)
        step, down, right = ARROWS[drawn[place]]
        path.append(step)
        place = place[0] + down, place[1] + right
    if cells.keys() != drawn.keys() or any(drawn[place] != cells[place] for place in cells.keys() - passed):
        return 0  # an arrow that is not on the path, or a cell that has become another
    task = _task("shortest_path")
    shortest = " ".join(task._get_answer(puzzle)) or "infeasible"
    entry = {"answer": shortest, "metadata": {"matrix": puzzle}}
    return task.score_answer(" ".join(path) or "infeasible", entry)


def _sokoban(puzzle: Rows, answer: Rows) -> float:
    moves = _sequence(answer)
    if not set(moves) <= set("UDLR"):
        return 0
    return _task("sokoban").score_answer("".join(moves), {"metadata": {"gamestr": _written(puzzle)}})


def _tower_of_hanoi(puzzle: Rows, answer: Rows) -> float:
    pegs, start, target = ([int(cell) for cell in row if cell is not None] for row in puzzle)
    disks = {peg: [disk for disk, at in enumerate(start, start=1) if at == peg] for peg in pegs}
    lines = []
    for move in _sequence(answer):
        source, goal = map(int, move.split("→"))
        disk = disks[source].pop(0)
        disks[goal].insert(0, disk)
        lines.append(f"Move disk {disk} from Peg {source} to Peg {goal}")
    asked = {"num_disks": len(start), "num_pegs": len(pegs), "start_peg": start[0], "target_peg": target[0]}
    asked["solution_length"] = _moves_of_hanoi(len(start), len(pegs))
    return _task("tower_of_hanoi").score_answer("\n".join(lines), {"metadata": asked})


@lru_cache
def _moves_of_hanoi(disks: int, pegs: int) -> int:
    """The fewest moves, by Frame and Stewart, as the package counts them."""
    if disks < 2 or pegs == 3:
        return 2**disks - 1
    return min(2 * _moves_of_hanoi(top, pegs) + _moves_of_hanoi(disks - top, pegs - 1) for top in range(1, disks))


# How answers are written


def _row(rows: Rows) -> list[str]:
    [row] = rows
    return row


def _text(rows: Rows) -> str:
    return "".join(_row(rows))


def _sequence(rows: Rows) -> list[str]:
    """A sequence that is written in several rows, the last of which may end in holes."""
    cells = [cell for row in rows for cell in row]
    while cells[-1] is None:
        cells.pop()
    return cells


def _places(rows: Rows) -> dict[tuple[int, int], str | None]:
    return {(r, c): cell for r, row in enumerate(rows) for c, cell in enumerate(row)}


def _written(rows: Rows) -> str:
    return "\n".join(" ".join("?" if cell is None else cell for cell in row) for row in rows)


# The scorers of the other tasks compare with the stated answer, as exact match does.
_SCORES: dict[str, Callable[[Rows, Rows], float]] = {
    "countdown": _expression,
    "cryptarithm": _cryptarithm,
    "graph_color": _graph_color,
    "jugs": _jugs,
    "kakurasu": _kakurasu,
    "n_queens": _queens,
    "palindrome_generation": _palindrome,
    "puzzle24": _expression,
    "quantum_lock": _quantum_lock,
    "rubiks_cube": _rubiks_cube,
    "shortest_path": _shortest_path,
    "sokoban": _sokoban,
    "tower_of_hanoi": _tower_of_hanoi,
}
