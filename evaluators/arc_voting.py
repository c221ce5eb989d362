"""Voting over the augmentations of ARC tasks: predicted grids -> candidates for every test input, and scores.

A prediction is a canvas of tokens (puzzles/arc.py). It is cropped, its augmentation is undone, and the
grid is one vote for a test input of its task: the one that its own input is an augmentation of. Candidates are ordered
by votes, then by the mean of sigmoid(q_halt); among equal ones, that comes first which an earlier example voted for, so
that it does not matter how many processes made the predictions. Torch dictionaries do not say which example a row is
of: there, and where two models voted on one example, the one read first comes first.

This module does not touch files: evaluators/arc.py reads and writes them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from errors import UserError
from puzzles.arc import (
    FIRST_COLOUR,
    NUM_COLOURS,
    NUM_SYMMETRIES,
    SWAPS_AXES,
    Arc,
    Augmentations,
    crop_shapes,
    parse_augmentation,
    squares,
)
from puzzles.symmetry import inverse_dihedral_transform
from training.prediction_rows import PredictionRows

_COLOURS = bytes(range(NUM_COLOURS))

Key = bytes  # a grid: its number of rows, its number of columns, and its colours row by row
# (task, input) -> answer -> [votes, sum of sigmoid(q_halt), the first example]
Votes = dict[tuple[str, Key], dict[Key, list]]
TestPairs = dict[str, list[tuple[Key, Key]]]  # task -> (input, answer) of each of its test inputs, in order


class Candidate(NamedTuple):
    """An answer that was voted for."""

    key: Key
    votes: int
    confidence: float  # mean of sigmoid(q_halt) over its votes

    @property
    def grid(self) -> np.ndarray:
        return grid_of(self.key)


class VotedInput(NamedTuple):
    """One test input of a task, and what was predicted for it."""

    input: np.ndarray  # (rows, columns) uint8 colours
    answer: np.ndarray  # the right one; 0 × 0 if nobody has said it
    candidates: list[Candidate]  # the best first

    @property
    def answered(self) -> bool:
        """Whether the right answer is known: else the input is in no score."""
        return self.answer.size > 0

    @property
    def rank(self) -> float:
        """The place of the right answer among the candidates, from 1; infinite if it is not among them."""
        if not self.answered:  # a prediction without a grid is not right
            return float("inf")
        right = key_of(self.answer)
        return next((place for place, one in enumerate(self.candidates, 1) if one.key == right), float("inf"))


Tasks = dict[str, list[VotedInput]]


def key_of(grid: np.ndarray) -> Key:
    return bytes(grid.shape) + grid.tobytes()


def grid_of(key: Key) -> np.ndarray:
    """(rows, columns) uint8 colours; 0 × 0 if a prediction begins with a special token."""
    return np.frombuffer(key, dtype=np.uint8, offset=2).reshape(key[0], key[1])


# Whether the top left corner of a canvas is at the bottom, and at the right, once symmetry `tid` is undone.
_CORNER = np.array([[1, 0], [0, 0]])
_CORNERS = [np.argwhere(inverse_dihedral_transform(_CORNER, tid))[0].tolist() for tid in range(NUM_SYMMETRIES)]


def original_grids(tokens: np.ndarray, augmentations: Augmentations) -> list[Key]:
    """The grids of (n, cells) sequences, cropped and with their n augmentations undone."""
    tids, colour_maps = augmentations
    canvases = squares(tokens.astype(np.uint8))
    side = canvases.shape[-1]
    tables = [bytes.maketrans(tokens_of.tobytes(), _COLOURS) for tokens_of in colour_maps + np.uint8(FIRST_COLOUR)]
    shapes = crop_shapes(tokens)
    keys = [b""] * len(tokens)
    for tid, (at_bottom, at_right) in enumerate(_CORNERS):
        rows = np.flatnonzero(tids == tid)
        sizes = shapes[rows, ::-1] if SWAPS_AXES[tid] else shapes[rows]
        undone = inverse_dihedral_transform(canvases[rows], tid)
        for row, canvas, (height, width) in zip(rows.tolist(), undone, sizes.tolist(), strict=True):
            top = side - height if at_bottom else 0
            left = side - width if at_right else 0
            grid = canvas[top : top + height, left : left + width]
            keys[row] = bytes((height, width)) + grid.tobytes().translate(tables[row])
    return keys


def parse_names(names: Sequence[str]) -> tuple[list[str], Augmentations]:
    """The tasks of the puzzles, and their augmentations."""
    tasks, tids, colour_maps = zip(*map(parse_augmentation, names), strict=True)
    return list(tasks), Augmentations(np.array(tids), np.stack(colour_maps))


def pairs_of_rows(
    inputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> Iterator[tuple[str, tuple[Key, Key]]]:
    """Undo the augmentations of (n, cells) inputs and labels -> the task and the pair of each row."""
    if not names:
        return
    tasks, augmentations = parse_names(names)
    grids = zip(original_grids(inputs, augmentations), original_grids(labels, augmentations), strict=True)
    yield from zip(tasks, grids, strict=True)


def count_votes(chunks: Iterable[PredictionRows], identifiers: Sequence[str]) -> tuple[Votes, TestPairs]:
    """-> the votes of all rows, and the test pairs of the rows that are not augmented.

    `identifiers`: puzzle identifier -> name. Each different answer is kept once, and no rows.
    """
    votes: Votes = {}
    pairs: TestPairs = {}
    seen = 0
    for rows in chunks:
        if not len(rows.answers):
            continue
        names = puzzle_names(rows, identifiers)
        tasks, augmentations = parse_names(names)
        inputs, answers = original_grids(rows.inputs, augmentations), original_grids(rows.answers, augmentations)
        # In float32, in which sigmoids of large logits become equal, so that ties are the same as in the original.
        confidences = torch.from_numpy(rows.q_halt_logits).sigmoid().tolist()
        examples = range(seen, seen + len(names)) if rows.examples is None else rows.examples.tolist()
        seen += len(names)
        for task, grid, answer, confidence, example in zip(tasks, inputs, answers, confidences, examples, strict=True):
            tally = votes.setdefault((task, grid), {}).setdefault(answer, [0, 0.0, example])
            tally[0] += 1
            tally[1] += confidence
            tally[2] = min(tally[2], example)
        if rows.labels is not None:
            plain = [i for i, (name, task) in enumerate(zip(names, tasks, strict=True)) if name == task]
            for task, pair in pairs_of_rows(rows.inputs[plain], rows.labels[plain], [names[i] for i in plain]):
                if pair not in pairs.setdefault(task, []):  # each checkpoint has it once
                    pairs[task].append(pair)
    return votes, pairs


def puzzle_names(rows: PredictionRows, identifiers: Sequence[str]) -> list[str]:
    try:
        Arc.of_cells(rows.inputs.shape[1])
    except ValueError as error:
        raise UserError(f"the predictions are of {rows.inputs.shape[1]} tokens; {error}") from None
    ids = rows.puzzle_identifiers.tolist()
    if not 0 <= min(ids) <= max(ids) < len(identifiers):
        raise UserError(
            f"the predictions name puzzle {max(ids)}, but the dataset's identifiers.json ends at "
            f"{len(identifiers) - 1}; give the dataset that they were made with"
        )
    return [identifiers[i] for i in ids]


def rank_candidates(votes: Votes, pairs: TestPairs) -> Tasks:
    """Every test input with its candidates; it has none if nothing was predicted for it."""
    known = {(task, grid) for task, tests in pairs.items() for grid, _ in tests}
    strange = next((task for task, grid in votes if (task, grid) not in known), None)
    if strange is not None:
        raise UserError(
            f"there are predictions for an input that is none of the test inputs of task {strange}; "
            "give the dataset that they were made with"
        )

    def voted_input(task: str, grid: Key, answer: Key) -> VotedInput:
        return VotedInput(grid_of(grid), grid_of(answer), _ranked(votes.get((task, grid), {})))

    return {task: [voted_input(task, *pair) for pair in tests] for task, tests in pairs.items()}


def _ranked(tallies: dict[Key, list]) -> list[Candidate]:
    first = {key: example for key, (_, _, example) in tallies.items()}
    candidates = [Candidate(key, count, total / count) for key, (count, total, _) in tallies.items()]
    return sorted(candidates, key=lambda one: (-one.votes, -one.confidence, first[one.key]))


def scores(tasks: Tasks, ks: Iterable[int]) -> dict:
    """`num_tasks`; `task`: K -> share of the tasks whose test inputs all have the right answer among their K best;
    `fractional`: K -> mean over the tasks of the share of such test inputs.

    Test inputs without an answer do not count, nor do tasks that have no others: `without_answer` says how many there
    are, if any. The shares of no task are None.
    """
    tests = [test for inputs in tasks.values() for test in inputs]
    ranks = [[test.rank for test in inputs if test.answered] for inputs in tasks.values()]
    ranks = [task for task in ranks if task]
    solved = {str(k): [np.mean([rank <= k for rank in task]) for task in ranks] for k in ks}
    result = {
        "num_tasks": len(ranks),
        "task": {k: _mean([share == 1 for share in shares]) for k, shares in solved.items()},
        "fractional": {k: _mean(shares) for k, shares in solved.items()},
    }
    unknown = sum(not test.answered for test in tests)
    return result | ({"without_answer": unknown} if unknown else {})


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def attempts(test: VotedInput) -> list[list[list[int]]]:
    """The two attempts that ARC Prize allows, as lists. A single candidate is given twice; no grid becomes [[0]]."""
    grids = [one.grid.tolist() if one.grid.size else [[0]] for one in test.candidates[:2]] or [[[0]]]
    return [grids[0], grids[-1]]
