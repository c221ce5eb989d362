"""Shards on disk -> batches of tensors. The format is described in dataset/common.py.

Training visits every group `epochs_per_iter` times a pass and takes one of its puzzles each time; evaluation reads the
examples in order and pads the last batch. All ranks make the same draws and cut their own slice out of each batch.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dataset.cli import describe_validation_error
from dataset.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from errors import UserError

Batch = dict[str, Tensor]  # inputs, labels (B, seq_len) and puzzle_identifiers (B,), all int32

# Puzzles are picked this many groups at a time. The number is part of the sampling: with several examples a puzzle,
# another one would give other (equally good) batches.
_GROUPS_A_DRAW = 65_536
_SCAN_BYTES = 1 << 30  # of each array are checked against the vocabulary before a run starts


class PuzzleDatasetConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seed: int
    dataset_path: str
    global_batch_size: int = Field(ge=1)
    test_set_mode: bool
    epochs_per_iter: int = Field(ge=1)  # group permutations in a training pass
    rank: int = Field(ge=0)
    num_replicas: int = Field(ge=1)
    max_examples: int | None = Field(default=None, ge=1)  # in test mode: a seeded subset, in order


@dataclass
class PuzzleSet:
    """The arrays of one set; inputs and labels stay memory-mapped."""

    inputs: np.ndarray  # (examples, seq_len)
    labels: np.ndarray  # (examples, seq_len)
    puzzle_identifiers: np.ndarray  # (puzzles,)
    puzzle_indices: np.ndarray  # (puzzles + 1,)
    group_indices: np.ndarray  # (groups + 1,)

    def puzzles_of(self, examples: np.ndarray) -> np.ndarray:
        """Which puzzle each example belongs to."""
        return np.searchsorted(self.puzzle_indices, examples, side="right") - 1


class PuzzleDataset(IterableDataset):
    """Iterates over `(set_name, batch, global_batch_size)`; the last is the number of real examples over all ranks.

    Each `iter` of a training split is the next pass, with its own random stream. Raises `UserError` for a dataset that
    is missing, truncated or inconsistent.
    """

    def __init__(self, config: PuzzleDatasetConfig, split: str = "train"):
        super().__init__()
        if config.global_batch_size % config.num_replicas:
            raise UserError(
                f"global_batch_size={config.global_batch_size} is not divisible by the {config.num_replicas} ranks; "
                f"choose a multiple of {config.num_replicas}"
            )
        self.config, self.split = config, split
        self.local_batch_size = config.global_batch_size // config.num_replicas
        folder = Path(config.dataset_path) / split
        self.metadata = load_metadata(folder)
        self.sets = {name: load_set(folder, name, self.metadata) for name in self.metadata.sets}
        _check_totals(self.sets.values(), folder, self.metadata)
        self._pass = 0  # training passes begun, over all sets
        self._skip = 0  # batches of the next pass that an earlier process has had

    def seek(self, passes: int, batches: int) -> None:
        """Go on where a run stood: after `passes` whole iterations and `batches` of the next one."""
        self._pass, self._skip = passes * len(self.sets), batches

    def __iter__(self) -> Iterator[tuple[str, Batch, int]]:
        worker = get_worker_info()
        assert worker is None or worker.num_workers == 1, "more workers would repeat each other's batches"
        return self._iter_test() if self.config.test_set_mode else self._iter_train()

    def num_examples(self) -> int:
        """Over all sets, after `max_examples`."""
        return sum(len(self._test_examples(puzzles)) for puzzles in self.sets.values())

    def num_test_batches(self) -> int:
        return sum(-(-len(self._test_examples(s)) // self.config.global_batch_size) for s in self.sets.values())

    def _iter_train(self) -> Iterator[tuple[str, Batch, int]]:
        size, skip, self._skip = self.config.global_batch_size, self._skip, 0
        for name, puzzles in self.sets.items():
            self._pass += 1
            rng = np.random.Generator(np.random.Philox(seed=self.config.seed + self._pass))
            for examples, puzzle_ids in sample_batches(rng, puzzles, self.config.epochs_per_iter, size):
                if skip:
                    skip -= 1
                    continue
                mine = slice(self.config.rank * self.local_batch_size, (self.config.rank + 1) * self.local_batch_size)
                yield name, self._collate(puzzles, examples[mine], puzzle_ids[mine]), size

    def _iter_test(self) -> Iterator[tuple[str, Batch, int]]:
        for name, mine, size in self._test_batches():
            puzzles = self.sets[name]
            yield name, self._collate(puzzles, mine, puzzles.puzzles_of(mine)), size

    def test_examples(self) -> Iterator[np.ndarray]:
        """Which examples the rows of this rank's test batches are, batch after batch, without padding.

        They are positions in the split, its sets one after another.
        """
        starts = dict(zip(self.sets, np.cumsum([0, *(len(s.inputs) for s in self.sets.values())]), strict=False))
        for name, mine, _ in self._test_batches():
            yield mine + starts[name]

    def _test_batches(self) -> Iterator[tuple[str, np.ndarray, int]]:
        """(set, this rank's examples of it, number of examples over all ranks) of each test batch."""
        size = self.config.global_batch_size
        for name, puzzles in self.sets.items():
            examples = self._test_examples(puzzles)
            for start in range(0, len(examples), size):
                whole = examples[start : start + size]
                yield name, whole[self.config.rank * self.local_batch_size :][: self.local_batch_size], len(whole)

    def _test_examples(self, puzzles: PuzzleSet) -> np.ndarray:
        total, limit = len(puzzles.inputs), self.config.max_examples
        if limit is None or limit >= total:
            return np.arange(total)
        return np.sort(np.random.default_rng(self.config.seed).choice(total, limit, replace=False))

    def _collate(self, puzzles: PuzzleSet, examples: np.ndarray, puzzle_ids: np.ndarray) -> Batch:
        """Gather the rows, mark ignored labels, pad up to this rank's batch size."""
        meta = self.metadata
        inputs, labels = puzzles.inputs[examples], puzzles.labels[examples]
        for field, rows in (("inputs", inputs), ("labels", labels)):
            _check_vocabulary(rows, f"{self.config.dataset_path}/{self.split}: {field}", meta)
        labels = mark_ignored(labels, meta)
        missing = self.local_batch_size - len(examples)

        def padded(rows: np.ndarray, value: int) -> Tensor:
            rows = rows.astype(np.int32, copy=False)
            if missing:
                rows = np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=value)
            return torch.from_numpy(rows)

        return {
            "inputs": padded(inputs, meta.pad_id),
            "labels": padded(labels, IGNORE_LABEL_ID),
            "puzzle_identifiers": padded(puzzles.puzzle_identifiers[puzzle_ids], meta.blank_identifier_id),
        }


