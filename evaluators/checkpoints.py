"""A checkpoint's run and the puzzles it is tried on, for the evaluators that run the model themselves."""

from math import isqrt

import numpy as np

from errors import UserError
from puzzle_dataset import PuzzleDataset
from puzzles import arc
from puzzles.maze import CHARACTERS, GOAL, PATH, START
from puzzles.sudoku import BOXES
from training.config import PretrainConfig
from training.data import open_split
from training.distributed import Ranks


def open_to_answer(
    run: PretrainConfig, split: str, *, data_path: str | None, batch_size: int, max_examples: int | None
) -> PuzzleDataset:
    """A split in order, in one process; `max_examples` draws what evaluate.py draws."""
    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        raise UserError("this command runs in one process; start it with python, not torchrun")
    batch_size = min(batch_size, max_examples or batch_size)
    dataset = open_split(
        run, split, ranks, data_path=data_path, global_batch_size=batch_size, max_examples=max_examples
    )
    if not dataset.num_examples():
        raise UserError(f"{dataset.config.dataset_path}/{split} holds no examples")
    return dataset


def puzzle_kind(dataset: PuzzleDataset) -> str:
    """`sudoku`, `maze` or `arc`; the datasets do not say it, but each has a vocabulary and a shape of its own."""
    meta = dataset.metadata
    size = isqrt(meta.seq_len)
    if (meta.vocab_size, meta.seq_len) == (arc.VOCAB_SIZE, arc.SEQ_LEN):
        return "arc"
    square = size * size == meta.seq_len
    if square and meta.vocab_size == 1 + len(CHARACTERS) and all(map(_are_mazes, dataset.sets.values())):
        return "maze"
    if square and size in BOXES and meta.vocab_size == size + 2:
        return "sudoku"
    raise UserError(
        f"{dataset.config.dataset_path} holds neither Sudokus, mazes nor ARC tasks as the builders here write them "
        f"({meta.seq_len} cells, {meta.vocab_size} tokens)"
    )


def _are_mazes(puzzles) -> bool:
    """4×4 Sudokus have as many tokens as mazes; but a maze has one S, one G and no path, every time."""
    inputs = np.asarray(puzzles.inputs[:1000])
    ends = ((inputs == START).sum(1) == 1) & ((inputs == GOAL).sum(1) == 1)
    return bool((ends & ~(inputs == PATH).any(1)).all())
