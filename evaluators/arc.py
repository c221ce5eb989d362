"""ARC scores: python -m evaluators.arc dataset=<dir> predictions=<run>/step_<n> [key=value …]

Undoes the augmentation of every prediction that evaluate.py saved and lets them vote (evaluators/arc_voting.py).
`task` is the score of the original and of ARC-AGI-1: the share of the tasks with all test inputs solved. `fractional`
is what later papers report: the mean over the tasks of the share of test inputs solved.

Tasks and right answers come from the dataset's test split (or another one, split=val) or, if it has none, from the
predictions that are not augmented. A test input without predictions counts as unsolved. The predictions of several
checkpoints vote together if all are named: predictions=[<run>/step_1,<run>/step_2].

    {"num_tasks": 400, "task": {"1": 0.25, …}, "fractional": {"1": 0.26, …}}                             json=true
    {"<task>": [{"attempt_1": grid, "attempt_2": grid}, …one for each test input, in order], …}          submission

A test input with one candidate has it as both attempts; one without any has [[0]]. Every test input has an entry, one
whose answer nobody knows too (it is in no score), and the second of two equal ones.

candidates=<file> gets what was voted for, the best CANDIDATES for each test input, in the order of the voting:

    {"format": 1, "dataset": <its path>, "split": "test", "predictions": [<prefix>, …], "scores": <as with json=true>,
     "tasks": {"<task>": [{"rank": 1, "votes": 1001, "different": 14,
                           "candidates": [{"grid": grid, "votes": 870, "confidence": 0.93}, …]}, …], …}}

There, `rank` is the place of the right answer among all candidates, from 1: a test input is solved at pass@2 if it is
at most 2. It is null if nobody voted for it or the answer is not known. `votes` counts all votes for the test input,
`different` all its candidates; `confidence` is the mean of sigmoid(q_halt). A candidate without a cell has the grid [].
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from dataset.format import PuzzleSet, load_metadata, load_set, read_identifiers
from errors import UserError, one_line_errors, some_of, warn
from evaluators.arc_voting import (
    Tasks,
    TestPairs,
    VotedInput,
    attempts,
    count_votes,
    key_of,
    pairs_of_rows,
    rank_candidates,
    scores,
)
from files import check_output, write_atomically
from puzzles.arc import FIRST_COLOUR, NO_GRID, Arc, is_colour, squares
from puzzles.kind import kind_of
from training.metrics import progress_bar, start_logging
from training.options import StrictModel, from_cli
from training.prediction_rows import PredictionRows
from training.predictions import read_predictions

KS = (1, 2, 10, 100, 1000)
ATTEMPTS = 2  # that ARC allows
CANDIDATES = 10  # for each test input, in the file of candidates


class ArcEvalConfig(StrictModel):
    dataset: str = Field(description="the dataset that the model was trained on")
    predictions: list[str] = Field(
        min_length=1, description="those of evaluate.py, <run>/step_<n>; several, [a,b], vote together"
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(
        default=list(KS), min_length=1, description="how many of the best candidates count for each test input"
    )
    submission: str | None = Field(
        default=None, description="file for the two best answers to each test input, for the ARC Prize on Kaggle"
    )
    candidates: str | None = Field(
        default=None, description="file for the candidates of each test input with their votes; its format is above"
    )
    split: str = Field(default="test", description="split of the dataset that was evaluated, such as val")
    other_data: bool = Field(
        default=False, description="use predictions that were made on a dataset of another content, too"
    )
    # `json` is taken by pydantic.
    as_json: bool = Field(default=False, alias="json", description="print one JSON object instead of the table")

    @field_validator("k", mode="before")
    @classmethod
    def _comma_list(cls, value):
        parts = [part.split(",") if isinstance(part, str) else [part] for part in _listed(value)]  # k=1,2 and k=[1,2]
        return [part for some in parts for part in some]

    @field_validator("predictions", mode="before")
    @classmethod
    def _one_or_several(cls, value):
        return _listed(value)


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


def vote(
    dataset: str | Path, predictions: Sequence[str | Path], other_data: bool = False, split: str = "test"
) -> Tasks:
    """All inputs of a split of a dataset, with the candidates that the predictions `<prefix>…` vote for.

    Raises `UserError` if the two do not belong together; `other_data` accepts a dataset whose content has changed
    since. Warns on stderr of test inputs without predictions.
    """
    if len({Path(prefix).resolve() for prefix in predictions}) < len(predictions):
        raise UserError("the same predictions are named twice, and would have two votes; name each once")
    identifiers = read_identifiers(Path(dataset))
    test_sets = load_test_sets(Path(dataset), split)
    pairs = dataset_pairs(test_sets, identifiers)
    checkpoints = [
        read_predictions(prefix, dataset, split, other_data=other_data) for prefix in predictions
    ]  # raises its errors here already
    total = len(predictions) * sum(len(puzzles.inputs) for puzzles in test_sets) or None
    votes, pairs_seen = count_votes(_with_progress(chain(*checkpoints), total), identifiers)
    pairs = pairs or pairs_seen
    if not pairs:
        raise UserError(
            f"{dataset} has no {split} split, and the predictions hold no ARC puzzle without augmentation; give the "
            f"whole dataset, or predictions of all its puzzles"
        )
    tasks = rank_candidates(votes, pairs)
    _warn_of_missing(tasks)
    return tasks


def load_test_sets(dataset: Path, split: str = "test") -> list[PuzzleSet]:
    """The sets of the split; none if the dataset lacks its arrays, as a download may."""
    folder = dataset / split
    if not any(folder.glob("*__inputs.npy")):
        return []
    metadata = load_metadata(folder)
    sets = [load_set(folder, name, metadata) for name in metadata.sets]
    kind = kind_of(metadata.model_dump(), [puzzles.inputs for puzzles in sets], str(folder))
    if not isinstance(kind, Arc):
        raise UserError(f"{folder} holds {kind.title}s, not ARC tasks; give a dataset of dataset/build_arc_dataset.py")
    return sets


def dataset_pairs(test_sets: Iterable[PuzzleSet], identifiers: Sequence[str]) -> TestPairs:
    """The test pairs of all tasks, equal ones too, from the first puzzle of every group, which is the task itself."""
    pairs: TestPairs = {}
    for puzzles in test_sets:
        if puzzles.puzzle_identifiers.max(initial=0) >= len(identifiers):
            raise UserError(
                f"the test split names puzzle {puzzles.puzzle_identifiers.max()}, but identifiers.json ends at "
                f"{len(identifiers) - 1}; build the dataset again"
            )
        for first in puzzles.group_indices[:-1]:
            examples = slice(*puzzles.puzzle_indices[first : first + 2])
            inputs, labels = puzzles.inputs[examples], puzzles.labels[examples]
            name = identifiers[puzzles.puzzle_identifiers[first]]
            for task, pair in pairs_of_rows(inputs, labels, [name] * len(inputs)):
                pairs.setdefault(task, []).append(pair)
    return pairs


def demonstrations(dataset: str | Path, tasks: Iterable[str]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """The pairs of the train split under the names of tasks: (input, output) grids of colours (rows, columns).

    A task without any is left out; so are all if the dataset lacks its train split.
    """
    names, found = set(tasks), {}
    identifiers = read_identifiers(Path(dataset))
    wanted = {name: identifier for identifier, name in enumerate(identifiers) if name in names}
    for puzzles in load_test_sets(Path(dataset), "train"):
        for name, identifier in wanted.items():
            for puzzle in np.flatnonzero(puzzles.puzzle_identifiers == identifier):
                examples = slice(*puzzles.puzzle_indices[puzzle : puzzle + 2])
                pairs = zip(np.array(puzzles.inputs[examples]), np.array(puzzles.labels[examples]), strict=True)
                found.setdefault(name, []).extend(tuple(map(_grid_inside, pair)) for pair in pairs)
    return found


def _grid_inside(tokens: np.ndarray) -> np.ndarray:
    """The grid of colours (rows, columns) on a canvas (cells,), wherever it lies."""
    (canvas,) = squares(tokens)
    rows, columns = np.nonzero(is_colour(canvas))
    if not rows.size:
        return NO_GRID
    return (canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] - FIRST_COLOUR).astype(np.uint8)


def _with_progress(chunks: Iterable[PredictionRows], total: int | None) -> Iterator[PredictionRows]:
    with progress_bar(total=total, desc="vote", unit="sequence", enabled=True, leave=False) as bar:
        for rows in chunks:
            yield rows
            bar.update(len(rows.answers))


def _warn_of_missing(tasks: Tasks) -> None:
    empty = [task for task, tests in tasks.items() for test in tests if not test.candidates]
    if empty:
        total = sum(map(len, tasks.values()))
        tasks_of = some_of([*dict.fromkeys(empty)], 5, "more tasks")
        warn(f"{len(empty)} of the {total} test inputs have no prediction and count as unsolved ({tasks_of})")


def write_submission(path: Path, tasks: Tasks) -> None:
    submission = {
        task: [dict(zip(("attempt_1", "attempt_2"), attempts(test), strict=True)) for test in tests]
        for task, tests in tasks.items()
    }
    write_atomically(path, lambda file: file.write(json.dumps(submission, allow_nan=False).encode()))


def write_candidates(path: Path, tasks: Tasks, result: dict, config: ArcEvalConfig) -> None:
    """The file of `candidates=`, as this module's docstring describes it."""
    content = {
        "format": 1,
        "dataset": config.dataset,
        "split": config.split,
        "predictions": config.predictions,
        "scores": result,
        "tasks": {task: [_candidates(test) for test in tests] for task, tests in tasks.items()},
    }
    write_atomically(path, lambda file: file.write(json.dumps(content, allow_nan=False).encode()))


