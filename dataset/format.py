"""The on-disk format of a dataset, and what the builders share.

    <dataset>/identifiers.json                    list: id -> name, 0 is `<blank>`
    <dataset>/<split>/dataset.json                `PuzzleDatasetMetadata`
    <dataset>/<split>/<set>__inputs.npy           (examples, seq_len) uint8
    <dataset>/<split>/<set>__labels.npy           (examples, seq_len) uint8; `ignore_label_id` where nothing counts
    <dataset>/<split>/<set>__puzzle_identifiers.npy  (puzzles,) int32, an index into identifiers.json
    <dataset>/<split>/<set>__puzzle_indices.npy   (puzzles + 1,) int32, first example of each puzzle, plus the end
    <dataset>/<split>/<set>__group_indices.npy    (groups + 1,) int32, first puzzle of each group, plus the end

A group is one original puzzle with all its augmentations. Every builder writes one set, `all`.

Datasets that other tools built are read too: any integer type, labels of -100, `ignore_label_id` null (then only -100
is ignored), -100 or 255. Of keys in dataset.json that are not known here a warning is given, once.

The keys of dataset.json from `kind` on may be absent, and `description_digest`, by which older runs and predictions
recognise their dataset, leaves them out. The first of them say what kind of puzzle it holds
(`puzzles.kind.Kind.describe`). The last, `digests`, says what was built, for every array of the split and for
identifiers.json:

    "digests": {"all__inputs.npy": [<SHA-256 of the array's data>, <SHA-256 of a sample>], …, "../identifiers.json": …}

The data are what follows the header of the .npy file. The sample is 64 blocks of 64 KiB, evenly spaced over the data,
the first and the last included (all data where they are fewer), after the type and shape of the array. It is compared
whenever a set is opened; `python -m dataset.check --dataset FOLDER` compares everything. `content_digest` is the
identity that follows from them.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from dataset.arrays import NpyStream, data_digest, map_array, sample_digest
from errors import UserError, describe_validation_error
from files import file_digest, put_in_place, read_json, temporary_folder
from puzzles.kind import Kind

log = logging.getLogger(__name__)

BLANK_IDENTIFIER = "<blank>"
SOURCE_FILE = "source.json"  # of puzzles that a package makes: how
IGNORE_LABEL_ID = -100  # what `ignore_label_id` on disk becomes in a batch; on disk it is ignored as well
_BYTE_IGNORED = 255  # what tools whose labels are bytes write in its place
_MOST = int(np.iinfo(np.int32).max)  # of what a batch holds as int32
REBUILD = "build the dataset again"
_SCAN_BYTES = 1 << 30  # how much of each array is checked against the vocabulary before a run starts


class PuzzleDatasetMetadata(BaseModel):
    """`dataset.json` of one split."""

    pad_id: int
    ignore_label_id: int | None
    blank_identifier_id: int
    vocab_size: int = Field(ge=2, le=_MOST)
    seq_len: int = Field(ge=1, le=_MOST)
    num_puzzle_identifiers: int = Field(ge=1, le=_MOST)
    total_groups: int = Field(ge=0, le=_MOST)
    mean_puzzle_examples: float = Field(ge=0, allow_inf_nan=False)
    sets: list[str] = Field(min_length=1)

    kind: str | None = None
    rows: int | None = Field(default=None, ge=1, le=_MOST)
    columns: int | None = Field(default=None, ge=1, le=_MOST)
    symbols: list[str] | None = None  # of each token
    look: dict[str, Any] | None = None

    options: dict[str, Any] | None = None  # what else the kind needs; absent where that is nothing

    digests: dict[str, tuple[str, str]] | None = None  # of the files, by their paths from this one: data, sample

    @model_validator(mode="after")
    def _within_range(self) -> "PuzzleDatasetMetadata":
        for key, count, others in (
            ("pad_id", self.vocab_size, ()),
            ("ignore_label_id", self.vocab_size, (None, IGNORE_LABEL_ID, _BYTE_IGNORED)),
            ("blank_identifier_id", self.num_puzzle_identifiers, ()),
        ):
            value = getattr(self, key)
            if value not in others and not 0 <= value < count:
                special = f" and none of {', '.join(map(json.dumps, others))}" if others else ""
                raise ValueError(f"{key} is outside 0..{count - 1}{special}")
        for name, times in Counter(self.sets).items():
            if times > 1:
                raise ValueError(f"the set {name!r} is named twice")
            if not name or not name.isprintable() or {"/", "\\"} & {*name}:
                raise ValueError(f"{name!r:.100} cannot be the name of a set")
        return self

    def write(self, folder: Path) -> "PuzzleDatasetMetadata":
        """Write dataset.json, with its own digest if there are digests; -> what it says."""
        own = {} if self.digests is None else {"digests": self.digests | {_DESCRIPTION: self.own_digests()}}
        written = self.model_copy(update=own)
        (folder / "dataset.json").write_text(written.as_json(), encoding="utf-8")
        return written

    def own_digests(self) -> tuple[str, str]:
        """Those of what the file says, but for `digests`."""
        text = self.model_copy(update={"digests": None}).as_json()
        return (hashlib.sha256(text.encode()).hexdigest(),) * 2

    def as_json(self, *, original_keys: bool = False) -> str:
        """The text of the file; with `original_keys` as it was before anything else was recorded."""
        left_out = _KIND_KEYS if original_keys or self.kind is None else set() if self.options else {"options"}
        return self.model_dump_json(exclude=left_out | ({"digests"} if original_keys or not self.digests else set()))


_KIND_KEYS = {"kind", "rows", "columns", "symbols", "look", "options"}
_IDENTIFIERS, _DESCRIPTION = "../identifiers.json", "dataset.json"  # as `digests` calls them


@contextmanager
def atomic_build(output_dir: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output_dir` that takes its place when the block ends without an error.

    An existing dataset is replaced only then. After an error or Ctrl-C nothing is left; what a killed build has left is
    removed by the next one for the same place. Raises `UserError` also for what the operating system refuses.
    """
    target = Path(output_dir)
    made: list[Path] = []
    try:
        target = target.resolve()  # a link to a scratch disk stays a link
        made += [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as folder:
            _refuse_foreign(target)
            yield folder
            put_in_place(folder, target)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write the dataset to --output-dir {target}: {error.strerror or error}{where}; make room, or name "
            f"another folder"
        ) from None
    finally:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"--output-dir {target} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / "identifiers.json").exists():
        raise UserError(f"--output-dir {target} is not empty and holds no dataset; name a new folder")
    if foreign := next(_no_part_of_a_dataset(target), None):
        raise UserError(
            f"--output-dir {target} holds {foreign}, which is no part of a dataset and would be removed; move it away, "
            f"or name a new folder"
        )


