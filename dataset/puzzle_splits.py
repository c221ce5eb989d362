"""Makes train, test and val from a source of puzzles; each puzzle is a group with its augmented copies.

They are written in the format of dataset/format.py. The source is streamed, twice if rows of train must be chosen, so
that a split of any length takes the memory of a few chunks and some tens of bytes per row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.format import SplitWriter, write_identifiers
from dataset.puzzle_csv import PuzzleFile, PuzzleRows, check_rows
from errors import UserError, warn
from puzzles.kind import Kind, hash_rows

DROPPED, TRAIN, VAL = 0, 1, 2  # what becomes of a row of train


def stands_in(keys: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    """Which `keys` are among `sorted_keys`: (n,) bool."""
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    found = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[found] == keys


def choose_rows(
    keys: np.ndarray, subsample_size: int | None, val_fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """DROPPED, TRAIN or VAL for every row: a uniform subsample, of which all rows of some random keys go to VAL."""
    roles = np.full(len(keys), TRAIN, np.int8)
    if subsample_size is not None:
        if subsample_size > len(keys):
            raise UserError(f"--subsample-size {subsample_size}: only {len(keys)} train puzzles can be chosen from")
        roles[:] = DROPPED
        roles[rng.permutation(len(keys))[:subsample_size]] = TRAIN
    if val_fraction:
        chosen = np.flatnonzero(roles)
        roles[chosen[hold_out(keys[chosen], val_fraction, rng)]] = VAL
        if not (roles == TRAIN).any():
            raise UserError(f"--val-fraction {val_fraction} leaves no puzzle to train on; lower it")
    return roles


def hold_out(keys: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: all rows of some random keys, which are about this share of the rows, and at least one key."""
    distinct, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = rng.permutation(len(distinct))
    target = max(1.0, share * len(keys))
    held_out = np.zeros(len(distinct), bool)
    held_out[order[: max(1, int((np.cumsum(counts[order]) <= target + 0.5).sum()))]] = True
    return held_out[inverse.reshape(-1)]


