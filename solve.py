"""Solve one puzzle with a trained model, and show its answer after every reasoning step.

    python solve.py puzzle=53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
    python solve.py checkpoint=<run>/step_<n> file=maze.txt --gif maze.gif
    python solve.py checkpoint=<run>/step_<n> task=2c0b0aff halt=q --json

Without a checkpoint it takes the model in pretrained/ that was trained on such puzzles. From Python: docs/python.md.

Write a Sudoku of 81, 36 or 16 cells in digits, with `.` or `0` for a blank, or as a drawn grid; a maze in lines of `#`,
blanks (or `.`), one S and one G; a grid of your own as in the files that its dataset was built from, or as one line of
their JSONL, output included; another kind of puzzle as its file in puzzles/ says. The text is read as a puzzle of the
kind that the model was trained on.

Cells that changed since the step before are marked; the percentage is the model's own estimate that the whole answer
is right (sigmoid of q_halt), and ■ is where the model wants to halt: all steps run all the same, as in the original,
unless halt=q stops there. The line below the boards says whether the answer obeys the rules, which are checked
without knowing the solution; ARC has no rules, so there it says whether the answer is the output that the task states.
The exit code is 0 even for a wrong answer, and 2 for a mistake in the input. Reads `all_config.yaml` beside the
checkpoint. Checkpoints of the original load too.
"""

import training.threads  # noqa: F401, before torch loads

# isort: split

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from errors import UserError, one_line_errors
from evaluators.arc_query import is_task_file
from evaluators.solution import Answer, Solution, as_json, halting_step
from evaluators.solver import Solver
from files import check_output, read_text, write_atomically
from puzzles.draw import board_lines, draw_frames, in_rows, save_gif
from puzzles.kind import Puzzle
from training.distributed import DEVICES
from training.metrics import progress_bar
from training.options import AS_TYPED, StrictModel, from_cli
from training.predictions import MAX_STEPS
from training.reasoning import HALTING

__all__ = ["Solver"]

MAX_TEXT = 1 << 14  # characters of a puzzle: 128×128 cells
MAX_PATH = 4096
HALT_MARK = "■"


class SolveConfig(StrictModel):
    checkpoint: str | None = Field(
        default=None,
        description="a step_<n> in its run folder; the folder: its best, else its last; or user/name of the Hub; null: "
        "the model in pretrained/ that fits the puzzle",
    )
    puzzle: str | None = Field(
        default=None, max_length=MAX_TEXT, json_schema_extra=AS_TYPED, description="the puzzle itself"
    )
    file: str | None = Field(
        default=None, max_length=MAX_PATH, json_schema_extra=AS_TYPED, description="a text file that holds the puzzle"
    )
    task: str | None = Field(
        default=None,
        max_length=MAX_PATH,
        description="an ARC task: its id, or its JSON file (named as in the run's dataset)",
    )
    query: int = Field(default=1, ge=1, description="which test input of the ARC task")
    max_steps: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="reasoning steps; default: as in training"
    )
    halt: Literal[HALTING] = Field(
        default="max", description="max: all steps, as in the original; q: until the model wants to halt"
    )
    data_path: str | None = Field(default=None, description="the run's dataset, if it has moved")
    device: Literal[DEVICES] = Field(default="auto", description="auto, cuda, mps or cpu")
    gif: str | None = Field(default=None, description="a file to write the steps to, as an animation")
    as_json: bool = Field(
        default=False, alias="json", description="print one JSON object instead (see evaluators/solution.py)"
    )

    @model_validator(mode="after")
    def _one_puzzle(self):
        given = [key for key in ("puzzle", "file", "task") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"give one of puzzle=…, file=… and task=…: {found} (see --help)")
        return self

    @property
    def named_task(self) -> str | None:
        """The ARC task that is asked for: its id, or the JSON file that holds it."""
        return self.file if self.file and is_task_file(Path(self.file)) else self.task


