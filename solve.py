"""Solve one puzzle with a trained model, and show its answer after every reasoning step.

    python solve.py checkpoint=<run>/step_<n> puzzle=1..4.4...1..4..1
    python solve.py checkpoint=<run>/step_<n> file=maze.txt --gif maze.gif
    python solve.py checkpoint=<run>/step_<n> task=2c0b0aff halt=q --json

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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from errors import UserError, one_line_errors
from evaluators.arc_query import identifiers_at_hand, read_query
from evaluators.solution import Answer, as_json, dataset_at_hand, halting_step, judge, read_typed, think
from files import check_output, read_text, write_atomically
from models.act import ACTModel
from puzzles.draw import board_lines, draw_frames, in_rows, save_gif
from puzzles.kind import Kind, Puzzle, all_kinds
from training.checkpoints import load_model_alone
from training.config import load_config
from training.distributed import DEVICES, select_device
from training.evaluation import check_data
from training.metrics import progress_bar
from training.options import AS_TYPED, StrictModel, from_cli
from training.predictions import MAX_STEPS
from training.reasoning import HALTING

MAX_TEXT = 1 << 14  # characters of a puzzle: 128×128 cells
MAX_PATH = 4096
HALT_MARK = "■"


class SolveConfig(StrictModel):
    checkpoint: str = Field(description="a step_<n> in its run folder")
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
    def is_task(self) -> bool:
        return self.task is not None or (self.file or "").endswith(".json")


def solve(config: SolveConfig) -> None:
    checkpoint = Path(config.checkpoint)
    gif = None if config.gif is None else writable_file(config.gif)
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    if config.is_task:  # whose embedding is found by its place in the dataset
        check_data(checkpoint, run, config.data_path)
    data_path = Path(config.data_path or run.data_path)
    metadata, trained_on = dataset_at_hand(data_path)
    if config.is_task:
        puzzle = read_query(config.task or config.file, config.query, data_path, trained_on)
    else:
        puzzle = read_typed(*typed(config), trained_on)
    device = select_device(config.device)
    try:
        model = load_model_alone(checkpoint, run, len(puzzle.inputs), device, metadata).model
    except UserError:
        if trained_on is not None and (type(trained_on), trained_on.seq_len) != (type(puzzle.kind), len(puzzle.inputs)):
            raise another_puzzle(checkpoint, f"{trained_on.title}s", puzzle) from None
        raise
    check_fit(puzzle, model, trained_on, checkpoint, data_path)
    if puzzle.name is not None and model.puzzle_emb is not None:
        find_embedding(puzzle, identifiers_at_hand(data_path))
    for note in puzzle.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)

    watched = sys.stderr.isatty()  # a log has no use for a progress bar that lasts seconds
    total = config.max_steps or model.config.halt_max_steps
    steps = think(puzzle, model, config.max_steps, config.halt)
    found = list(progress_bar(steps, total=total, desc="reasoning", unit="step", enabled=watched, leave=False))
    verdict = judge(puzzle, found[-1].tokens)
    if config.as_json:
        print(json.dumps(as_json(puzzle, found, verdict), allow_nan=False))
    else:
        print(f"{puzzle.title}, {len(found)} reasoning steps of {checkpoint} ({puzzle.kind.marks_mean})\n")
        print(picture(puzzle, found))
        print()
        if config.halt == "max" and (halted := halting_step(found)) is not None:
            print(halting_note(found, halted))
        print(verdict.text)
    if gif is not None:
        animation = io.BytesIO()  # the encoder goes back and forth
        save_gif(draw_frames(puzzle, found, verdict), animation)
        write_atomically(gif, lambda file: file.write(animation.getvalue()))
        print(f"animation: {gif}", file=sys.stderr if config.as_json else sys.stdout)


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


def check_fit(puzzle: Puzzle, model: ACTModel, trained_on: Kind | None, checkpoint: Path, data_path: Path) -> None:
    """Refuse a puzzle of another kind than the model was trained on, as far as the weights and the dataset tell."""
    vocab_size = model.data.vocab_size
    if trained_on is not None and trained_on.vocab_size != vocab_size:
        trained_on = None  # another dataset lies there now
    known = kinds_with(vocab_size) if trained_on is None else f"{trained_on.title}s"
    another_kind = trained_on is not None and type(trained_on) is not type(puzzle.kind)
    if another_kind or puzzle.kind.vocab_size != vocab_size:
        raise another_puzzle(checkpoint, known, puzzle)
    if trained_on is not None and trained_on.seq_len != len(puzzle.inputs):
        puzzle.notes += (f"the model was trained on {known}: do not expect a good answer",)
    names = identifiers_at_hand(data_path) if puzzle.task is not None else []
    if names and model.puzzle_emb is not None and len(names) != model.data.num_puzzle_identifiers:
        raise UserError(
            f"{checkpoint} has {model.data.num_puzzle_identifiers} puzzle embeddings, {data_path}/identifiers.json "
            f"{len(names)} names; set data_path to the dataset that it was trained on"
        )


def find_embedding(puzzle: Puzzle, names: list[str]) -> None:
    """Let the model know the puzzle by its name, if it was trained on one of that name."""
    if puzzle.name in names:
        puzzle.identifier = names.index(puzzle.name)
    elif len(names) > 1:
        puzzle.notes += (f"no puzzle called {puzzle.name!r:.60} was in the dataset: the blank embedding is used",)


def another_puzzle(checkpoint: Path, known: str, puzzle: Puzzle) -> UserError:
    article = "a " if puzzle.task is None else ""
    return UserError(
        f"{checkpoint} was trained on {known}, but the puzzle is {article}{puzzle.title}; use a checkpoint that was "
        f"trained on such puzzles"
    )


def kinds_with(vocab_size: int) -> str:
    """The square puzzles with this many tokens, in words."""
    names = []
    for kind in all_kinds():
        titles = {board.title for board in boards_of(kind) if board.vocab_size == vocab_size}
        if titles:
            names.append(f"{titles.pop() if len(titles) == 1 else kind.name}s")
    return " or ".join(names) or f"puzzles of {vocab_size} tokens"


def boards_of(kind: type[Kind]) -> Iterator[Kind]:
    """Yield the kind's square boards of 2×2 up to 30×30, as far as they exist."""
    for side in range(2, 31):
        with suppress(ValueError):
            yield kind.of_cells(side * side)


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
