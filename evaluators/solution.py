"""A model's way to its answer to one puzzle: every step, and what the rules say about the end of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from evaluators.boards import maze_lines
from evaluators.puzzle_text import Kind, Puzzle
from evaluators.rules import maze_violations, shortest_path_steps, sudoku_violations
from evaluators.steps import Step
from puzzles.arc import FIRST_COLOUR, crop_shapes
from puzzles.maze import PATH

SHOWN_VIOLATIONS = 3


@dataclass
class Answer:
    """The model's answer after one step."""

    tokens: np.ndarray  # (cells,)
    changed: np.ndarray  # (cells,) bool: since the step before, in the first one since the puzzle
    confidence: float  # sigmoid of q_halt


@dataclass
class Verdict:
    valid: bool | None  # None: there is no rule to check
    text: str  # one line
    violations: list[str]


def answers(puzzle: Puzzle, steps: Iterable[Step]) -> Iterator[Answer]:
    """The steps of one puzzle (B = 1), with what each of them changed."""
    before = seen(puzzle, puzzle.inputs)
    for step in steps:
        tokens = seen(puzzle, step.answer[0].cpu().numpy().astype(np.uint8))
        yield Answer(tokens, tokens != before, float(step.confidence[0]))
        before = tokens


def seen(puzzle: Puzzle, tokens: np.ndarray) -> np.ndarray:
    """The tokens that count: of an ARC canvas those of its grid, the rest becomes PAD."""
    if puzzle.kind != "arc":
        return tokens
    ((rows, columns),) = crop_shapes(tokens[None])
    canvas = np.zeros((puzzle.size, puzzle.size), np.uint8)
    canvas[:rows, :columns] = tokens.reshape(canvas.shape)[:rows, :columns]
    return canvas.ravel()


def arc_grid(tokens: np.ndarray) -> np.ndarray:
    """(900,) tokens -> the colours of the grid, (rows, columns)."""
    ((rows, columns),) = crop_shapes(tokens[None])
    return tokens.reshape(30, 30)[:rows, :columns] - FIRST_COLOUR


def judge(puzzle: Puzzle, tokens: np.ndarray) -> Verdict:
    """What the puzzle's rules say about an answer; about ARC's, whether it is the output that the task states."""
    if puzzle.kind == "arc":
        return _judge_arc(puzzle, tokens)
    check = {"sudoku": sudoku_violations, "maze": maze_violations}[puzzle.kind]
    violations = check(puzzle.inputs, tokens)
    if not violations:
        right = {"sudoku": "every row, column and box is right, and the clues are kept", "maze": ""}[puzzle.kind]
        return Verdict(True, f"valid: {right or _path(puzzle.inputs, tokens)}", [])
    more = len(violations) - SHOWN_VIOLATIONS
    text = "; ".join(violations[:SHOWN_VIOLATIONS]) + (f"; and {more} more" if more > 0 else "")
    return Verdict(False, f"not valid: {text}", violations)


def _path(inputs: np.ndarray, tokens: np.ndarray) -> str:
    steps, shortest = int((tokens == PATH).sum()) + 1, shortest_path_steps(inputs)
    longer = f"{steps - shortest} longer than the shortest" if steps > shortest else "a shortest one"
    return f"a path of {steps} steps from S to G, {longer}"


def _judge_arc(puzzle: Puzzle, tokens: np.ndarray) -> Verdict:
    if puzzle.expected is None:
        return Verdict(None, "no rule to check: the task states no output for this input", [])
    answer, expected = arc_grid(tokens), arc_grid(puzzle.expected)
    if np.array_equal(answer, expected):
        return Verdict(True, "right: equal to the output that the task states", [])
    if answer.shape == expected.shape:
        problem = f"{(answer != expected).sum()} of {expected.size} cells differ from the output that the task states"
    else:
        problem = "the grid is {}×{}, the output that the task states {}×{}".format(*answer.shape, *expected.shape)
    return Verdict(False, f"wrong: {problem}", [problem])


def as_json(puzzle: Puzzle, found: list[Answer], verdict: Verdict) -> dict:
    """What `solve.py --json` prints; cells are [row, column] from 0, a Sudoku is a string, a maze a list of lines."""
    task = {}
    if puzzle.kind == "arc":
        expected = None if puzzle.expected is None else plain_board(puzzle.kind, puzzle.expected)
        task = {"task": puzzle.task, "expected": expected}
    return {
        "kind": puzzle.kind,
        "size": puzzle.size,
        **task,
        "puzzle": plain_board(puzzle.kind, puzzle.inputs),
        "steps": [
            {
                "step": number,
                "answer": plain_board(puzzle.kind, answer.tokens),
                "changed": np.stack(np.divmod(np.flatnonzero(answer.changed), puzzle.size), axis=1).tolist(),
                "confidence": round(answer.confidence, 6),
            }
            for number, answer in enumerate(found, start=1)
        ],
        "answer": plain_board(puzzle.kind, found[-1].tokens),
        "valid": verdict.valid,
        "verdict": verdict.text,
        "violations": verdict.violations,
        "notes": list(puzzle.notes),
    }


def plain_board(kind: Kind, tokens: np.ndarray) -> str | list:
    """Tokens (cells,) as they stand in JSON."""
    if kind == "sudoku":
        return "".join(str(token - 1) if token > 1 else "." for token in tokens.tolist())
    return maze_lines(tokens) if kind == "maze" else arc_grid(tokens).tolist()