def solve(config: SolveConfig) -> None:
    gif = None if config.gif is None else writable_file(config.gif)
    solver = Solver.load(config.checkpoint, data_path=config.data_path, device=config.device)
    task = config.named_task
    puzzle = solver.read(*typed(config)) if task is None else solver.read_task(task, config.query)
    if not config.as_json:  # which holds them
        for note in puzzle.remarks:
            print(f"note: {note}", file=sys.stderr, flush=True)
    trained = solver.trained_on(puzzle)
    total = config.max_steps or trained.run.arch.halt_max_steps
    watched = sys.stderr.isatty()  # a log has no use for a progress bar that lasts seconds
    with progress_bar(total=total, desc="reasoning", unit="step", enabled=watched, leave=False) as bar:
        (solution,) = solver.answer([puzzle], config.max_steps, config.halt, bar.update)
    if config.as_json:
        print(json.dumps(as_json(solution), allow_nan=False))
    else:
        here = Path.cwd()
        checkpoint = (
            trained.checkpoint.relative_to(here) if trained.checkpoint.is_relative_to(here) else trained.checkpoint
        )
        show(solution, f"{len(solution.found)} reasoning steps of {checkpoint}", config.halt)
    if gif is not None:
        animation = io.BytesIO()  # the encoder goes back and forth
        save_gif(draw_frames(puzzle, solution.found, solution.verdict), animation)
        write_atomically(gif, lambda file: file.write(animation.getvalue()))
        print(f"animation: {gif}", file=sys.stderr if config.as_json else sys.stdout)


def show(solution: Solution, made_by: str, halt: str) -> None:
    """Print every step, and what is to be said of the last."""
    puzzle, found = solution.puzzle, solution.found
    print(f"{puzzle.title}, {made_by} ({puzzle.kind.marks_mean})\n")
    print(picture(puzzle, found))
    print()
    if halt == "max" and (halted := solution.halted_at) is not None:
        print(halting_note(found, halted))
    print(solution.verdict.text)


def typed(config: SolveConfig) -> tuple[str, str]:
    """-> what the person typed, and what to call it in a message."""
    if config.puzzle is not None:
        return config.puzzle, "puzzle"
    return read_text(Path(config.file), "name a text file that holds one puzzle", limit=MAX_TEXT), config.file


def writable_file(name: str) -> Path:
    """The path of this name. Raises `UserError` before the work, not after it, if it cannot be written."""
    if not name:
        raise UserError("gif= is empty; name a file")
    path = Path(name)
    check_output(path, "gif", ".gif", start=b"GIF8")
    return path


def halting_note(found: Sequence[Answer], halted: int) -> str:
    """That the model would have stopped at this step, and whether with the same answer."""
    same = np.array_equal(found[halted - 1].tokens, found[-1].tokens)
    return (
        f"{HALT_MARK} the model would stop at step {halted} (halt=q), with {'the same' if same else 'another'} answer"
    )


def picture(puzzle: Puzzle, found: Sequence[Answer]) -> str:
    """The puzzle and the answer after each step, in rows; steps that changed nothing join the one before."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    board = partial(board_lines, puzzle.kind, colour=colour)
    columns = [("input" if puzzle.kind.separate_answer else "puzzle", board(puzzle.inputs))]
    starts = [i for i, answer in enumerate(found) if i == 0 or answer.changed.any()]
    for first, end in zip(starts, [*starts[1:], len(found)], strict=True):
        heading = f"step {end}" if end == first + 1 else f"steps {first + 1}–{end}"
        heading += f" {HALT_MARK}" if first < (halting_step(found) or 0) <= end else ""
        sure = [f"{100 * answer.confidence:.0f}" for answer in (found[first], found[end - 1])]
        lines = board(found[first].tokens, found[first].changed)
        columns.append((heading, [*lines, f"{'–'.join(dict.fromkeys(sure))}% sure"]))
    if puzzle.kind.look.marks:  # marks hide what the cells have become
        columns.append(("answer", board(found[-1].tokens)))
    return in_rows(columns, width=shutil.get_terminal_size((100, 24)).columns)


def main() -> None:
    with one_line_errors():
        solve(from_cli(SolveConfig, sys.argv[1:], __doc__))


if __name__ == "__main__":
    main()
