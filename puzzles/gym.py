"""The scorers of reasoning-gym's tasks as rules, `reasoning-gym:task`, for puzzles that have several right answers.

The package is optional: it is imported when a rule is first asked. Where it is absent, a dataset with such a rule has
no rule, and trains and evaluates by its stated answers.
"""

import importlib
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

from errors import UserError, first_line

PACKAGE = "reasoning_gym"
PREFIX = "reasoning-gym:"


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
    scorer = _SCORERS.get(rule.removeprefix(PREFIX))
    if scorer is None:
        known = ", ".join(PREFIX + task for task in _SCORERS)
        raise UserError(f"there is no rule {rule!r:.80}; those that judge by reasoning-gym's scorers are {known}")
    return scorer


def scorer_of(task: str) -> str | None:
    """The name of the task's rule, if it has one."""
    return PREFIX + task if task in _SCORERS else None


def _score_queens(puzzle: list[list], answer: list[list]) -> list[str]:
    try:
        dataset, solutions = _all_queens(len(puzzle))
    except AssertionError as error:  # which is how the package refuses a size
        return [f"reasoning-gym has no such board: {error}"]
    text = _written(answer)
    given = [place for place, cell in enumerate(_written(puzzle)) if cell == "Q"]
    right = [solution for solution in solutions if all(solution[place] == "Q" for place in given)]
    score = dataset.score_answer(text, {"answer": None, "metadata": {"valid_answers": right}})
    return [] if score == 1 else ["reasoning-gym's scorer finds that it does not complete the puzzle"]


@lru_cache(2)
def _all_queens(size: int) -> tuple:
    """The task and all full boards of this size: the answers of a puzzle from which every queen was removed."""
    load = load_package()
    dataset = load.create_dataset("n_queens", n=size, min_remove=size, max_remove=size, size=1, seed=0)
    return dataset, dataset[0]["metadata"]["valid_answers"]


def _written(rows: list[list]) -> str:
    return "\n".join(" ".join("?" if cell is None else str(cell)[:1] for cell in row) for row in rows)


# The scorers of the other grid tasks compare with the stated answer, as exact match does.
_SCORERS: dict[str, Callable[[list, list], list[str]]] = {"n_queens": _score_queens}
