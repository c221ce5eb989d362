"""Shards on disk -> batches of tensors. The format is described in dataset/format.py.

Training visits every group `epochs_per_iter` times per pass and takes one of its puzzles each time; evaluation reads
the examples in order and pads the last batch. All ranks make the same draws and cut their own slice out of each batch.

Training batches are narrow, as on disk, until `widen` turns them into what the model takes: that is a quarter of the
bytes on the way to a device. Iterating over the dataset gives wide batches.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dataset.format import (
    IGNORE_LABEL_ID,
    PuzzleDatasetMetadata,
    PuzzleSet,
    check_totals,
    check_vocabulary,
    load_metadata,
    load_set,
)
from errors import UserError
from puzzles.kind import Kind, kind_of

# inputs, labels (B, seq_len) and puzzle_identifiers (B,): int32 with -100 for labels that do not count, or as on disk
Batch = dict[str, Tensor]

# Puzzles are picked for this many groups at a time. The number is part of the sampling: with several examples per
# puzzle, another number would give other (equally good) batches.
_GROUPS_A_DRAW = 65_536


class PuzzleDatasetConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seed: int
    dataset_path: str
    global_batch_size: int = Field(ge=1)
    test_set_mode: bool
    epochs_per_iter: int = Field(ge=1)  # group permutations in a training pass
    rank: int = Field(ge=0)
    num_replicas: int = Field(ge=1)
    max_examples: int | None = Field(default=None, ge=1)  # in test mode: of each set a seeded subset, in order


class PuzzleDataset:
    """Iterates over `(set_name, batch, global_batch_size)`; the last is the number of real examples over all ranks.

    Each `iter` of a training split is the next pass, with its own random stream; `train_batches` gives any pass.
    Raises `UserError` for a dataset that is missing, truncated or inconsistent.
    """

    def __init__(self, config: PuzzleDatasetConfig, split: str = "train"):
        self.config, self.split = config, split
        self.set_batch_size(config.global_batch_size)
        folder = Path(config.dataset_path) / split
        self.metadata = load_metadata(folder)
        self.sets = {name: load_set(folder, name, self.metadata) for name in self.metadata.sets}
        check_totals(self.sets.values(), folder, self.metadata)
        self._passes_begun = 0  # how often `iter` was called

    @classmethod
    def alone(
        cls, path: str | Path, split: str, batch_size: int = 1, *, epochs_per_iter: int | None = None, seed: int = 0
    ) -> "PuzzleDataset":
        """A split for one process: in order, or as in training if `epochs_per_iter` says how long a pass is."""
        config = PuzzleDatasetConfig(
            seed=seed,
            dataset_path=str(path),
            global_batch_size=batch_size,
            test_set_mode=epochs_per_iter is None,
            epochs_per_iter=epochs_per_iter or 1,
            rank=0,
            num_replicas=1,
        )
        return cls(config, split)

    @cached_property
    def kind(self) -> Kind:
        """What kind of puzzle this is. Raises `UserError` where no kind fits."""
        samples = [puzzles.inputs for puzzles in self.sets.values()]
        return kind_of(self.metadata.model_dump(), samples, self.config.dataset_path)

    def set_batch_size(self, global_batch_size: int) -> None:
        """Set the batch size from the next iteration on."""
        if global_batch_size % self.config.num_replicas:
            raise UserError(
                f"global_batch_size={global_batch_size} is not divisible by the {self.config.num_replicas} ranks; "
                f"choose a multiple of {self.config.num_replicas}"
            )
        self.config = self.config.model_copy(update={"global_batch_size": global_batch_size})
        self.local_batch_size = global_batch_size // self.config.num_replicas

    def __iter__(self) -> Iterator[tuple[str, Batch, int]]:
        if self.config.test_set_mode:
            for name, _, whole, rows in self._narrow_test_batches():
                yield name, widen(rows, self.metadata), whole
            return
        self._passes_begun += 1
        for name, rows in self.train_batches(self._passes_begun - 1):
            yield name, widen(rows, self.metadata), self.config.global_batch_size

    def train_batches(self, passes: int, skip: int = 0) -> Iterator[tuple[str, Batch]]:
        """Yield (set, narrow batch) of the pass after `passes` others, without its first `skip` batches."""
        mine = slice(self.config.rank * self.local_batch_size, (self.config.rank + 1) * self.local_batch_size)
        for name, drawn in self._drawn(passes):
            for examples, puzzle_ids in drawn:
                if skip:
                    skip -= 1
                    continue
                yield name, self._collate(self.sets[name], examples[mine], puzzle_ids[mine])

    def gives_a_batch(self, passes: int) -> bool:
        """Whether the pass after `passes` others has a batch: each set has to fill one of its own."""
        for puzzles in self.sets.values():  # no need to draw where even the smallest puzzles fill it
            groups, smallest = len(puzzles.group_indices) - 1, np.diff(puzzles.puzzle_indices).min(initial=2**31 - 1)
            if groups and groups * self.config.epochs_per_iter * int(smallest) >= self.config.global_batch_size:
                return True
        return any(next(drawn, None) is not None for _, drawn in self._drawn(passes))

    def _drawn(self, passes: int) -> Iterator[tuple[str, Iterator[tuple[np.ndarray, np.ndarray]]]]:
        """Yield each set and what is drawn from it in the pass after `passes` others."""
        for number, (name, puzzles) in enumerate(self.sets.items(), start=passes * len(self.sets) + 1):
            rng = np.random.Generator(np.random.Philox(seed=self.config.seed + number))
            yield name, sample_batches(rng, puzzles, self.config.epochs_per_iter, self.config.global_batch_size)

    def test_batches(self) -> Iterator[tuple[str, Batch, np.ndarray]]:
        """Yield (set, batch, which examples its real rows are) in order, for this rank; the other rows are padding.

        Examples are positions in the split, with its sets one after another.
        """
        for name, examples, _, rows in self._narrow_test_batches():
            yield name, widen(rows, self.metadata), examples

    def num_examples(self) -> int:
        """How many examples all sets and ranks have together, after `max_examples`."""
        sizes, limit = [len(puzzles.inputs) for puzzles in self.sets.values()], self.config.max_examples
        return sum(size if limit is None else min(size, limit) for size in sizes)

    def has_answers(self) -> bool:
        """Whether any label counts."""
        return any(part.any() for part in self._answered_parts())

    def answered(self) -> np.ndarray:
        """Of every example of the split, its sets one after another: whether any label counts, (n,) bool."""
        return np.concatenate(list(self._answered_parts()))

    def _answered_parts(self) -> Iterator[np.ndarray]:
        stated = self.metadata.ignore_label_id
        ignored = [IGNORE_LABEL_ID, *([] if stated is None else [stated])]
        labels = (puzzles.labels for puzzles in self.sets.values())
        parts = (rows[start : start + 4096] for rows in labels for start in range(0, len(rows), 4096))
        return (~np.isin(part, ignored).all(axis=1) for part in parts)

    def num_own_examples(self) -> int:
        """How many of them this rank evaluates."""
        return sum(len(mine) for _, mine, _ in self._test_parts())

    def num_test_batches(self) -> int:
        return sum(-(-len(self._test_examples(s)) // self.config.global_batch_size) for s in self.sets.values())

    def _narrow_test_batches(self) -> Iterator[tuple[str, np.ndarray, int, Batch]]:
        starts = dict(zip(self.sets, np.cumsum([0, *(len(s.inputs) for s in self.sets.values())]), strict=False))
        for name, mine, whole in self._test_parts():
            puzzles = self.sets[name]
            yield name, mine + starts[name], whole, self._collate(puzzles, mine, puzzles.puzzles_of(mine))

    def _test_parts(self) -> Iterator[tuple[str, np.ndarray, int]]:
        """Yield (set, this rank's examples in it, number of examples over all ranks) for each test batch."""
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
        """Gather the rows, narrow, and pad them to this rank's batch size."""
        meta = self.metadata
        inputs, labels = puzzles.inputs.take(examples, 0), puzzles.labels.take(examples, 0)
        identifiers = puzzles.puzzle_identifiers[puzzle_ids]
        for field, rows in (("inputs", inputs), ("labels", labels)):
            where = f"{self.config.dataset_path}/{self.split}: {field}"
            check_vocabulary(rows, where, meta, labels=field == "labels")
        missing = self.local_batch_size - len(examples)
        if missing:
            ignored = meta.ignore_label_id
            if ignored is None or not np.iinfo(labels.dtype).min <= ignored <= np.iinfo(labels.dtype).max:
                labels, ignored = labels.astype(np.int32), IGNORE_LABEL_ID
            inputs, labels = _padded(inputs, missing, meta.pad_id), _padded(labels, missing, ignored)
            identifiers = _padded(identifiers, missing, meta.blank_identifier_id)
        rows = {"inputs": inputs, "labels": labels, "puzzle_identifiers": identifiers}
        return {name: torch.from_numpy(_narrowest(field)) for name, field in rows.items()}


def _narrowest(rows: np.ndarray) -> np.ndarray:
    """Bytes stay bytes; other integers become int32."""
    return rows if rows.dtype == np.uint8 else rows.astype(np.int32, copy=False)


def _padded(rows: np.ndarray, missing: int, value: int) -> np.ndarray:
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=value)