@dataclass
class Recipe:
    """What distinguishes a builder: the kind of its puzzles, and how they are augmented."""

    kind: type[Kind]
    copies: int  # puzzles in a group of train, the original included
    # yields inputs and labels of whole groups for some originals; no copy may have one of the (sorted) held-out keys
    augment: Callable[[Kind, np.ndarray, np.ndarray, np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]


def without_copies(
    kind: Kind, inputs: np.ndarray, labels: np.ndarray, held_out: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every puzzle as a group of its own."""
    yield inputs, labels


@dataclass
class Selection:
    """Which rows of the source are used, and for what."""

    seed: np.random.SeedSequence
    min_rating: int | None = None
    subsample_size: int | None = None
    val_fraction: float = 0.0


class DatasetWriter:
    """Turns the two files of a source into the splits of a dataset."""

    def __init__(self, folder: Path, files: dict[str, PuzzleFile], recipe: Recipe, selection: Selection):
        self.folder, self.files, self.recipe, self.selection = folder, files, recipe, selection
        self.writers: dict[str, SplitWriter] = {}
        self.kind: Kind | None = None  # with its size, once a puzzle has been read

    def run(self) -> list[str]:
        """Write everything; return one line for each split that says what it holds."""
        test_keys, test_questions = self._write_test()
        roles, held_out = None, test_keys
        if self.selection.subsample_size is not None or self.selection.val_fraction:
            keys = self._read_train()
            rng = np.random.Generator(np.random.PCG64(self.selection.seed))
            roles = choose_rows(keys, self.selection.subsample_size, self.selection.val_fraction, rng)
            held_out = np.union1d(test_keys, keys[roles == VAL])
        self._write_train(roles, held_out, test_keys, test_questions)
        write_identifiers(self.folder, [])
        return [self._finish(split) for split in ("train", "test", "val") if split in self.writers]

    def _puzzles(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield inputs and labels of the rows that are hard enough, chunk by chunk."""
        minimum, found, hardest = self.selection.min_rating, 0, None
        for rows in self.files[split].chunks():
            inputs, labels = self._encode(self.files[split], rows)
            hardest = int(rows.rating.max()) if hardest is None else max(hardest, int(rows.rating.max()))
            if minimum is not None:
                inputs, labels = inputs[rows.rating >= minimum], labels[rows.rating >= minimum]
            found += len(inputs)
            yield inputs, labels
        if hardest is None:
            raise UserError(f"{self.files[split].name} holds no puzzle")
        if not found:
            raise UserError(
                f"--min-difficulty {minimum} leaves no puzzle of {self.files[split].name}, "
                f"the hardest of which is rated {hardest}"
            )

    def _encode(self, file: PuzzleFile, rows: PuzzleRows) -> tuple[np.ndarray, np.ndarray]:
        """Characters -> inputs, labels: (rows, cells) uint8, checked."""
        cells = rows.question.shape[1]
        try:
            kind = self.recipe.kind.of_cells(cells)
        except ValueError as error:
            raise UserError(f"{file.name}:{rows.line[0]}: a question of {cells} characters; {error}") from None
        if self.kind is None:
            kind.check()
            self.kind = kind
        encoded = kind.encode(rows.question, rows.answer)
        check_rows(file.name, rows.line, encoded.problems)
        if kind != self.kind:
            raise UserError(
                f"{file.name}: puzzles of {cells} cells, but the test split has {self.kind.seq_len}; both files must "
                f"hold puzzles of one size"
            )
        return encoded.inputs, encoded.labels

    def _write(self, split: str, inputs: np.ndarray, labels: np.ndarray, copies: int = 1) -> None:
        if split not in self.writers:
            self.writers[split] = SplitWriter(self.folder, split, seq_len=inputs.shape[1])
        zeros, sizes = np.zeros(len(inputs), np.int32), np.ones(len(inputs), np.int32)
        groups = np.full(len(inputs) // copies, copies, np.int32)
        self.writers[split].append(inputs, labels, puzzle_identifiers=zeros, puzzle_sizes=sizes, group_sizes=groups)

    def _write_test(self) -> tuple[np.ndarray, np.ndarray]:
        """Write test; return its sorted keys and the sorted hashes of its questions."""
        keys, questions = [], []
        with _progress("writing test") as bar:
            for inputs, labels in self._puzzles("test"):
                self._write("test", inputs, labels)
                keys.append(self.kind.keys(inputs, labels))
                questions.append(hash_rows(inputs))
                bar.update(len(inputs))
        return np.unique(np.concatenate(keys)), np.sort(np.concatenate(questions))

    def _read_train(self) -> np.ndarray:
        """The keys of all rows of train."""
        keys = []
        with _progress("reading train") as bar:
            for inputs, labels in self._puzzles("train"):
                keys.append(self.kind.keys(inputs, labels))
                bar.update(len(inputs))
        return np.concatenate(keys)

    def _write_train(
        self, roles: np.ndarray | None, held_out: np.ndarray, test_keys: np.ndarray, test_questions: np.ndarray
    ) -> None:
        """Write train with its copies, and val without; `roles` is None where every row goes to train."""
        at = same_question = same_key = total = 0
        copies = self.recipe.copies
        with _progress("writing train", None if roles is None else int((roles == TRAIN).sum()) * copies) as bar:
            for inputs, labels in self._puzzles("train"):
                role = np.full(len(inputs), TRAIN) if roles is None else roles[at : at + len(inputs)]
                at += len(inputs)
                if (role == VAL).any():
                    self._write("val", inputs[role == VAL], labels[role == VAL])
                inputs, labels = inputs[role == TRAIN], labels[role == TRAIN]
                total += len(inputs)
                same_question += int(stands_in(hash_rows(inputs), test_questions).sum())
                same_key += int(stands_in(self.kind.keys(inputs, labels), test_keys).sum())
                for group_inputs, group_labels in self.recipe.augment(self.kind, inputs, labels, held_out):
                    self._write("train", group_inputs, group_labels, copies)
                    bar.update(len(group_inputs))
        if same_key:
            warn(
                f"{same_question} of {total} train puzzles are in test too, {same_key} {self.kind.same_key}; "
                "scores on test will be too high"
            )

    def _finish(self, split: str) -> str:
        metadata = self.writers[split].finish(vocab_size=self.kind.vocab_size, num_puzzle_identifiers=1, kind=self.kind)
        examples = metadata.total_groups * (self.recipe.copies if split == "train" else 1)
        return f"{split}: {examples:,} examples in {metadata.total_groups:,} groups"


def _progress(label: str, total: int | None = None) -> tqdm:
    # Shown only after a moment, so that a mistake in the first rows stays a single line.
    return tqdm(desc=label, total=total, unit=" puzzles", unit_scale=True, delay=0.5, leave=False)
