"""Solve one puzzle with a trained model, and show its answer after every reasoning step.

    python solve.py checkpoint=<run>/step_<n> puzzle=1..4.4...1..4..1
    python solve.py checkpoint=<run>/step_<n> file=maze.txt --gif maze.gif
    python solve.py checkpoint=<run>/step_<n> task=2c0b0aff --json

    puzzle=…        a Sudoku of 81, 36 or 16 cells: digits, `.` or `0` for a blank
    file=…          a text file with a Sudoku, also as a drawn grid, or with a maze: lines of `#`, blanks (or `.`), S, G
    task=…          an ARC task: its id, or its JSON file (named as in the run's dataset)
    query=1         which test input of the ARC task
    max_steps=…     reasoning steps; default: as in training
    data_path=…     the run's dataset, where it has moved; only ARC tasks need it
    device=auto     auto, cuda, mps or cpu
    --gif FILE      also draw the steps as an animation (or gif=FILE)
    --json          print one JSON object instead, see evaluators/solution.py (or json=true)

Cells that changed since the step before are marked; the percentage is the model's own estimate that the whole answer
is right (sigmoid of q_halt). Below the boards stands whether the answer obeys the rules, which are checked without
knowing the solution; ARC has no rules: there it is whether the answer is the output that the task states.
The exit code is 0 for a wrong answer too, and 2 for a mistake in the input. Reads `all_config.yaml` beside the
checkpoint. Checkpoints of the original load too.
"""

import training.threads  # noqa: F401, before torch loads

# isort: split

import json
import os
import shutil
import sys
import tempfile
from math import isqrt
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from dataset.format import load_metadata
from errors import UserError, one_line_errors
from evaluators.arc_query import identifiers_at_hand, read_query
from evaluators.boards import arc_lines, in_rows, maze_lines, sudoku_lines
from evaluators.puzzle_text import Puzzle, read_puzzle
from evaluators.solution import Answer, answers, as_json, judge
from evaluators.steps import reasoning_steps
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1
from training.checkpoints import load_model_alone
from training.config import StrictModel, from_cli, load_config
from training.distributed import DEVICES, select_device
from training.metrics import progress_bar

TEXTS = ("checkpoint", "puzzle", "file", "task", "data_path", "gif")  # taken as they are typed
MARKS = {
    "sudoku": "* changed since the step before",
    "maze": "since the step before: + has become path, - free, ! something else",
    "arc": "* changed since the step before, at first since the input",
}


class SolveConfig(StrictModel):
    checkpoint: str
    puzzle: str | None = None
    file: str | None = None
    task: str | None = None
    query: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    data_path: str | None = None
    device: Literal[DEVICES] = "auto"
    gif: str | None = None
    as_json: bool = Field(default=False, alias="json")

    @model_validator(mode="after")
    def _one_puzzle(self):
        given = [key for key in ("puzzle", "file", "task") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"give one of puzzle=…, file=… and task=…: {found} (see --help)")
        return self


def read_arguments(args: list[str]) -> SolveConfig:
    """`key=value`, and the flags `--json` and `--gif FILE`."""
    texts, pairs, rest = {}, [], iter(args)
    for arg in rest:
        if arg == "--json":
            arg = "json=true"
        elif arg == "--gif":
            arg = f"gif={next(rest, '')}"
        elif arg.startswith("--gif="):
            arg = arg.removeprefix("--")
        key, equals, value = arg.partition("=")
        if equals and key in TEXTS:
            # YAML would read a Sudoku of digits as a number, and what follows a `#` as a comment.
            texts[key], arg = value, f"{key}=text"
        pairs.append(arg)
    return from_cli(SolveConfig, pairs, __doc__).model_copy(update=texts)


def solve(config: SolveConfig) -> None:
    checkpoint = Path(config.checkpoint)
    gif = None if config.gif is None else writable_file(config.gif)
    puzzle = None if wants_arc(config) else read_text_puzzle(config)
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    data_path = Path(config.data_path or run.data_path)
    if puzzle is None:
        puzzle = read_query(config.task or config.file, config.query, data_path)
    device = select_device(config.device)
    model = load_model_alone(checkpoint, run, len(puzzle.inputs), device).model
    check_fit(puzzle, model, checkpoint, data_path)
    for note in puzzle.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)

    found = think(puzzle, model, device, config.max_steps)
    verdict = judge(puzzle, found[-1].tokens)
    if config.as_json:
        print(json.dumps(as_json(puzzle, found, verdict)))
    else:
        print(f"{puzzle.name}, {len(found)} reasoning steps of {checkpoint} ({MARKS[puzzle.kind]})\n")
        print(picture(puzzle, found))
        print(f"\n{verdict.text}")
    if gif is not None:
        from evaluators.animation import draw_frames, save_gif  # a second of drawing libraries

        save_gif(draw_frames(puzzle, found, verdict), gif)
        print(f"animation: {gif}", file=sys.stderr if config.as_json else sys.stdout)


def wants_arc(config: SolveConfig) -> bool:
    return config.task is not None or (config.file or "").endswith(".json")


