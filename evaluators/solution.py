"""A model's way to its answers to puzzles: every step, and what the rules say about the final answer."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.format import PuzzleDatasetMetadata, load_metadata
from errors import UserError
from models.act import ACTModel
from puzzles.kind import PAD, Kind, Puzzle, all_kinds, kind_of, lines_of, read_puzzle, with_article
from training.reasoning import Step, reasoning_steps
from training.wording import counted

SHOWN_VIOLATIONS = 3


@dataclass
class Answer:
    """The model's answer after one step."""

    tokens: np.ndarray  # (cells,)
    changed: np.ndarray  # (cells,) bool: since the step before or, in the first step, since the puzzle
    confidence: float  # sigmoid of q_halt
    wants_to_halt: bool  # what the model says: the rule halt=q stops at the first such step


@dataclass
class Verdict:
    valid: bool | None  # None: there is no rule to check
    text: str  # one line
    violations: list[str]


def dataset_at_hand(data_path: Path) -> tuple[PuzzleDatasetMetadata | None, Kind | None]:
    """The metadata of a run's dataset, if it is there, and its kind, if that is known.

    A dataset that does not state its kind and has lost its arrays could be of several kinds.
    """
    found = (description_in(data_path / split) for split in ("train", "test"))
    return next((described for described in found if described is not None), (None, None))


def description_in(folder: Path) -> tuple[PuzzleDatasetMetadata, Kind | None] | None:
    """What the `dataset.json` in a folder says, and the kind of puzzle, if that is known; None if there is no such
    file. The split's arrays may be beside it.
    """
    if not (folder / "dataset.json").exists():
        return None
    metadata = load_metadata(folder)
    files = [folder / f"{name}__inputs.npy" for name in metadata.sets]
    samples, kind = [], None
    with suppress(OSError, ValueError, TypeError):  # an array that is damaged
        samples = [np.load(file, mmap_mode="r")[:1000] for file in files if file.exists()]
    # A kind that is named must be known; one that is inferred may be none: another dataset may lie here now.
    with nullcontext() if metadata.kind is not None else suppress(UserError):
        if metadata.kind is not None or samples:
            kind = kind_of(metadata.model_dump(), samples, str(folder))
    return metadata, kind


def read_typed(puzzle: str | np.ndarray, source: str, trained_on: Kind | None) -> Puzzle:
    """Read a puzzle as people write it: of the kind that the model was trained on or, failing that, of another.

    An array (rows, columns) holds its cells. Raises a `UserError` that begins with `source` if it is no puzzle.
    """
    if isinstance(puzzle, str):
        return _read_text(puzzle, source, trained_on)
    found = _read_text(text_of_cells(puzzle, source, trained_on), source, trained_on)
    rows, columns = puzzle.shape if puzzle.ndim == 2 else (1, len(puzzle))
    # A single row may hold the cells of a whole board; otherwise their arrangement must be the board's. What is written
    # as it is has the array's, of which holes at the end are no part.
    if rows > 1 and not found.kind.any_text and (rows, columns) != found.kind.extent(found.inputs):
        raise UserError(f"{source} has {rows}×{columns} cells, which is not the shape of {with_article(found.title)}")
    return found


def _read_text(text: str, source: str, trained_on: Kind | None) -> Puzzle:
    if trained_on is None:
        return read_puzzle(text, source)
    try:
        return read_puzzle(text, source, trained_on)
    except UserError:
        for kind in () if trained_on.any_text else all_kinds():
            if kind is not type(trained_on) and kind.recognises(text):
                with suppress(UserError):
                    return read_puzzle(text, source, kind)
        raise


def text_of_cells(cells: np.ndarray, source: str, trained_on: Kind | None) -> str:
    """The cells of a puzzle (rows, columns), or row by row, as people type them."""
    check_cells(cells, source)
    rows = (cells if cells.ndim == 2 else cells[None]).tolist()
    return lines_of(rows) if trained_on is None else trained_on.typed(rows)


