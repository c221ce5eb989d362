"""A rule of one's own, `module:function`, for puzzles that are described by their dataset alone.

The function gets a puzzle and an answer as lists of rows, with cells as they are in the files that the dataset was
built from (None in a hole; last rows and columns that are nothing but holes are left out). It returns whether the
answer obeys the rule, or a list of sentences that say what it breaks. Its module lies in a folder that PYTHONPATH names
in full: a dataset may be anybody's, and must not be able to call whatever Python can import. `reasoning-gym:task`
stands for a scorer of that package (puzzles/gym.py).
"""

import importlib
import os
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from errors import UserError, first_line
from puzzles import gym

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


class RuleFailed(UserError):
    """The function raised an error: its own fault or, where it expects another form of answer, the answer's."""


@lru_cache
def find_rule(name: str) -> Callable[[list, list], Any]:
    """The function of this name. Raises `UserError` if there is none."""
    if name.startswith(gym.PREFIX):
        return gym.find_scorer(name)
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"the rule {name!r:.80} is not of the form module:function")
    folders = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    module, function = match.groups()
    missing = UserError(
        f"the rule {name}: there is no module {module} in a folder on PYTHONPATH; name its folder there, in full"
    )
    if PathFinder.find_spec(module.partition(".")[0], folders) is None:
        raise missing
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"the rule {name}: {type(error).__name__}: {first_line(error)}; correct its module") from error
    file = Path(getattr(loaded, "__file__", None) or os.devnull).resolve()
    if not any(file.is_relative_to(Path(folder).resolve()) for folder in folders):
        raise missing
    found = getattr(loaded, function, None)
    if not callable(found):
        raise UserError(f"the rule {name}: {file} has no function {function}; write it, or name another")
    return found


def can_be_asked(name: str) -> bool:
    """False for a scorer of reasoning-gym where that is not installed; a rule of one's own must be there."""
    return not name.startswith(gym.PREFIX) or gym.is_installed()


def broken_rules(name: str, puzzle: list, answer: list) -> list[str]:
    """What the rule of this name says of an answer: sentences, none if it obeys.

    Raises `RuleFailed` if it fails, and `UserError` if there is none or it returns something else.
    """
    try:
        said = find_rule(name)(puzzle, answer)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise RuleFailed(f"the rule {name} failed: {type(error).__name__}: {first_line(error)}") from error
    if isinstance(said, list | tuple):
        return [str(sentence) for sentence in said]
    if type(said).__name__ not in ("bool", "bool_"):  # Python's and NumPy's
        raise UserError(f"the rule {name} returned {said!r:.40}; it is to return True, False or a list of sentences")
    return [] if said else ["it does not obey the rule"]
