"""The on-disk format of a dataset, and what the builders share.

    <dataset>/identifiers.json                    list: id -> name, 0 is `<blank>`
    <dataset>/<split>/dataset.json                `PuzzleDatasetMetadata`
    <dataset>/<split>/<set>__inputs.npy           (examples, seq_len) uint8
    <dataset>/<split>/<set>__labels.npy           (examples, seq_len) uint8
    <dataset>/<split>/<set>__puzzle_identifiers.npy  (puzzles,) int32, an index into identifiers.json
    <dataset>/<split>/<set>__puzzle_indices.npy   (puzzles + 1,) int32, first example of each puzzle, plus the end
    <dataset>/<split>/<set>__group_indices.npy    (groups + 1,) int32, first puzzle of each group, plus the end

A group is one original puzzle with all its augmentations. Every builder writes one set, `all`.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from errors import UserError

BLANK_IDENTIFIER = "<blank>"
IGNORE_LABEL_ID = -100  # what `ignore_label_id` on disk becomes in a batch

# Transform t is undone by DIHEDRAL_INVERSE[t]: the quarter turns 1 and 3 undo each other, the rest are involutions.
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)


class PuzzleDatasetMetadata(BaseModel):
    """`dataset.json` of one split."""

    pad_id: int
    ignore_label_id: int | None
    blank_identifier_id: int
    vocab_size: int = Field(ge=2)
    seq_len: int = Field(ge=1)
    num_puzzle_identifiers: int = Field(ge=1)
    total_groups: int = Field(ge=0)
    mean_puzzle_examples: float = Field(ge=0, allow_inf_nan=False)
    sets: list[str] = Field(min_length=1)


def dihedral_transform(grid: np.ndarray, tid: int) -> np.ndarray:
    """The `tid`-th of the 8 symmetries of the square, on the last two axes of `grid`.

    0 identity, 1–3 counter-clockwise quarter turns, 4 left-right flip, 5 up-down flip, 6 transpose, 7 anti-transpose.
    """
    if tid in (0, 1, 2, 3):
        return np.rot90(grid, tid, axes=(-2, -1))
    if tid == 4:
        return grid[..., :, ::-1]
    if tid == 5:
        return grid[..., ::-1, :]
    if tid == 6:
        return np.swapaxes(grid, -2, -1)
    if tid == 7:
        return np.swapaxes(grid[..., ::-1, ::-1], -2, -1)
    raise ValueError(f"dihedral id {tid} is not in 0..7")


def inverse_dihedral_transform(grid: np.ndarray, tid: int) -> np.ndarray:
    """Undo `dihedral_transform(grid, tid)`."""
    return dihedral_transform(grid, DIHEDRAL_INVERSE[tid])


@contextmanager
def atomic_build(output_dir: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `output_dir` that takes its place when the block ends without an error.

    An existing dataset is replaced only then. After an error or Ctrl-C the sibling is removed.
    """
    target = Path(output_dir).resolve()  # a link to a scratch disk stays a link
    if target.exists() and not target.is_dir():
        raise UserError(f"--output-dir {target} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / "identifiers.json").exists():
        raise UserError(f"--output-dir {target} is not empty and holds no dataset; name a new folder")
    # Named before it is made: a signal may come between any two lines, and must find what to remove.
    folder = target.with_name(f".{target.name}.building-{os.getpid()}")
    old = folder.with_name(folder.name + "-old")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)  # of a killed process that had this number
            folder.mkdir()
        except OSError as error:
            raise UserError(f"cannot write beside --output-dir {target}: {error.strerror}") from None
        yield folder
        if target.exists():
            target.rename(old)
        folder.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_identifiers(folder: Path, names: Sequence[str]) -> None:
    """Write identifiers.json: `names` without the blank, which becomes id 0."""
    (folder / "identifiers.json").write_text(json.dumps([BLANK_IDENTIFIER, *names]))


def read_identifiers(folder: Path) -> list[str]:
    """The puzzles' names by identifier, from identifiers.json of a dataset."""
    path = folder / "identifiers.json"
    try:
        names = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name the folder of a dataset") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable ({error}); build the dataset again") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is not a list of names; build the dataset again")
    return names