def check_cells(cells: np.ndarray, source: str) -> None:
    """Raise a `UserError` that begins with `source` for what cannot be the cells of any puzzle."""
    if not isinstance(cells, np.ndarray) or cells.ndim not in (1, 2) or cells.dtype.kind not in "iubUO":
        what = f"{cells.ndim} axes of {cells.dtype}" if isinstance(cells, np.ndarray) else f"a {type(cells).__name__}"
        raise UserError(f"{source} is {what}; write a text, or an array (rows, columns) of whole numbers or characters")
    if cells.dtype.kind == "i" and (cells < 0).any():  # whose sign would be lost in a text
        raise UserError(f"{source} has a cell {cells.min()}; 0 is a blank, and no cell is negative")


def think(
    puzzles: Sequence[Puzzle], model: ACTModel, max_steps: int | None = None, halt: str = "max"
) -> Iterator[dict[int, Answer]]:
    """Yield the model's answers after each step, as `answers`, by a rule of training/reasoning.py.

    The puzzles have equally many cells; `model` is that of a loss head.
    """
    device = next(model.parameters()).device
    inputs = torch.from_numpy(np.stack([puzzle.inputs for puzzle in puzzles]).astype(np.int32)).to(device)
    identifiers = torch.tensor([puzzle.identifier for puzzle in puzzles], dtype=torch.int32, device=device)
    return answers(puzzles, reasoning_steps(model, inputs, identifiers, max_steps, halt))


def answers(puzzles: Sequence[Puzzle], steps: Iterable[Step]) -> Iterator[dict[int, Answer]]:
    """Turn the steps of a batch of puzzles into answers, with what each step changed: for each step the answers of
    those puzzles, by their place in the batch, that take it.

    Raises `UserError` at a step whose values are no numbers: it has no answer.
    """
    before = [puzzle.kind.visible(puzzle.inputs) for puzzle in puzzles]
    for step in steps:
        if not step.is_number.all():
            raise UserError(
                f"step {step.number} gives values that are no numbers (NaN or infinite), so that there is no answer; "
                f"use another checkpoint, or fewer max_steps"
            )
        boards = step.answer.cpu().numpy().astype(np.uint8)
        found = {}
        for row, board, sure, wants in zip(
            step.rows.tolist(), boards, step.confidence.tolist(), step.wants_to_halt.tolist(), strict=True
        ):
            kind, inputs = puzzles[row].kind, puzzles[row].inputs
            tokens = kind.visible(kind.counted(inputs, board))
            found[row] = Answer(tokens, tokens != before[row], sure, wants)
            before[row] = tokens
        yield found


def halting_step(found: Sequence[Answer]) -> int | None:
    """The first step, from 1, in which the model wanted to halt; None: in none of these."""
    return next((number for number, answer in enumerate(found, start=1) if answer.wants_to_halt), None)


def judge(puzzle: Puzzle, tokens: np.ndarray) -> Verdict:
    """What the puzzle's rules say about an answer; if it has none, whether it is the output that the task states."""
    if not puzzle.kind.has_rules:
        return _compare(puzzle, tokens)
    violations = puzzle.kind.violations(puzzle.inputs, tokens)
    if not violations:
        return Verdict(True, f"valid: {puzzle.kind.praise(puzzle.inputs, tokens)}", [])
    more = len(violations) - SHOWN_VIOLATIONS
    text = "; ".join(violations[:SHOWN_VIOLATIONS]) + (f"; and {more} more" if more > 0 else "")
    return Verdict(False, f"not valid: {text}", violations)


def _compare(puzzle: Puzzle, tokens: np.ndarray) -> Verdict:
    if puzzle.expected is None:
        return Verdict(None, "no rule to check, and no output is stated for this input", [])
    answer, expected = puzzle.kind.grid(tokens), stated_grid(puzzle, tokens)
    stated = "the stated output" if puzzle.task is None else "the output that the task states"
    if np.array_equal(answer, expected):
        return Verdict(True, f"right: equal to {stated}", [])
    if answer.shape == expected.shape:
        problem = f"{(answer != expected).sum()} of {expected.size} cells differ from {stated}"
    else:
        problem = "the grid is {}×{}, {} {}×{}".format(*answer.shape, stated, *expected.shape)
    return Verdict(False, f"wrong: {problem}", [problem])


