"""The trained models in pretrained/, found by the puzzles that they solve.

A folder says with its `dataset.json`, the description of the split that it was trained on, of which kind and size these
are; nothing else is known of it here. `python -m training.hub pack` makes such a folder.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError, warn
from evaluators.solution import check_cells, description_in, read_typed
from puzzles.kind import Kind, Puzzle, read_puzzle, with_article
from training.checkpoints import SHARED

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
NAME_ONE = "name one with checkpoint=…"


@dataclass(frozen=True)
class Pretrained:
    checkpoint: Path
    kind: Kind  # what it was trained on


def pretrained_models() -> list[Pretrained]:
    """Those that are there, by name. Passes over a folder whose description is damaged, with a warning on stderr."""
    models = []
    for place in sorted(FOLDER.glob(f"*/{SHARED}")):
        try:
            _, kind = description_in(place.parent) or (None, None)
        except UserError as error:
            warn(f"passing over pretrained/{place.parent.name}: {error}")
            continue
        if kind is not None:
            models.append(Pretrained(place, kind))
    return models


def read_for_pretrained(puzzle: str | np.ndarray, source: str, models: Sequence[Pretrained]) -> Puzzle:
    """Read a puzzle as people write it, of the kind and size of one of the models.

    Raises a `UserError` if it is no puzzle, or one that no model was trained on.
    """
    if not isinstance(puzzle, str):
        check_cells(puzzle, source)
    for model in models:
        with suppress(UserError):
            found = read_typed(puzzle, source, model.kind)
            if found.kind == model.kind:
                return found
    if not isinstance(puzzle, str):
        for model in models:
            if puzzle.shape == (model.kind.rows, model.kind.columns):
                read_typed(puzzle, source, model.kind)  # which says what is wrong with its cells
        raise no_model_of(f"boards of {'×'.join(map(str, puzzle.shape))} such as {source}", models)
    raise no_model_of(with_article(read_puzzle(puzzle, source).title), models)


def no_model_of(what: str, models: Sequence[Pretrained]) -> UserError:
    """The error for puzzles that none of the models was trained on."""
    there = ", ".join(f"{model.checkpoint.parent.name} for {model.kind.title}s" for model in models) or "none"
    return UserError(f"no model in pretrained/ was trained on {what} (it has {there}); {NAME_ONE}")