def _candidates(test: VotedInput) -> dict:
    return {
        "rank": None if test.rank == float("inf") else test.rank,
        "votes": sum(one.votes for one in test.candidates),
        "different": len(test.candidates),
        "candidates": [
            {"grid": one.grid.tolist(), "votes": one.votes, "confidence": round(one.confidence, 6)}
            for one in test.candidates[:CANDIDATES]
        ],
    }


def table(tasks: Tasks, result: dict) -> str:
    """The scores; of the K that take all candidates there are, the first alone."""
    tests = [test for inputs in tasks.values() for test in inputs]
    different = {(task, key_of(test.input)): test for task, inputs in tasks.items() for test in inputs}
    sequences = sum(candidate.votes for test in different.values() for candidate in test.candidates)
    rows = [f"{len(tasks):,} tasks with {len(tests):,} test inputs, {sequences:,} predictions"]
    if unknown := result.get("without_answer"):
        rows.append(f"{unknown:,} of {len(tests):,} test inputs have no answer and are not scored")
    if result["num_tasks"]:
        rows.append(f"{'K':>5}  {'task':>7}  {'fractional':>10}")
        most = max(len(test.candidates) for test in tests)
        enough = min((int(k) for k in result["task"] if int(k) >= most), default=most)
        for k, share in result["task"].items():
            if int(k) <= max(enough, ATTEMPTS):
                score = "  <- the score: two attempts" if int(k) == ATTEMPTS else ""
                rows.append(f"{k:>5}  {share:>7.2%}  {result['fractional'][k]:>10.2%}{score}")
        if any(int(k) > max(enough, ATTEMPTS) for k in result["task"]):
            rows.append(f"no test input has more than {most} different answers, so that a larger K changes nothing")
    return "\n".join(rows)


def main() -> None:
    with one_line_errors():
        config = from_cli(ArcEvalConfig, sys.argv[1:], __doc__)
        outputs = {key: Path(getattr(config, key)) for key in ("submission", "candidates") if getattr(config, key)}
        for option, path in outputs.items():
            check_output(path, option, ".json", start=b'{"')
        if len({path.resolve() for path in outputs.values()}) < len(outputs):
            raise UserError("submission and candidates name the same file; give each its own")
        start_logging(is_main=True, as_json=config.as_json)
        tasks = vote(config.dataset, config.predictions, config.other_data, config.split)
        result = scores(tasks, config.k)
        if "submission" in outputs:
            write_submission(outputs["submission"], tasks)
        if "candidates" in outputs:
            write_candidates(outputs["candidates"], tasks, result, config)
        print(json.dumps(result, allow_nan=False) if config.as_json else table(tasks, result))
        for option, path in outputs.items():
            print(f"{option}: {path}", file=sys.stderr if config.as_json else sys.stdout)


if __name__ == "__main__":
    main()