def stated_grid(puzzle: Puzzle, tokens: np.ndarray) -> np.ndarray:
    """The answer that the puzzle states; cells that do not count are as in `tokens`."""
    return puzzle.kind.grid(np.where(puzzle.expected == PAD, tokens, puzzle.expected))


@dataclass(frozen=True)
class Solution:
    """What a model has answered to a puzzle."""

    puzzle: Puzzle
    found: list[Answer]  # of every step
    verdict: Verdict

    @property
    def answer(self) -> str:
        """The last answer, written as one types such a puzzle."""
        return self.puzzle.kind.text(self.found[-1].tokens)

    @property
    def steps(self) -> list[str]:
        """The answer of every step."""
        return [self.puzzle.kind.text(answer.tokens) for answer in self.found]

    @property
    def grid(self) -> np.ndarray:
        """(rows, columns) of the last answer: numbers in a Sudoku and in ARC, else what stands in each cell."""
        return self.puzzle.kind.cells(self.found[-1].tokens)

    @property
    def halted_at(self) -> int | None:
        """The first step, from 1, in which the model wanted to halt; None: in none of these."""
        return halting_step(self.found)

    @property
    def confidence(self) -> float:
        """The model's own estimate that the whole last answer is right, from 0 to 1."""
        return self.found[-1].confidence

    @property
    def valid(self) -> bool | None:
        """Whether the last answer obeys the rules, which needs no solution; None where the puzzle has no rules."""
        return self.verdict.valid if self.puzzle.kind.has_rules else None

    @property
    def right(self) -> bool | None:
        """Whether the last answer is the one that the puzzle states, as an ARC task may; None where it states none."""
        if self.puzzle.expected is None:
            return None
        tokens = self.found[-1].tokens
        return np.array_equal(self.puzzle.kind.grid(tokens), stated_grid(self.puzzle, tokens))

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of the puzzle."""
        return self.puzzle.remarks

    def __repr__(self) -> str:
        halted = f", halted at {self.halted_at}" if self.halted_at is not None else ""
        made = f"{counted(len(self.found), 'step')}{halted}, {self.confidence:.0%} sure"
        return f"<{self.puzzle.title}: {self.verdict.text}; {made}>"


def as_json(solution: Solution) -> dict[str, Any]:
    """What `solve.py --json` prints. Cells are [row, column] from 0. Boards are written as their kind writes them: a
    Sudoku is a string, a maze a list of lines, an ARC grid a list of rows of colours."""
    puzzle, found, verdict = solution.puzzle, solution.found, solution.verdict
    kind = puzzle.kind
    size = {"size": kind.rows} if kind.rows == kind.columns else {"rows": kind.rows, "columns": kind.columns}
    task = {}
    if not kind.has_rules:
        task = {"task": puzzle.task, "expected": None if puzzle.expected is None else kind.plain(puzzle.expected)}
    return {
        "kind": kind.name,
        **size,
        **task,
        "puzzle": kind.plain(puzzle.inputs),
        "steps": [
            {
                "step": number,
                "answer": kind.plain(answer.tokens),
                "changed": np.stack(np.divmod(np.flatnonzero(answer.changed), kind.columns), axis=1).tolist(),
                "confidence": round(answer.confidence, 6),
                "wants_to_halt": answer.wants_to_halt,
            }
            for number, answer in enumerate(found, start=1)
        ],
        "halts_at": halting_step(found),
        "answer": kind.plain(found[-1].tokens),
        "valid": verdict.valid,
        "verdict": verdict.text,
        "violations": verdict.violations,
        "notes": list(solution.notes),
    }
