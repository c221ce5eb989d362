"""Reading a split from disk: its description, its arrays, and whether they belong together.

Raises `UserError` for what is missing, truncated or inconsistent. The format is described in dataset/common.py.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from dataset.cli import describe_validation_error
from dataset.common import PuzzleDatasetMetadata
from errors import UserError

_SCAN_BYTES = 1 << 30  # of each array are checked against the vocabulary before a run starts


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
            check_vocabulary(rows[start : start + 4096], f"{folder}/{name}__{field}.npy", metadata)
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
    return array.view(np.ndarray)  # over the same map; every slice of a `memmap` costs microseconds more


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


def check_totals(sets: Collection[PuzzleSet], folder: Path, metadata: PuzzleDatasetMetadata) -> None:
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


def check_vocabulary(rows: np.ndarray, where: str, metadata: PuzzleDatasetMetadata) -> None:
    lowest = 0 if rows.dtype.kind == "u" or not rows.size else rows.min()
    if rows.size and (lowest < 0 or rows.max() >= metadata.vocab_size):
        raise UserError(
            f"{where}: token {rows.max() if lowest >= 0 else lowest} is outside the vocabulary "
            f"0..{metadata.vocab_size - 1} that dataset.json states; build the dataset again"
        )