class NpyStream:
    """A `.npy` file written row after row, so that no more than one chunk is ever in memory.

    (Dirty pages of a writable memory map count as the process's own memory, a stream's do not.)
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype | type):
        self.row_shape, self.dtype, self.rows = row_shape, np.dtype(dtype), 0
        self._file = open(path, "wb")
        self._write_header()
        self._data_start = self._file.tell()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self.row_shape, (rows.shape, self.row_shape)
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype))
        self.rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()  # numpy pads the header so that a longer first axis keeps its length
        assert self._file.tell() == self._data_start
        self._file.close()


class SplitWriter:
    """Writes one split: groups are appended in order, `finish` writes the indices and `dataset.json` (last)."""

    def __init__(self, folder: Path, split: str, *, seq_len: int, set_name: str = "all"):
        self.folder, self.set_name, self.seq_len = folder / split, set_name, seq_len
        self.folder.mkdir()
        self._inputs = NpyStream(self._path("inputs"), (seq_len,), np.uint8)
        self._labels = NpyStream(self._path("labels"), (seq_len,), np.uint8)
        self._puzzle_identifiers: list[np.ndarray] = []
        self._puzzle_sizes: list[np.ndarray] = []
        self._group_sizes: list[np.ndarray] = []

    def _path(self, field: str) -> Path:
        return self.folder / f"{self.set_name}__{field}.npy"

    def append(
        self,
        inputs: np.ndarray,  # (examples, seq_len)
        labels: np.ndarray,  # (examples, seq_len)
        *,
        puzzle_identifiers: np.ndarray,  # (puzzles,)
        puzzle_sizes: np.ndarray,  # (puzzles,): examples of each puzzle
        group_sizes: np.ndarray,  # (groups,): puzzles of each group
    ) -> None:
        """Append whole groups; the examples stand puzzle after puzzle, the puzzles group after group."""
        puzzle_sizes, group_sizes = np.asarray(puzzle_sizes), np.asarray(group_sizes)
        assert len(inputs) == len(labels) == puzzle_sizes.sum() and (puzzle_sizes > 0).all()
        assert len(puzzle_identifiers) == len(puzzle_sizes) == group_sizes.sum() and (group_sizes > 0).all()
        self._inputs.append(inputs)
        self._labels.append(labels)
        self._puzzle_identifiers.append(np.asarray(puzzle_identifiers))
        self._puzzle_sizes.append(puzzle_sizes)
        self._group_sizes.append(group_sizes)

    def finish(self, *, vocab_size: int, num_puzzle_identifiers: int) -> PuzzleDatasetMetadata:
        """Write the index arrays and `dataset.json`. `num_puzzle_identifiers` counts the blank."""
        self._inputs.close()
        self._labels.close()
        sizes, groups = _concatenate(self._puzzle_sizes), _concatenate(self._group_sizes)
        if self._inputs.rows > np.iinfo(np.int32).max:
            raise UserError(f"{self.folder.name}: {self._inputs.rows} examples are too many for int32; lower --num-aug")
        np.save(self._path("puzzle_identifiers"), _concatenate(self._puzzle_identifiers).astype(np.int32))
        np.save(self._path("puzzle_indices"), _starts(sizes))
        np.save(self._path("group_indices"), _starts(groups))
        metadata = PuzzleDatasetMetadata(
            pad_id=0,
            ignore_label_id=0,
            blank_identifier_id=0,
            vocab_size=vocab_size,
            seq_len=self.seq_len,
            num_puzzle_identifiers=num_puzzle_identifiers,
            total_groups=len(groups),
            mean_puzzle_examples=self._inputs.rows / max(1, len(sizes)),
            sets=[self.set_name],
        )
        (self.folder / "dataset.json").write_text(metadata.model_dump_json())
        return metadata


def _concatenate(chunks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where each run begins, plus the end: (n,) sizes -> (n + 1,) int32."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