def read_text_puzzle(config: SolveConfig) -> Puzzle:
    if config.puzzle is not None:
        return read_puzzle(config.puzzle, "puzzle")
    try:
        # What is no UTF-8 becomes an unknown character, which is reported with its place.
        text = Path(config.file).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read file={config.file}: {error.strerror}") from None
    return read_puzzle(text, config.file)


def writable_file(name: str) -> Path:
    """Refused before the work, not after it."""
    path = Path(name)
    if not name or name.startswith("--"):
        raise UserError("--gif needs the name of a file to write")
    if path.is_dir():
        raise UserError(f"cannot write --gif {path}: it is a folder; name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write --gif {path}: {error.strerror} ({path.parent})") from None
    return path


def check_fit(puzzle: Puzzle, model: HierarchicalReasoningModel_ACTV1, checkpoint: Path, data_path: Path) -> None:
    """Refuse a puzzle of another kind than the model was trained on, as far as the weights and the dataset tell."""
    arch, cells = model.config, len(puzzle.inputs)
    seq_len = trained_seq_len(data_path, arch.vocab_size)
    right_length = seq_len in (None, cells) or (puzzle.kind == "maze" and seq_len > 16)
    if arch.vocab_size != puzzle.vocab_size or not right_length:
        raise UserError(
            f"{checkpoint} was trained on {trained_on(arch.vocab_size, seq_len)}, but what it shall solve is "
            f"{'' if puzzle.kind == 'arc' else 'a '}{puzzle.name}; use a checkpoint that was trained on such puzzles"
        )
    if seq_len not in (None, cells):
        puzzle.notes += (f"the model was trained on {trained_on(arch.vocab_size, seq_len)}: expect no good answer",)
    names = identifiers_at_hand(data_path) if puzzle.kind == "arc" else []
    if names and model.puzzle_emb is not None and len(names) != arch.num_puzzle_identifiers:
        raise UserError(
            f"{checkpoint} has {arch.num_puzzle_identifiers} puzzle embeddings, {data_path}/identifiers.json "
            f"{len(names)} names; set data_path to the dataset that it was trained on"
        )


def trained_seq_len(data_path: Path, vocab_size: int) -> int | None:
    """Of the run's dataset, where it is there."""
    for split in ("train", "test"):
        if (data_path / split / "dataset.json").exists():
            metadata = load_metadata(data_path / split)
            return metadata.seq_len if metadata.vocab_size == vocab_size else None
    return None


def trained_on(vocab_size: int, seq_len: int | None) -> str:
    """The builders' puzzles with this vocabulary; 4×4 Sudokus and mazes have the same number of tokens."""
    mazes = "4×4 Sudokus or mazes" if seq_len is None else f"{isqrt(seq_len)}×{isqrt(seq_len)} mazes"
    names = {6: "4×4 Sudokus" if seq_len == 16 else mazes, 8: "6×6 Sudokus", 11: "9×9 Sudokus", 12: "ARC tasks"}
    return names.get(vocab_size, f"puzzles of {vocab_size} tokens")


def think(
    puzzle: Puzzle, model: HierarchicalReasoningModel_ACTV1, device: torch.device, max_steps: int | None
) -> list[Answer]:
    inputs = torch.from_numpy(puzzle.inputs.astype("int32"))[None].to(device)
    identifiers = torch.tensor([puzzle.identifier], dtype=torch.int32, device=device)
    steps = answers(puzzle, reasoning_steps(model, inputs, identifiers, max_steps))
    total = max_steps or model.config.halt_max_steps
    watched = sys.stderr.isatty()  # a log has no use for the bar of a command that takes seconds
    return list(progress_bar(steps, total=total, desc="reasoning", unit="step", enabled=watched, leave=False))


def picture(puzzle: Puzzle, found: list[Answer]) -> str:
    """The puzzle and the answer after each step, in rows; steps that changed nothing go with the one before."""
    columns = [("input" if puzzle.kind == "arc" else "puzzle", board(puzzle, puzzle.inputs))]
    starts = [i for i, answer in enumerate(found) if i == 0 or answer.changed.any()]
    for first, end in zip(starts, [*starts[1:], len(found)], strict=True):
        heading = f"step {end}" if end == first + 1 else f"steps {first + 1}–{end}"
        sure = [f"{100 * answer.confidence:.0f}" for answer in (found[first], found[end - 1])]
        lines = board(puzzle, found[first].tokens, found[first].changed)
        columns.append((heading, [*lines, f"{'–'.join(dict.fromkeys(sure))}% sure"]))
    if puzzle.kind == "maze":  # where the marks hide the path
        columns.append(("answer", board(puzzle, found[-1].tokens)))
    return in_rows(columns, width=shutil.get_terminal_size((100, 24)).columns)


def board(puzzle: Puzzle, tokens: np.ndarray, changed: np.ndarray | None = None) -> list[str]:
    if puzzle.kind == "arc":
        return arc_lines(tokens, changed, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    return {"sudoku": sudoku_lines, "maze": maze_lines}[puzzle.kind](tokens, changed)


def main() -> None:
    with one_line_errors():
        solve(read_arguments(sys.argv[1:]))


if __name__ == "__main__":
    main()
