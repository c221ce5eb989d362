"""The on-disk format of a dataset, and what the builders share.

    <dataset>/identifiers.json                    list: id -> name, 0 is `<blank>`
    <dataset>/<split>/dataset.json                `PuzzleDatasetMetadata`
    <dataset>/<split>/<set>__inputs.npy           (examples, seq_len) uint8
    <dataset>/<split>/<set>__labels.npy           (examples, seq_len) uint8
    <dataset>/<split>/<set>__puzzle_identifiers.npy  (puzzles,) int32, an index into identifiers.json
    <dataset>/<split>/<set>__puzzle_indices.npy   (puzzles + 1,) int32, first example of each puzzle, plus the end
    <dataset>/<split>/<set>__group_indices.npy    (groups + 1,) int32, first puzzle of each group, plus the end

A group is one original puzzle with all its augmentations. Every builder writes one set, `all`.

The keys of dataset.json from `kind` on may be absent, and `description_digest`, by which older runs and predictions
recognise their dataset, leaves them out. The first of them say what kind of puzzle it holds
(`puzzles.kind.Kind.describe`). The last, `digests`, says what was built, for every array of the split and for
identifiers.json:

    "digests": {"all__inputs.npy": [<SHA-256 of the array's data>, <SHA-256 of a sample>], …, "../identifiers.json": …}

The data are what follows the header of the .npy file. The sample is 64 blocks of 64 KiB, evenly spaced over the data,
the first and the last included (all data where they are fewer), after the type and shape of the array. It is compared
whenever a set is opened; `python -m dataset.check <dataset>` compares everything. `content_digest` is the identity that
follows from them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from dataset.digests import Digests, combined, digests_of, file_digests, sample_digest
from errors import UserError, describe_validation_error
from files import put_in_place
from puzzles.kind import Kind

BLANK_IDENTIFIER = "<blank>"
IGNORE_LABEL_ID = -100  # what `ignore_label_id` on disk becomes in a batch
_SCAN_BYTES = 1 << 30  # how much of each array is checked against the vocabulary before a run starts


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

    kind: str | None = None
    rows: int | None = None
    columns: int | None = None
    symbols: list[str] | None = None  # of each token
    look: dict[str, Any] | None = None

    digests: dict[str, Digests] | None = None  # of the files, by their paths from this one

    def as_json(self, *, original_keys: bool = False) -> str:
        """The text of the file; with `original_keys` as it was before anything else was recorded."""
        left_out = _KIND_KEYS if original_keys or self.kind is None else set()
        return self.model_dump_json(exclude=left_out | ({"digests"} if original_keys or not self.digests else set()))


_KIND_KEYS = {"kind", "rows", "columns", "symbols", "look"}
_IDENTIFIERS = "../identifiers.json"  # as `digests` calls it


@contextmanager
def atomic_build(output_dir: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output_dir` that takes its place when the block ends without an error.

    An existing dataset is replaced only then. After an error or Ctrl-C the temporary folder is removed.
    """
    target = Path(output_dir).resolve()  # a link to a scratch disk stays a link
    if target.exists() and not target.is_dir():
        raise UserError(f"--output-dir {target} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / "identifiers.json").exists():
        raise UserError(f"--output-dir {target} is not empty and holds no dataset; name a new folder")
    # Named before it is made: a signal may come between any two lines, and its handler must know what to remove.
    folder = target.with_name(f".{target.name}.building-{os.getpid()}")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed process with this number
            folder.mkdir()
        except OSError as error:
            raise UserError(f"cannot write next to --output-dir {target}: {error.strerror}") from None
        yield folder
        put_in_place(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_identifiers(folder: Path, names: Sequence[str]) -> None:
    """Write identifiers.json from `names`, which lack the blank; that becomes id 0."""
    (folder / "identifiers.json").write_text(json.dumps([BLANK_IDENTIFIER, *names]))


def read_identifiers(folder: Path) -> list[str]:
    """The puzzles' names by identifier, from a dataset's identifiers.json."""
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
    """A `.npy` file written chunk by chunk, so that no more than one chunk is ever in memory.

    (Dirty pages of a writable memory map count as the process's own memory; a stream's do not.)
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype | type):
        self.row_shape, self.dtype, self.rows = row_shape, np.dtype(dtype), 0
        self._digest = hashlib.sha256()
        self._file = open(path, "wb")
        self._write_header()
        self._data_start = self._file.tell()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self.row_shape, (rows.shape, self.row_shape)
        data = np.ascontiguousarray(rows, dtype=self.dtype)
        self._file.write(data)
        self._digest.update(data)
        self.rows += len(rows)

    def data_digest(self) -> str:
        """The digest of what was appended."""
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()  # numpy pads the header, so that it keeps its length when the first axis grows
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
        return set_file(self.folder, self.set_name, field)

    def append(
        self,
        inputs: np.ndarray,  # (examples, seq_len)
        labels: np.ndarray,  # (examples, seq_len)
        *,
        puzzle_identifiers: np.ndarray,  # (puzzles,)
        puzzle_sizes: np.ndarray,  # (puzzles,): examples of each puzzle
        group_sizes: np.ndarray,  # (groups,): puzzles of each group
    ) -> None:
        """Append whole groups: the examples puzzle after puzzle, the puzzles group after group."""
        puzzle_sizes, group_sizes = np.asarray(puzzle_sizes), np.asarray(group_sizes)
        assert len(inputs) == len(labels) == puzzle_sizes.sum() and (puzzle_sizes > 0).all()
        assert len(puzzle_identifiers) == len(puzzle_sizes) == group_sizes.sum() and (group_sizes > 0).all()
        self._inputs.append(inputs)
        self._labels.append(labels)
        self._puzzle_identifiers.append(np.asarray(puzzle_identifiers))
        self._puzzle_sizes.append(puzzle_sizes)
        self._group_sizes.append(group_sizes)

    def finish(
        self, *, vocab_size: int, num_puzzle_identifiers: int, kind: Kind | None = None
    ) -> PuzzleDatasetMetadata:
        """Write the index arrays and `dataset.json`. `num_puzzle_identifiers` counts the blank.

        identifiers.json is written before, so that its digests are known too.
        """
        assert kind is None or (kind.seq_len, kind.vocab_size) == (self.seq_len, vocab_size)
        self._inputs.close()
        self._labels.close()
        sizes, groups = _concatenate(self._puzzle_sizes), _concatenate(self._group_sizes)
        if self._inputs.rows > np.iinfo(np.int32).max:
            raise UserError(f"{self.folder.name}: {self._inputs.rows} examples are too many for int32; lower --num-aug")
        digests = {
            self._path(field).name: (stream.data_digest(), sample_digest(np.load(self._path(field), mmap_mode="r")))
            for field, stream in (("inputs", self._inputs), ("labels", self._labels))
        }
        for field, array in (
            ("puzzle_identifiers", _concatenate(self._puzzle_identifiers).astype(np.int32)),
            ("puzzle_indices", _starts(sizes)),
            ("group_indices", _starts(groups)),
        ):
            np.save(self._path(field), array)
            digests[self._path(field).name] = digests_of(array)
        if (self.folder / _IDENTIFIERS).exists():
            digests[_IDENTIFIERS] = file_digests(self.folder / _IDENTIFIERS)
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
            **({} if kind is None else kind.describe()),
            digests=digests,
        )
        (self.folder / "dataset.json").write_text(metadata.as_json(), encoding="utf-8")
        return metadata


def _concatenate(chunks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where each run begins, plus the end: (n,) sizes -> (n + 1,) int32."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


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
        return PuzzleDatasetMetadata(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        reason = describe_validation_error(error, str) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is not a valid dataset description ({reason}); build the dataset again") from None


def description_digest(split_folder: Path) -> str:
    """Digest of the original keys of `dataset.json`: it does not depend on whether others were recorded yet."""
    path = split_folder / "dataset.json"
    try:
        described = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; build the dataset again") from None
    metadata = load_metadata(split_folder)
    if metadata.kind is not None or metadata.digests is not None:
        described = metadata.as_json(original_keys=True).encode()
    return hashlib.sha256(described).hexdigest()[:16]


def content_digest(split_folder: Path) -> str:
    """The identity of a split's content, for `same_content`: 16 hexadecimal digits of samples of its files, then 16 of
    all that they hold where the builder recorded it; `load_set` says whether the arrays still have these digests.

    Samples that were not recorded, as in older datasets, are digested now, which takes a moment.
    """
    metadata = load_metadata(split_folder)
    recorded = metadata.digests or {}
    found: dict[str, Sequence[str | None]] = {}
    for name in metadata.sets:
        for field in PuzzleSet.__dataclass_fields__:
            path = set_file(split_folder, name, field)
            found[path.name] = recorded.get(path.name) or (None, sample_digest(_load_array(path, mmap=True)))
    if (split_folder / _IDENTIFIERS).exists():
        found[_IDENTIFIERS] = recorded.get(_IDENTIFIERS) or file_digests(split_folder / _IDENTIFIERS)
    described = description_digest(split_folder)
    identity = combined(described, {name: sample for name, (_, sample) in found.items()})
    whole = {name: whole for name, (whole, _) in found.items()}
    return identity if None in whole.values() else identity + combined(described, whole)


def same_content(one: str, other: str) -> bool:
    """Whether two `content_digest`s are of the same content, as far as both say."""
    known = min(len(one), len(other))
    return one[:known] == other[:known]


def set_file(split_folder: Path, name: str, field: str) -> Path:
    """Where an array of a set is."""
    return split_folder / f"{name}__{field}.npy"


def load_set(folder: Path, name: str, metadata: PuzzleDatasetMetadata) -> PuzzleSet:
    """Map the arrays of one set and check that they belong together."""
    arrays = {
        field: _load_array(set_file(folder, name, field), mmap=field in ("inputs", "labels"))
        for field in PuzzleSet.__dataclass_fields__
    }
    puzzles = PuzzleSet(**arrays)
    _check_shapes(puzzles, folder, name, metadata)
    for field, array in arrays.items():
        path = set_file(folder, name, field)
        built = (metadata.digests or {}).get(path.name)
        if built is not None and built[1] != sample_digest(array):
            raise UserError(f"{path} is not what was built (its digest differs); build the dataset again")
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
    return array.view(np.ndarray)  # on the same map; every slice of a `memmap` costs microseconds more


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
    """Check the numbers from which the length of a run is computed."""
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