def _no_part_of_a_dataset(folder: Path) -> Iterator[Path]:
    """What somebody else has put there, such as a run; hidden files are not looked at."""
    for path in folder.glob("[!.]*"):
        if (path / "dataset.json").exists():
            yield from (one for one in path.glob("[!.]*") if one.name != "dataset.json" and one.suffix != ".npy")
        # test_puzzles.json: in datasets of the original
        elif path.name not in ("identifiers.json", SOURCE_FILE, "test_puzzles.json"):
            yield path


def write_identifiers(folder: Path, names: Sequence[str]) -> None:
    """Write identifiers.json from `names`, which lack the blank; that becomes id 0."""
    (folder / "identifiers.json").write_text(json.dumps([BLANK_IDENTIFIER, *names]))


def read_identifiers(folder: Path) -> list[str]:
    """The puzzles' names by identifier, from a dataset's identifiers.json."""
    path = folder / "identifiers.json"
    names = read_json(path, "name the folder of a dataset, or build it again")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is not a list of names; {REBUILD}")
    found = file_digest(path).sha256
    for split in sorted(described.parent for described in folder.glob("*/dataset.json")):
        built = (load_metadata(split).digests or {}).get(_IDENTIFIERS)
        if built is not None and built[0] != found:
            raise UserError(f"{path} is not what was built with {split.name} (its digest differs); {REBUILD}")
    return names


