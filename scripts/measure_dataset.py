"""Opening a huge dataset, and its first batches: python -m scripts.measure_dataset [options]

Writes made-up 9×9 boards into a temporary folder, by default 5 million puzzles of 200,000 identifiers, in 1,000 sets
and, for comparison, in one. Prints what each first step takes in a process of its own. Resident memory includes what is
mapped of the arrays (810 MB). Cost: 1 minute, 0.9 GB of temporary disk.
"""

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

from dataset.check import CheckConfig, check
from dataset.format import SplitWriter, content_digest, load_metadata, read_identifiers, write_identifiers
from errors import UserError, one_line_errors
from puzzle_dataset import PuzzleDataset
from puzzles.sudoku import Sudoku

KIND, PUZZLES_A_GROUP = Sudoku(9, 9), 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--puzzles", type=int, default=5_000_000, help="of one example each (default: %(default)s)")
    parser.add_argument("--sets", type=int, default=1000, help="sets that they are divided into (default: %(default)s)")
    parser.add_argument("--identifiers", type=int, default=200_000, help="names of puzzles (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="a folder with room for the temporary files")
    args = parser.parse_args()
    with one_line_errors():
        if args.sets < 1 or args.identifiers < 1 or args.puzzles < args.sets * PUZZLES_A_GROUP:
            raise UserError(
                f"--sets and --identifiers must be 1 or more, --puzzles {PUZZLES_A_GROUP} for each set or more"
            )
        print("| sets | what | seconds | peak memory, MB |\n| --- | --- | --- | --- |")
        for sets in dict.fromkeys((1, args.sets)):
            with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                in_a_process(write, sets, Path(scratch), args.puzzles, sets, args.identifiers)
                for step in (open_train, first_batch, first_test_batch, identity, names, whole):
                    in_a_process(step, sets, Path(scratch))


def in_a_process(step: Callable, sets: int, *arguments: object) -> None:
    """Run a step in a fresh process, and print its line of the table; the first sentence of its docstring names it."""
    process = multiprocessing.get_context("spawn").Process(target=measured, args=(step, sets, *arguments))
    process.start()
    process.join()
    assert process.exitcode == 0, step


def measured(step: Callable, sets: int, *arguments: object) -> None:
    start = time.perf_counter()
    step(*arguments)
    seconds = time.perf_counter() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    print(f"| {sets:,} | {step.__doc__} | {seconds:.2f} | {kilobytes / 1024:.0f} |", flush=True)


def write(folder: Path, puzzles: int, sets: int, identifiers: int) -> None:
    """write"""
    rng, each = np.random.default_rng(0), puzzles // sets // PUZZLES_A_GROUP * PUZZLES_A_GROUP
    write_identifiers(folder, [f"puzzle_{i}" for i in range(1, identifiers)])
    digests = {}
    for number in range(sets):
        writer = SplitWriter(folder, "part", seq_len=KIND.seq_len, set_name=f"set_{number}")
        rows = rng.integers(1, KIND.vocab_size, (each, KIND.seq_len), dtype=np.uint8)
        writer.append(
            rows, rows, puzzle_identifiers=rng.integers(0, identifiers, each), puzzle_sizes=np.ones(each, np.int32),
            group_sizes=np.full(each // PUZZLES_A_GROUP, PUZZLES_A_GROUP),
        )  # fmt: skip
        written = writer.finish(vocab_size=KIND.vocab_size, num_puzzle_identifiers=identifiers, kind=KIND)
        digests |= written.digests
        (folder / "train").mkdir(exist_ok=True)
        for file in writer.folder.glob("*.npy"):
            file.rename(folder / "train" / file.name)
        (writer.folder / "dataset.json").unlink()
        writer.folder.rmdir()
    totals = {"sets": [f"set_{number}" for number in range(sets)], "total_groups": each * sets // PUZZLES_A_GROUP}
    described = written.model_copy(update=totals | {"digests": digests})
    described.write(folder / "train")


def opened(folder: Path, epochs_per_iter: int | None = 20) -> PuzzleDataset:
    return PuzzleDataset.alone(folder, "train", 768, epochs_per_iter=epochs_per_iter)


def open_train(folder: Path) -> None:
    """open"""
    opened(folder)


def first_batch(folder: Path) -> None:
    """open, first training batch"""
    data = opened(folder)
    assert data.gives_a_batch(0)
    assert len(list(itertools.islice(data.train_batches(0), 1))) == 1


def first_test_batch(folder: Path) -> None:
    """open, first batch in order"""
    data = opened(folder, epochs_per_iter=None)
    assert data.num_examples() and data.num_test_batches()
    assert len(list(itertools.islice(data.test_batches(), 1))) == 1


def identity(folder: Path) -> None:
    """`content_digest`"""
    content_digest(folder / "train")


def names(folder: Path) -> None:
    """read identifiers.json"""
    assert len(read_identifiers(folder)) == load_metadata(folder / "train").num_puzzle_identifiers


def whole(folder: Path) -> None:
    """`dataset.check`"""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        check(CheckConfig(dataset=folder))


if __name__ == "__main__":
    main()
