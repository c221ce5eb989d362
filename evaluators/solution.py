"""A model's way to its answer to one puzzle: every step, and what the rules say about the final answer."""

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
from puzzles.kind import PAD, Kind, Puzzle, all_kinds, kind_of, read_puzzle
from training.reasoning import Step, reasoning_steps

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
    for folder in (data_path / split for split in ("train", "test")):
        if (folder / "dataset.json").exists():
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
    return None, None


def read_typed(text: str, source: str, trained_on: Kind | None) -> Puzzle:
    """Read a puzzle as people type it: of the kind that the model was trained on or, failing that, of another.

    Raises a `UserError` that begins with `source` if the text is no puzzle.
    """
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


def think(puzzle: Puzzle, model: ACTModel, max_steps: int | None = None, halt: str = "max") -> Iterator[Answer]:
    """Yield the model's answer after each step, by a rule of training/reasoning.py; `model` is that of a loss head."""
    device = next(model.parameters()).device
    inputs = torch.from_numpy(puzzle.inputs.astype(np.int32))[None].to(device)
    identifiers = torch.tensor([puzzle.identifier], dtype=torch.int32, device=device)
    return answers(puzzle, reasoning_steps(model, inputs, identifiers, max_steps, halt))


def answers(puzzle: Puzzle, steps: Iterable[Step]) -> Iterator[Answer]:
    """Turn the steps of one puzzle (B = 1) into answers, with what each of them changed.

    Raises `UserError` at a step whose values are no numbers: it has no answer.
    """
    before = puzzle.kind.visible(puzzle.inputs)
    for step in steps:
        if not step.is_number.all():
            raise UserError(
                f"step {step.number} gives values that are no numbers (NaN or infinite), so that there is no answer; "
                f"use another checkpoint, or fewer max_steps"
            )
        answer = step.answer[0].cpu().numpy().astype(np.uint8)
        tokens = puzzle.kind.visible(puzzle.kind.counted(puzzle.inputs, answer))
        yield Answer(tokens, tokens != before, float(step.confidence[0]), bool(step.wants_to_halt[0]))
        before = tokens


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
    counted = np.where(puzzle.expected == PAD, tokens, puzzle.expected)
    answer, expected = puzzle.kind.grid(tokens), puzzle.kind.grid(counted)
    stated = "the stated output" if puzzle.task is None else "the output that the task states"
    if np.array_equal(answer, expected):
        return Verdict(True, f"right: equal to {stated}", [])
    if answer.shape == expected.shape:
        problem = f"{(answer != expected).sum()} of {expected.size} cells differ from {stated}"
    else:
        problem = "the grid is {}×{}, {} {}×{}".format(*answer.shape, stated, *expected.shape)
    return Verdict(False, f"wrong: {problem}", [problem])


def as_json(puzzle: Puzzle, found: Sequence[Answer], verdict: Verdict) -> dict[str, Any]:
    """What `solve.py --json` prints. Cells are [row, column] from 0. Boards are written as their kind writes them: a
    Sudoku is a string, a maze a list of lines, an ARC grid a list of rows of colours."""
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
        "notes": list(puzzle.notes),
    }