def mark_ignored(labels: np.ndarray, metadata: PuzzleDatasetMetadata) -> np.ndarray:
    """Labels as they stand on disk -> int32, ignored ones -100."""
    labels = labels.astype(np.int32)
    if metadata.ignore_label_id is not None:
        labels[labels == metadata.ignore_label_id] = IGNORE_LABEL_ID
    return labels


def sample_batches(
    rng: np.random.Generator, puzzles: PuzzleSet, epochs: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (example indices, puzzle indices), each (batch_size,), for one training pass.

    Groups come in the order of `epochs` permutations; each gives one puzzle, whose examples are shuffled and fill the
    batch, cut off at its end. A last batch that is not full is dropped.
    """
    num_groups = len(puzzles.group_indices) - 1
    order = np.concatenate([rng.permutation(num_groups).astype(np.int32) for _ in range(epochs)])
    starts, sizes = puzzles.puzzle_indices[:-1], np.diff(puzzles.puzzle_indices)
    picked = np.zeros(0, np.int64)  # puzzles drawn and not used yet
    drawn = 0
    while True:
        ends = np.cumsum(sizes[picked])
        used = 0  # puzzles of `picked` that earlier batches took
        while True:
            before = ends[used - 1] if used else 0
            last = int(np.searchsorted(ends, before + batch_size))  # the puzzle that completes the batch
            if last >= len(picked):
                break
            yield _batch_examples(rng, picked[used : last + 1], starts, sizes, batch_size)
            used = last + 1
        groups = order[drawn : drawn + _GROUPS_A_DRAW]
        if not len(groups):
            return
        # An array call draws the same stream as one call a group, as the original made them.
        fresh = rng.integers(puzzles.group_indices[groups], puzzles.group_indices[groups + 1])
        picked = np.concatenate([picked[used:], fresh])
        drawn += len(groups)


def _batch_examples(
    rng: np.random.Generator, picked: np.ndarray, starts: np.ndarray, sizes: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """All examples of the picked puzzles, shuffled within each puzzle, cut to the batch."""
    counts = sizes[picked]
    total = int(counts.sum())
    if total == len(picked):  # one example each: nothing to shuffle
        return starts[picked].astype(np.int64), picked
    position = np.repeat(np.arange(len(picked)), counts)
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    examples = starts[picked][position].astype(np.int64) + within
    shuffled = np.lexsort((rng.random(total), position))
    return examples[shuffled][:batch_size], picked[position][:batch_size]


def load_metadata(folder: Path) -> PuzzleDatasetMetadata:
    """Read `<folder>/dataset.json`."""
    path = folder / "dataset.json"
    if not path.exists():
        if not folder.parent.is_dir():
            raise UserError(f"no dataset at {folder.parent}; build one (dataset/build_*_dataset.py) or set data_path")
        splits = sorted(p.parent.name for p in folder.parent.glob("*/dataset.json"))
        found = f"it has the splits {', '.join(splits)}" if splits else "it holds no complete split: build it again"
        raise UserError(f"{path} is missing; {found}")
    try:
        return PuzzleDatasetMetadata(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        reason = describe_validation_error(error, str) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is not a valid dataset description ({reason}); build the dataset again") from None


def load_set(folder: Path, name: str, metadata: PuzzleDatasetMetadata) -> PuzzleSet:
    """Map the arrays of one set and check that they belong together."""
    arrays = {
        field: _load_array(folder / f"{name}__{field}.npy", mmap=field in ("inputs", "labels"))
        for field in PuzzleSet.__dataclass_fields__
    }
    puzzles = PuzzleSet(**arrays)
    _check_shapes(puzzles, folder, name, metadata)
    for field in ("inputs", "labels"):
        rows = arrays[field]
        blocks = max(1, rows.nbytes // _SCAN_BYTES)
        for start in range(0, len(rows), 4096 * blocks):  # all of it, or evenly spaced parts of a large file
            _check_vocabulary(rows[start : start + 4096], f"{folder}/{name}__{field}.npy", metadata)
    return puzzles


def _load_array(path: Path, mmap: bool) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; build the dataset again") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is truncated or not a .npy file ({error}); build the dataset again") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive, not a .npy file; build the dataset again")
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{path} holds {array.dtype}, not integers; build the dataset again")
    return array


def _check_shapes(puzzles: PuzzleSet, folder: Path, name: str, metadata: PuzzleDatasetMetadata) -> None:
    def fail(field: str, what: str) -> None:
        raise UserError(f"{folder}/{name}__{field}.npy: {what}; build the dataset again")

    ids = puzzles.puzzle_identifiers
    if ids.ndim != 1:
        fail("puzzle_identifiers", f"has shape {ids.shape}, not one axis")
    for field in ("inputs", "labels"):
        shape = getattr(puzzles, field).shape
        if len(shape) != 2 or shape[1] != metadata.seq_len:
            fail(field, f"has shape {shape}, but dataset.json says seq_len {metadata.seq_len}")
    if puzzles.inputs.shape != puzzles.labels.shape:
        fail("labels", f"has {len(puzzles.labels)} rows, but there are {len(puzzles.inputs)} inputs")
    for field, end, of in (
        ("puzzle_indices", len(puzzles.inputs), "examples"),
        ("group_indices", len(puzzles.puzzle_identifiers), "puzzles"),
    ):
        indices = getattr(puzzles, field)
        if indices.ndim != 1 or not len(indices) or indices[0] != 0 or (np.diff(indices) <= 0).any():
            fail(field, "does not ascend from 0")
        if indices[-1] != end:
            fail(field, f"ends at {indices[-1]}, but there are {end} {of}")
    if len(puzzles.puzzle_indices) - 1 != len(ids):
        fail("puzzle_identifiers", f"has {len(ids)} entries for {len(puzzles.puzzle_indices) - 1} puzzles")
    if len(ids) and (ids.min() < 0 or ids.max() >= metadata.num_puzzle_identifiers):
        fail("puzzle_identifiers", f"goes outside 0..{metadata.num_puzzle_identifiers - 1}, which dataset.json allows")


def _check_totals(sets: Collection[PuzzleSet], folder: Path, metadata: PuzzleDatasetMetadata) -> None:
    """The numbers that the length of a run is computed from."""
    groups = sum(len(puzzles.group_indices) - 1 for puzzles in sets)
    puzzles = sum(len(puzzles.puzzle_identifiers) for puzzles in sets)
    mean = sum(len(puzzles.inputs) for puzzles in sets) / max(1, puzzles)
    for key, stated, found in (
        ("total_groups", metadata.total_groups, groups),
        ("mean_puzzle_examples", metadata.mean_puzzle_examples, mean),
    ):
        if not np.isclose(stated, found, rtol=1e-6):
            raise UserError(
                f"{folder}/dataset.json: {key} is {stated}, the arrays say {found}; build the dataset again"
            )


def _check_vocabulary(rows: np.ndarray, where: str, metadata: PuzzleDatasetMetadata) -> None:
    if rows.size and (rows.min() < 0 or rows.max() >= metadata.vocab_size):
        raise UserError(
            f"{where}: token {rows.max() if rows.min() >= 0 else rows.min()} is outside the vocabulary "
            f"0..{metadata.vocab_size - 1} that dataset.json states; build the dataset again"
        )
