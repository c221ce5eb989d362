"""Time to draw and load training batches: python -m benchmarks.loader [--batch 768] [options]

sampler   which examples a batch holds: puzzle_dataset.sample_batches against one scalar draw a group
loader    batches on their way to a device: with one worker, as training on CUDA reads them (the baseline's is a
          DataLoader's process, ours a thread; on CUDA until they are there, elsewhere until they could be sent), and
          without, as training on a CPU

on made-up data of the shape of sudoku-extreme-1k-aug-1000 (one example a puzzle) and of an ARC dataset (several).
Checks first that both give the same batches; of ARC, whose examples the baseline shuffles by another generator, the
same puzzles. Cost: half a minute and 170 MB of temporary disk.
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
from benchmarks.report import Result, in_turns, parser, positive, publish
from benchmarks.sizes import SIZES, write_dataset
from dataset.format import PuzzleSet
from errors import one_line_errors
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig, sample_batches
from training.data import BATCHES_AHEAD, batches_on, read_ahead
from training.distributed import Ranks, select_device

CPU, ONE = torch.device("cpu"), Ranks(0, 1, 0)
EPOCHS = {"sudoku": 2000, "arc": 5000}  # of a pass, whose groups' order is drawn at its start
TARGETS = {"sampler": 100.0, "loader, one worker": 20.0}
CHECKED_BATCHES = 5


def sampler_rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed=1))


def check_same_batches(puzzles: PuzzleSet, batch_size: int, epochs: int = 20) -> None:
    """Raises `AssertionError` where ours and the baseline draw differently."""
    pairs = zip(
        sample_batches(sampler_rng(), puzzles, epochs, batch_size),
        plain_batches(sampler_rng(), puzzles, epochs, batch_size),
        strict=False,
    )
    one_example = len(puzzles.inputs) == len(puzzles.puzzle_identifiers)
    checked = 0
    for (examples, ids), (plain_examples, plain_ids) in itertools.islice(pairs, CHECKED_BATCHES):
        assert (ids == plain_ids).all(), "the samplers draw other puzzles"
        assert not one_example or (examples == plain_examples).all(), "the samplers draw other examples"
        checked += 1
    assert checked, "no batch was compared"


def check_same_loading(ours: PuzzleDataset, plain: PuzzleDataset) -> None:
    for (_, batch, _), (_, other, _) in itertools.islice(zip(ours, plain, strict=False), CHECKED_BATCHES):
        assert all(torch.equal(batch[key], other[key]) for key in batch), "the loaders give other batches"


def measure_sampler(name: str, puzzles: PuzzleSet, args: argparse.Namespace) -> Result:
    """Each repetition draws `count` batches out of an endless stream whose first batch has been drawn."""

    def endless(sampler: Callable) -> Iterator:
        while True:
            yield from sampler(sampler_rng(), puzzles, EPOCHS[name], args.batch)

    streams = {"baseline": endless(plain_batches), "ours": endless(sample_batches)}
    ways = {way: lambda stream=stream: drain(stream, args.count) for way, stream in streams.items()}
    times = in_turns(ways, args.repeats, CPU, desc=f"sampler, {name}")
    return per_batch("sampler", name, times, args)


def measure_loader(name: str, folder: Path, args: argparse.Namespace, workers: int) -> Result:
    """Each repetition reads `count` batches; before it, those that the worker had read ahead in the meantime."""
    ours, plain = (open_dataset(kind, folder, EPOCHS[name], args.batch) for kind in (PuzzleDataset, PlainDataset))
    if name == "sudoku":
        check_same_loading(ours, plain)
    device = select_device(args.device)
    streams = {"baseline": plain_loader(plain, workers, device), "ours": our_loader(ours, workers, device)}
    ways = {way: lambda stream=stream: drain(stream, args.count) for way, stream in streams.items()}
    times = in_turns(
        ways, args.repeats, device, before=lambda way: drain(streams[way], 2 * BATCHES_AHEAD), desc=f"loader, {name}"
    )
    return per_batch("loader, one worker" if workers else "loader, no worker", name, times, args)


def plain_loader(dataset: PlainDataset, workers: int, device: torch.device) -> Iterator:
    cuda = device.type == "cuda" and workers > 0
    options = dict(num_workers=1, prefetch_factor=BATCHES_AHEAD, persistent_workers=True) if workers else {}
    loader = DataLoader(dataset, batch_size=None, pin_memory=cuda, **options)
    while True:
        for _, batch, _ in loader:
            yield {name: field.to(device, non_blocking=True) for name, field in batch.items()} if cuda else batch


def our_loader(dataset: PuzzleDataset, workers: int, device: torch.device) -> Iterator:
    while True:
        if not workers:
            yield from batches_on(CPU, dataset)
        elif device.type == "cuda":
            yield from batches_on(device, dataset)
        else:
            yield from read_ahead(dataset.narrow(), device)


def drain(stream: Iterator, count: int) -> None:
    for _ in range(count):
        next(stream)


def per_batch(part: str, name: str, times: dict[str, list[float]], args: argparse.Namespace) -> Result:
    each = {way: [seconds / args.count for seconds in values] for way, values in times.items()}
    target = TARGETS.get(part) if name == "sudoku" and args.batch == 768 else None
    return Result(part, f"{name}, batch {args.batch}", each["baseline"], each["ours"], target)


def open_dataset(
    kind: type[PuzzleDataset], folder: Path, epochs: int, batch_size: int, ranks: Ranks = ONE
) -> PuzzleDataset:
    options = dict(seed=0, test_set_mode=False, epochs_per_iter=epochs)
    options |= dict(rank=ranks.rank, num_replicas=ranks.world_size)
    return kind(PuzzleDatasetConfig(dataset_path=str(folder), global_batch_size=batch_size, **options), "train")


def run(args: argparse.Namespace) -> list[Result]:
    results = []
    args.count = min(args.count, 10) if args.toy else args.count
    with tempfile.TemporaryDirectory() as scratch:
        for name, (groups, puzzles_a_group, examples) in shapes(args.toy).items():
            folder = Path(scratch) / name
            folder.mkdir()
            write_dataset(folder, "train", SIZES[name], groups, puzzles_a_group, examples)
            puzzles = open_dataset(PuzzleDataset, folder, 1, args.batch).sets["all"]
            check_same_batches(puzzles, args.batch)
            results.append(measure_sampler(name, puzzles, args))
            results += [measure_loader(name, folder, args, workers) for workers in (1, 0)]
    return results


def shapes(toy: bool) -> dict[str, tuple[int, int, int]]:
    """(groups, puzzles a group, examples a puzzle)"""
    if toy:
        return {"sudoku": (100, 20, 1), "arc": (40, 5, 3)}
    return {"sudoku": (1000, 1001, 1), "arc": (400, 20, 3)}


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = parser(doc)
    args.add_argument("--batch", type=positive, default=768, help="global batch size (default: %(default)s)")
    args.add_argument("--count", type=positive, default=60, help="batches a repetition (default: %(default)s)")
    args.set_defaults(repeats=5)
    return args


def main() -> None:
    args = options().parse_args()
    with one_line_errors():
        publish(run(args), CPU, args.json)


if __name__ == "__main__":
    main()