def widen(batch: Batch, metadata: PuzzleDatasetMetadata) -> Batch:
    """A narrow batch, on any device -> what the model takes."""
    wide = {name: field.to(torch.int32) for name, field in batch.items()}
    return wide | {"labels": mark_ignored(batch["labels"], metadata)}


def mark_ignored(labels: Tensor, metadata: PuzzleDatasetMetadata) -> Tensor:
    """Labels as they are on disk -> int32, with -100 for ignored ones (which some tools write themselves)."""
    wide = labels.to(torch.int32)
    if metadata.ignore_label_id is None:
        return wide
    return wide.masked_fill(wide == metadata.ignore_label_id, IGNORE_LABEL_ID)  # bytes have no -100 to compare with


def sample_batches(
    rng: np.random.Generator, puzzles: PuzzleSet, epochs: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (example indices, puzzle indices), each (batch_size,), for one training pass.

    Groups come in the order of `epochs` permutations; each gives one puzzle, whose examples are shuffled and added to
    the batch, until it is full; the rest are cut off. A last batch that is not full is dropped.
    """
    num_groups = len(puzzles.group_indices) - 1
    order = np.concatenate([rng.permutation(num_groups).astype(np.int32) for _ in range(epochs)])
    starts, sizes = puzzles.puzzle_indices[:-1].astype(np.int64), np.diff(puzzles.puzzle_indices)
    one_each = bool((sizes == 1).all())
    picked = np.zeros(0, np.int64)  # puzzles drawn and not used yet
    drawn = 0
    while True:
        ends = np.arange(1, len(picked) + 1) if one_each else np.cumsum(sizes[picked])
        used = 0  # puzzles of `picked` that earlier batches took
        while True:
            before = ends[used - 1] if used else 0
            last = int(np.searchsorted(ends, before + batch_size))  # the puzzle that completes the batch
            if last >= len(picked):
                break
            mine = picked[used : last + 1]
            yield (starts[mine], mine) if one_each else _batch_examples(rng, mine, starts, sizes, batch_size)
            used = last + 1
        groups = order[drawn : drawn + _GROUPS_A_DRAW]
        if not len(groups):
            return
        # One array call draws the same stream as one call per group, which the original made.
        fresh = rng.integers(puzzles.group_indices[groups], puzzles.group_indices[groups + 1])
        picked = np.concatenate([picked[used:], fresh])
        drawn += len(groups)


def _batch_examples(
    rng: np.random.Generator, picked: np.ndarray, starts: np.ndarray, sizes: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """All examples of the picked puzzles, shuffled within each puzzle, cut to the batch."""
    counts = sizes[picked]
    total = int(counts.sum())
    if total == len(picked):  # nothing to shuffle
        return starts[picked], picked
    position = np.repeat(np.arange(len(picked)), counts)
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    examples = starts[picked][position] + within
    shuffled = np.lexsort((rng.random(total), position))
    return examples[shuffled][:batch_size], picked[position][:batch_size]