class SplitWriter:
    """Writes one split: groups are appended in order, `finish` writes the indices and `dataset.json` (last)."""

    def __init__(self, folder: Path, split: str, *, seq_len: int, set_name: str = "all"):
        self.folder, self.set_name, self.seq_len = folder / split, set_name, seq_len
        self.folder.mkdir()
        self._inputs, self._labels = self._stream("inputs", (seq_len,)), self._stream("labels", (seq_len,))
        self._puzzle_identifiers: list[np.ndarray] = []
        self._puzzle_sizes: list[np.ndarray] = []
        self._group_sizes: list[np.ndarray] = []

    def _stream(self, field: str, row_shape: tuple[int, ...] = (), dtype: type = np.uint8) -> NpyStream:
        return NpyStream(set_file(self.folder, self.set_name, field), row_shape, dtype)

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
        if self._inputs.rows + len(inputs) > _MOST:
            raise UserError(f"{self.folder.name}: more than {_MOST:,} examples are too many for int32; lower --num-aug")
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
        sizes, groups = _concatenate(self._puzzle_sizes), _concatenate(self._group_sizes)
        streams = [self._inputs, self._labels]
        for field, array in (
            ("puzzle_identifiers", _concatenate(self._puzzle_identifiers)),
            ("puzzle_indices", _starts(sizes)),
            ("group_indices", _starts(groups)),
        ):
            streams.append(self._stream(field, dtype=np.int32))
            streams[-1].append(array)
        digests = {stream.path.name: _close(stream) for stream in streams}
        names = self.folder / _IDENTIFIERS
        if names.exists():
            digests[_IDENTIFIERS] = _file_digests(names)
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
        return metadata.write(self.folder)


def _close(stream: NpyStream) -> tuple[str, str]:
    """Close a stream; -> the digests of its data and of their sample."""
    stream.close()
    return stream.data_digest(), sample_digest(map_array(stream.path, REBUILD))


def _file_digests(path: Path) -> tuple[str, str]:
    """Those of a file that is no array: of its bytes."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    return data_digest(content), sample_digest(content)


def _concatenate(chunks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where each run begins, plus the end: (n,) sizes -> (n + 1,)."""
    return np.concatenate([[0], np.cumsum(sizes)])


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
    if not os.path.lexists(path):
        if not folder.parent.is_dir():
            raise UserError(
                f"no dataset at {folder.parent}; build one (dataset/build_*_dataset.py) or set data_path; the shortest "
                "way is `make demo`, or +experiment=… for a run of config/experiment"
            )
        splits = sorted(p.parent.name for p in folder.parent.glob("*/dataset.json"))
        found = f"it has the splits {', '.join(splits)}" if splits else "it holds no complete split: build it again"
        raise UserError(f"{path} is missing; {found}")
    content = read_json(path, REBUILD)
    try:
        metadata = PuzzleDatasetMetadata.model_validate(content)
    except ValidationError as error:
        reason = describe_validation_error(error, str)
        raise UserError(f"{path} is not a valid dataset description ({reason:.300}); {REBUILD}") from None
    own = metadata.own_digests()
    if (metadata.digests or {}).get(_DESCRIPTION, own) != own:
        raise UserError(f"{path} does not say what it did when it was built (its digest differs); {REBUILD}")
    _warn_of_unknown_keys(folder.parent, tuple(key for key in content if key not in PuzzleDatasetMetadata.model_fields))
    return metadata


@cache  # a dataset is described in every split, and its descriptions are read many times
def _warn_of_unknown_keys(dataset: Path, keys: tuple[str, ...]) -> None:
    if keys:
        log.warning("%s: dataset.json has keys that are not known here and not used: %.300s", dataset, ", ".join(keys))


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
    found: dict[str, Sequence[str | None]] = {
        path.name: recorded.get(path.name) or (None, sample_digest(map_array(path, REBUILD)))
        for path in array_files(split_folder, metadata)
    }
    names = split_folder / _IDENTIFIERS
    if names.exists():
        found[_IDENTIFIERS] = recorded.get(_IDENTIFIERS) or _file_digests(names)
    described = description_digest(split_folder)
    wholes, samples = ({name: digests[i] for name, digests in found.items()} for i in (0, 1))
    return _combined(described, samples) + ("" if None in wholes.values() else _combined(described, wholes))


