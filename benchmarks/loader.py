"""Time to draw and load training batches: python -m benchmarks.loader [--batch 768] [options]

sampler   which examples a batch holds: puzzle_dataset.sample_batches against one scalar draw per group
loader    batches on their way to a device: with one worker, as training on CUDA reads them (the baseline's is a
          DataLoader's process, ours a thread; on CUDA until they are there, elsewhere until they could be sent), and
          without, as training on a CPU

Both are timed on made-up data of the shape of sudoku-extreme-1k-aug-1000 (one example per puzzle) and of an ARC dataset
(several). First they are checked to give the same batches; for ARC, whose examples the baseline shuffles with another
generator, the same puzzles. Cost: half a minute and 170 MB of temporary disk.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.baseline import PlainDataset, plain_batches
from benchmarks.report import Result, in_turns, positive, publish, timing_parser
from benchmarks.sizes import SIZES, config_of, write_dataset
from dataset.format import PuzzleSet
from errors import one_line_errors
from puzzle_dataset import Batch, PuzzleDataset, sample_batches
from training.data import BATCHES_AHEAD, open_split, read_ahead, train_batches_on
from training.distributed import Ranks, select_device

CPU, ONE = torch.device("cpu"), Ranks(0, 1, 0)
EPOCHS = {"sudoku": 2000, "arc": 5000}  # in a pass, for which the order of groups is drawn at its start
TARGETS = {"sampler": 100.0, "loader, one worker": 20.0}
CHECKED_BATCHES = 5


def sampler_rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed=1))


def check_same_batches(puzzles: PuzzleSet, batch_size: int, epochs: int = 20) -> None:
    """Raises `AssertionError` if ours and the baseline draw differently."""
    ours, plain = (draw(sampler_rng(), puzzles, epochs, batch_size) for draw in (sample_batches, plain_batches))
    one_example = len(puzzles.inputs) == len(puzzles.puzzle_identifiers)
    compared = list(itertools.islice(zip(ours, plain, strict=False), CHECKED_BATCHES))
    assert compared, "no batch was compared"
    for (examples, ids), (plain_examples, plain_ids) in compared:
        assert (ids == plain_ids).all(), "the samplers draw other puzzles"
        assert not one_example or (examples == plain_examples).all(), "the samplers draw other examples"


def check_same_loading(plain: PlainDataset, ours: PuzzleDataset) -> None:
    for (_, batch, _), (_, other, _) in itertools.islice(zip(ours, plain, strict=False), CHECKED_BATCHES):
        assert all(torch.equal(batch[key], other[key]) for key in batch), "the loaders give other batches"


def sampler_streams(name: str, puzzles: PuzzleSet, batch_size: int) -> tuple[Iterator, Iterator]:
    """Endless streams, the baseline's and ours; the order of the groups of a pass is drawn with its first batch."""

    def endless(sampler: Callable) -> Iterator:
        while True:
            yield from sampler(sampler_rng(), puzzles, EPOCHS[name], batch_size)

    return endless(plain_batches), endless(sample_batches)


def loader_streams(
    name: str, folder: Path, batch_size: int, workers: int, device: torch.device, ranks: Ranks = ONE
) -> tuple[Iterator[Batch], Iterator[Batch]]:
    """Endless streams, the baseline's and ours; on CUDA with a worker, their batches are on the device."""
    if name == "sudoku":
        check_same_loading(*open_both(name, folder, batch_size, ranks))
    plain, ours = open_both(name, folder, batch_size, ranks)
    return plain_loader(plain, workers, device), our_loader(ours, workers, device)


def open_both(
    name: str, folder: Path, batch_size: int, ranks: Ranks = ONE, epochs: int | None = None
) -> tuple[PlainDataset, PuzzleDataset]:
    config = config_of(SIZES[name], batch_size, f"data_path='{folder}'")
    ours = open_split(config, "train", ranks, epochs_per_iter=epochs or EPOCHS[name])
    return PlainDataset(ours.config, "train"), ours


def plain_loader(dataset: PlainDataset, workers: int, device: torch.device) -> Iterator[Batch]:
    cuda = device.type == "cuda" and workers > 0
    options = dict(num_workers=1, prefetch_factor=BATCHES_AHEAD, persistent_workers=True) if workers else {}
    loader = DataLoader(dataset, batch_size=None, pin_memory=cuda, **options)
    while True:
        for _, batch, _ in loader:
            yield {name: field.to(device, non_blocking=True) for name, field in batch.items()} if cuda else batch


def our_loader(dataset: PuzzleDataset, workers: int, device: torch.device) -> Iterator[Batch]:
    for passes in itertools.count():
        if workers and device.type != "cuda":
            yield from read_ahead((rows for _, rows in dataset.train_batches(passes)), device)
        else:
            yield from train_batches_on(device if workers else CPU, dataset, passes, skip=0)


def drain(stream: Iterator, count: int) -> None:
    for _ in range(count):
        next(stream)


def measure(
    part: str, name: str, streams: tuple[Iterator, Iterator], args: argparse.Namespace, device: torch.device
) -> Result:
    """Time repetitions of `count` batches; before each, batches that a worker had read ahead are taken off."""
    both = dict(zip(("baseline", "ours"), streams, strict=True))
    ways = {way: lambda stream=stream: drain(stream, args.count) for way, stream in both.items()}
    ahead = 2 * BATCHES_AHEAD if part == "loader, one worker" else 0
    times = in_turns(ways, args.repeats, device, before=lambda way: drain(both[way], ahead))
    each = {way: [seconds / args.count for seconds in values] for way, values in times.items()}
    target = TARGETS.get(part) if name == "sudoku" and args.batch == 768 else None
    return Result(part, f"{name}, batch {args.batch}", each["baseline"], each["ours"], target)


def write_shape(name: str, folder: Path, toy: bool) -> Path:
    """Write made-up training data with the groups, puzzles per group and examples per puzzle of Sudoku or ARC."""
    shapes = {"sudoku": (100, 20, 1), "arc": (40, 5, 3)} if toy else {"sudoku": (1000, 1001, 1), "arc": (400, 20, 3)}
    folder.mkdir()
    write_dataset(folder, "train", SIZES[name], *shapes[name])
    return folder


def run(args: argparse.Namespace) -> list[Result]:
    results, device = [], select_device(args.device)
    args.count = min(args.count, 10) if args.toy else args.count
    with tempfile.TemporaryDirectory() as scratch:
        for name in EPOCHS:
            folder = write_shape(name, Path(scratch) / name, args.toy)
            puzzles = open_both(name, folder, args.batch)[1].sets["all"]
            check_same_batches(puzzles, args.batch)
            results.append(measure("sampler", name, sampler_streams(name, puzzles, args.batch), args, CPU))
            for workers, part in ((1, "loader, one worker"), (0, "loader, no worker")):
                streams = loader_streams(name, folder, args.batch, workers, device)
                results.append(measure(part, name, streams, args, device))
    return results


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = timing_parser(doc, repeats=5)
    args.add_argument("--batch", type=positive, default=768, help="global batch size (default: %(default)s)")
    args.add_argument("--count", type=positive, default=60, help="batches a repetition (default: %(default)s)")
    return args


def main() -> None:
    args = options().parse_args()
    with one_line_errors():
        publish(run(args), select_device(args.device), args.json)


if __name__ == "__main__":
    main()