def _combined(described: str, digests: Mapping[str, str | None]) -> str:
    return hashlib.sha256(json.dumps([described, dict(sorted(digests.items()))]).encode()).hexdigest()[:16]


def same_content(one: str, other: str) -> bool:
    """Whether two `content_digest`s are of the same content, as far as both say."""
    known = min(len(one), len(other))
    return one[:known] == other[:known]


def array_files(split_folder: Path, metadata: PuzzleDatasetMetadata) -> list[Path]:
    """The arrays of all sets."""
    return [set_file(split_folder, name, field) for name in metadata.sets for field in PuzzleSet.__dataclass_fields__]


def set_file(split_folder: Path, name: str, field: str) -> Path:
    """Where an array of a set is."""
    return split_folder / f"{name}__{field}.npy"


def load_set(folder: Path, name: str, metadata: PuzzleDatasetMetadata) -> PuzzleSet:
    """Map the arrays of one set; check that they belong together, and are what was built."""
    files = {field: set_file(folder, name, field) for field in PuzzleSet.__dataclass_fields__}
    puzzles = PuzzleSet(**{field: map_array(path, REBUILD) for field, path in files.items()})
    _check_shapes(puzzles, folder, name, metadata)
    for field, path in files.items():
        _, built = (metadata.digests or {}).get(path.name, (None, None))
        if built is not None and built != sample_digest(getattr(puzzles, field)):
            raise UserError(f"{path} is not what was built (its digest differs); {REBUILD}")
    for field in ("inputs", "labels"):
        rows = getattr(puzzles, field)
        blocks = max(1, rows.nbytes // _SCAN_BYTES)
        for start in range(0, len(rows), 4096 * blocks):  # all of it, or evenly spaced parts of a large file
            check_vocabulary(rows[start : start + 4096], str(files[field]), metadata, labels=field == "labels")
    puzzles.puzzle_identifiers = puzzles.puzzle_identifiers.astype(np.int32)
    for field in ("puzzle_indices", "group_indices"):  # int64 where they were something else: numpy mixes only those
        indices = getattr(puzzles, field)
        setattr(puzzles, field, indices.astype(np.int32 if indices.dtype == np.int32 else np.int64))
    return puzzles


def _check_shapes(puzzles: PuzzleSet, folder: Path, name: str, metadata: PuzzleDatasetMetadata) -> None:
    def fail(field: str, what: str) -> None:
        raise UserError(f"{set_file(folder, name, field)}: {what}; {REBUILD}")

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
        if indices.ndim != 1 or not len(indices) or indices[0] != 0 or (indices[1:] <= indices[:-1]).any():
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
            raise UserError(f"{folder}/dataset.json: {key} is {stated}, the arrays say {found}; {REBUILD}")


def check_vocabulary(rows: np.ndarray, where: str, metadata: PuzzleDatasetMetadata, *, labels: bool = False) -> None:
    """Raise a `UserError` that begins with `where` for tokens outside the vocabulary; `labels` may be ignored ones."""
    lowest = 0 if rows.dtype.kind == "u" or not rows.size else rows.min()
    if not rows.size or (lowest >= 0 and rows.max() < metadata.vocab_size):
        return
    if labels:
        rows = rows[~np.isin(rows, [IGNORE_LABEL_ID, metadata.ignore_label_id or 0])]
    strange = rows[(rows < 0) | (rows >= metadata.vocab_size)]
    if strange.size:
        raise UserError(
            f"{where}: token {strange.min() if lowest < 0 else strange.max()} is outside the vocabulary "
            f"0..{metadata.vocab_size - 1} that dataset.json states; {REBUILD}"
        )
