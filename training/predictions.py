"""What a model predicted for a split: written compactly during an evaluation, and read from either format.

Compact, at `<prefix>_preds/`, where the prefix is `<run>/step_<n>`; memory does not grow with the split:

    manifest.json    written last: what was evaluated and how, which fields there are
    examples.<rank>.npy           (n,) int64           position in the split, its sets one after another; no padding
    answers.<rank>.npy            (n, seq_len) uint8   the most likely token of each cell
    q_halt_logits.<rank>.npy      (n,) float32
    q_continue_logits.<rank>.npy  (n,) float32
    steps.<rank>.npy              (n,) uint16          reasoning steps taken
    answers_by_step.<rank>.npy    (n, max_steps, seq_len) uint8, where asked for; repeats the last from `steps` on
    logits.<rank>.npy             (n, seq_len, vocab_size) float32, where asked for

Inputs, labels and identifiers are not repeated: they come from the dataset, whose content the manifest identifies. The
folder is written under another name and renamed when every rank is done, so that an interrupted evaluation leaves the
earlier predictions untouched.

A prediction that is no number (NaN logits, a q that is not finite) is no answer: reading passes over it, with a warning
that names the file. The original's format is in training/torch_predictions.py.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError

from dataset.arrays import NpyStream, map_array
from dataset.format import (
    PuzzleDatasetMetadata,
    PuzzleSet,
    content_digest,
    description_digest,
    load_metadata,
    load_set,
    same_content,
)
from errors import UserError, describe_validation_error
from files import durably, locked, put_in_place, read_json, remove_abandoned, temporary_folder
from puzzle_dataset import PuzzleDataset, mark_ignored
from training.distributed import Ranks
from training.prediction_rows import AGAIN, PredictionRows, check_tokens, warn_of_no_numbers
from training.torch_predictions import read_torch, torch_path, torch_paths

log = logging.getLogger(__name__)

FORMAT = 1
MAX_STEPS = np.iinfo(np.uint16).max
CHECKED_AT_ONCE = 1 << 16  # rows
READ = ("answers", "q_halt_logits", "q_continue_logits")  # of a compact folder, beside `examples`


class Manifest(BaseModel):
    """manifest.json of compact predictions."""

    format: Literal[FORMAT] = FORMAT
    dataset: str
    dataset_digest: str  # of its description
    # `content_digest` of the split; earlier versions did not record it
    data: str | None = Field(default=None, pattern="^[0-9a-f]{16,}$")
    split: str
    sets: dict[str, int]  # examples of each
    examples: int = Field(ge=0)  # that were evaluated
    seq_len: int = Field(ge=1)
    vocab_size: int = Field(ge=1, le=256)
    checkpoint: str
    halt: str
    max_steps: int = Field(ge=1, le=MAX_STEPS)
    world_size: int = Field(ge=1)
    fields: list[str]
    digests: dict[str, str] = {}  # file -> SHA-256 of its array

    def row_types(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Field -> the shape of a row and its type, of all fields that there may be."""
        return {
            "examples": ((), np.int64),
            "answers": ((self.seq_len,), np.uint8),
            "q_halt_logits": ((), np.float32),
            "q_continue_logits": ((), np.float32),
            "steps": ((), np.uint16),
            "answers_by_step": ((self.max_steps, self.seq_len), np.uint8),
            "logits": ((self.seq_len, self.vocab_size), np.float32),
        }


def compact_folder(prefix: Path) -> Path:
    if not prefix.name:
        raise UserError(f"'{prefix}' names no predictions; they are called by their checkpoint, <run>/step_<n>")
    return prefix.with_name(f"{prefix.name}_preds")


class PredictionWriter:
    """A context manager that streams a rank's predictions to `<prefix>_preds`, all ranks together.

    Leaving it without an error puts the folder in place, over an older one; leaving it with one removes what was
    written. Raises `UserError` if the disk cannot be written, or if tokens do not fit a byte.
    """

    def __init__(
        self,
        prefix: Path,
        dataset: PuzzleDataset,
        ranks: Ranks,
        *,
        checkpoint: str,
        halt: str,
        max_steps: int,
        logits: bool = False,
        answers_by_step: bool = False,
    ):
        meta = dataset.metadata
        if meta.vocab_size > 256:
            raise UserError(
                f"compact predictions hold a token in a byte, {dataset.config.dataset_path} has a vocabulary of "
                f"{meta.vocab_size}; use save_format=torch"
            )
        assert max_steps <= MAX_STEPS, max_steps
        self.place, self.ranks = compact_folder(prefix), ranks
        folder = Path(dataset.config.dataset_path) / dataset.split
        optional = {"answers_by_step": answers_by_step, "logits": logits}
        self._manifest = Manifest(
            dataset=dataset.config.dataset_path,
            dataset_digest=description_digest(folder),
            data=content_digest(folder) if ranks.is_main else None,
            split=dataset.split,
            sets={name: len(puzzles.inputs) for name, puzzles in dataset.sets.items()},
            examples=dataset.num_examples(),
            seq_len=meta.seq_len,
            vocab_size=meta.vocab_size,
            checkpoint=checkpoint,
            halt=halt,
            max_steps=max_steps,
            world_size=ranks.world_size,
            fields=[],
        )
        self.row_types = {field: row for field, row in self._manifest.row_types().items() if optional.get(field, True)}
        self._manifest.fields = list(self.row_types)
        self._expected = dataset.num_own_examples()
        self._streams: dict[str, NpyStream] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "PredictionWriter":
        with self._or_discard():
            self._folder = self.place.with_name(self.ranks.from_main(self._make_folder))
            for field, (shape, dtype) in self.row_types.items():
                self._streams[field] = NpyStream(_part(self._folder, field, self.ranks.rank), shape, dtype)
        return self

    def _make_folder(self) -> str:
        """On rank 0; -> its name."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        return self._stack.enter_context(temporary_folder(self.place)).name

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add rows: every field of `row_types`, equally long."""
        assert rows.keys() == self.row_types.keys(), rows.keys()
        assert len({len(values) for values in rows.values()}) == 1, {f: len(values) for f, values in rows.items()}
        with self._or_discard():
            for field, stream in self._streams.items():
                stream.append(rows[field])

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._discard()
            return
        with self._or_discard():
            written = self._streams["examples"].rows
            assert written == self._expected, f"{written} of {self._expected} examples of this rank were written"
            for stream in self._streams.values():
                stream.close()
            self._sync_parts()
            self.ranks.barrier()
            self.ranks.from_main(self._finish)

    def _sync_parts(self) -> None:
        """Put this rank's files on disk, and leave their digests for rank 0."""
        digests = {}
        for field, stream in self._streams.items():
            path = _part(self._folder, field, self.ranks.rank)
            digests[path.name] = stream.data_digest()
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        (self._folder / f"digests.{self.ranks.rank}.json").write_text(json.dumps(digests))

    def _finish(self) -> None:
        """On rank 0, when the files of all ranks are on disk."""
        self._manifest.digests = self._collect_digests()
        with durably(self._folder / "manifest.json") as file:
            file.write(self._manifest.model_dump_json(indent=1).encode())
        put_in_place(self._folder, self.place)
        self._stack.close()

    def _collect_digests(self) -> dict[str, str]:
        digests = {}
        for rank in range(self.ranks.world_size):
            path = self._folder / f"digests.{rank}.json"
            digests |= json.loads(path.read_text())
            path.unlink()
        return digests

    @contextmanager
    def _or_discard(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._discard()
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or error
            raise UserError(f"cannot write predictions to {self.place}: {reason}; set output_dir") from error

    def _discard(self) -> None:
        for stream in self._streams.values():
            with suppress(OSError, ValueError):  # it may be closed already
                stream.close()
        self._stack.close()


@contextmanager
def writing_predictions(prefix: Path, ranks: Ranks) -> Iterator[None]:
    """What an evaluation that saves predictions runs in, so that no other one writes them to the same place.

    All ranks enter it together; rank 0 holds the lock. Raises `UserError` if another process has it.
    """
    with ExitStack() as stack:

        def take_the_place() -> None:
            lock = prefix.with_name(f".{prefix.name}_preds.lock")
            stack.enter_context(locked(lock, f"is writing predictions of {prefix}"))
            remove_abandoned(prefix.parent)

        ranks.from_main(take_the_place)
        yield


def _part(folder: Path, field: str, rank: int) -> Path:
    return folder / f"{field}.{rank}.npy"


def read_predictions(
    prefix: str | Path,
    dataset_path: str | Path,
    split: str = "test",
    rows: int = 4096,
    other_data: bool = False,
    extras: Collection[str] = (),
    compact_alone: bool = False,
) -> Iterator[PredictionRows]:
    """The predictions at `<run>/step_<n>` in either format (the newer, if there are both), at most `rows` at a time.

    They come rank after rank, and within a rank in the order of examples. For the original's format the dataset may
    lack the split. Raises `UserError`, already at the call, if there are none, or if they are incomplete or belong to
    another dataset; `other_data` accepts one with the same shape and another content. `extras`, `steps` and
    `answers_by_step`, are read as well where a compact folder has them. `compact_alone` passes over the other format.
    """
    prefix = Path(prefix)
    manifest, parts = compact_folder(prefix) / "manifest.json", {} if compact_alone else torch_paths(prefix)
    if manifest.is_file() and parts:
        compact = manifest.stat().st_mtime >= max(path.stat().st_mtime for path in parts.values())
        log.info("%s has predictions in both formats; reading %s, the newer", prefix, "compact" if compact else "torch")
    else:
        compact = manifest.is_file()
    if not compact and not parts:
        folder = compact_folder(prefix)
        found = f"{folder} has no manifest.json, it is not complete" if folder.is_dir() else f"there is no {folder}"
        raise UserError(f"no predictions of {prefix}: {found}, and no {torch_path(prefix, 0)}; run evaluate.py on it")
    split_folder = Path(dataset_path) / split
    if compact:
        return _read_compact(prefix, split_folder, load_metadata(split_folder), rows, other_data, extras)
    only_names = Path(dataset_path).is_dir() and not split_folder.exists()  # enough for the original's format
    metadata = None if only_names else load_metadata(split_folder)
    return read_torch(parts, split_folder, metadata, rows)


def read_manifest(prefix: str | Path) -> Manifest:
    """Read manifest.json of the compact predictions at `<run>/step_<n>`."""
    path = compact_folder(Path(prefix)) / "manifest.json"
    content = read_json(path, f"run evaluate.py on {prefix}", limit=1 << 24)
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}; {AGAIN}")
    try:
        manifest = Manifest.model_validate(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({describe_validation_error(error, str)}); {AGAIN}") from None
    missing = [field for field in ("examples", *READ) if field not in manifest.fields]
    strange = [field for field in manifest.fields if field not in manifest.row_types()]
    if missing or strange:
        wrong = f"no {missing[0]}" if missing else f"'{strange[0]}', which no version writes"
        raise UserError(f"{path} is damaged: its fields hold {wrong}; {AGAIN}")
    return manifest


def _read_compact(
    prefix: Path,
    split_folder: Path,
    metadata: PuzzleDatasetMetadata,
    rows: int,
    other_data: bool,
    extras: Collection[str],
) -> Iterator[PredictionRows]:
    folder, manifest = compact_folder(prefix), read_manifest(prefix)
    extras = [field for field in extras if field in manifest.fields]
    _check_dataset(folder, manifest, split_folder, metadata, other_data)
    sets = [load_set(split_folder, name, metadata) for name in metadata.sets]
    for rank in range(manifest.world_size):
        _check_part(folder, manifest, rank, extras)
    examples = _examples(folder, manifest, split_folder, total=sum(len(puzzles.inputs) for puzzles in sets))

    def read() -> Iterator[PredictionRows]:
        for rank, mine in enumerate(examples):
            path, passed = _part(folder, "answers", rank), 0
            for start in range(0, len(mine), rows):
                here = slice(start, start + rows)
                # Mapped anew for each part, so that pages that were read do not stay with the process.
                answers, q_halt, q_continue, *more = (
                    np.array(_map_part(folder, manifest, field, rank)[here]) for field in (*READ, *extras)
                )
                also = dict(zip(extras, more, strict=True)) | {"examples": mine[here]}
                check_tokens(answers, manifest.vocab_size, path, "answers")
                if "answers_by_step" in also:
                    check_tokens(also["answers_by_step"], manifest.vocab_size, path, "answers_by_step")
                numbers = np.isfinite(q_halt) & np.isfinite(q_continue)
                passed += int((~numbers).sum())
                inputs, labels, identifiers = _gather(sets, mine[here], metadata)
                yield PredictionRows(inputs, labels, identifiers, answers, q_halt, q_continue, **also).only(numbers)
            warn_of_no_numbers(path, passed, len(mine))

    return read()


def _check_dataset(
    folder: Path, manifest: Manifest, split_folder: Path, metadata: PuzzleDatasetMetadata, other_data: bool
) -> None:
    described = manifest.dataset_digest == description_digest(split_folder)
    same = manifest.split == split_folder.name and described
    if not same or (manifest.seq_len, manifest.vocab_size) != (metadata.seq_len, metadata.vocab_size):
        theirs = Path(manifest.dataset, manifest.split)
        anew = "as it was before it was built anew; evaluate again"
        other = f"not for {split_folder}; name the dataset and split that were evaluated"
        is_there = theirs.exists() and split_folder.samefile(theirs)
        raise UserError(f"{folder} holds predictions for {theirs}, {anew if is_there and not described else other}")
    if manifest.data is None or other_data:
        return
    content = content_digest(split_folder)
    if not same_content(manifest.data, content):
        raise UserError(
            f"{folder} holds predictions for {manifest.dataset}/{manifest.split} of content {manifest.data}, but "
            f"{split_folder} has content {content}: it was built anew or is another; evaluate again, name the dataset "
            f"that was evaluated, or give other_data=true to use them all the same"
        )


def _examples(folder: Path, manifest: Manifest, split_folder: Path, total: int) -> list[np.ndarray]:
    """The examples of each rank. Raises `UserError` if they are not some of the split's `total`, each once."""
    examples = []
    for rank in range(manifest.world_size):
        mine = np.array(_map_part(folder, manifest, "examples", rank))
        if len(mine) and (mine[0] < 0 or mine[-1] >= total or (np.diff(mine) <= 0).any()):
            raise UserError(
                f"{_part(folder, 'examples', rank)} does not ascend within 0..{total - 1}, the examples of "
                f"{split_folder}; {AGAIN}"
            )
        examples.append(mine)
    found = sum(map(len, examples))
    if found != manifest.examples:
        raise UserError(f"{folder} has {found} of {manifest.examples} examples; {AGAIN}")
    if len(np.unique(np.concatenate(examples))) != found:
        raise UserError(f"{folder} has predictions of two ranks for the same example; {AGAIN}")
    return examples


def _check_part(folder: Path, manifest: Manifest, rank: int, extras: Collection[str]) -> None:
    """Check that a rank's files are as the manifest says; those that will be read, byte for byte."""
    lengths = {field: len(_map_part(folder, manifest, field, rank)) for field in manifest.fields}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{folder}: rank {rank} has unequal files, {lengths}; {AGAIN}")
    for field in ("examples", *READ, *extras):
        path = _part(folder, field, rank)
        recorded, digest = manifest.digests.get(path.name), hashlib.sha256()
        for start in range(0, lengths[field], CHECKED_AT_ONCE):  # mapped anew: pages that were read do not stay
            digest.update(_map_part(folder, manifest, field, rank)[start : start + CHECKED_AT_ONCE])
        if recorded is not None and recorded != digest.hexdigest():
            raise UserError(f"{path} is damaged: it is not what was written (its digest differs); {AGAIN}")


def _map_part(folder: Path, manifest: Manifest, field: str, rank: int) -> np.ndarray:
    path = _part(folder, field, rank)
    shape, dtype = manifest.row_types()[field]
    rows = map_array(path, f"{folder} is damaged or not complete: {AGAIN}", kinds="iuf")
    if not rows.ndim or rows.dtype != dtype or rows.shape[1:] != shape or not rows.flags.c_contiguous:
        wanted = f"{np.dtype(dtype)} of shape {('n', *shape)}".replace("'", "")
        found = f"{rows.dtype} of shape {rows.shape}"
        raise UserError(f"{path} holds {found}, not {wanted} as manifest.json says; {AGAIN}")
    return rows


def _gather(
    sets: list[PuzzleSet], examples: np.ndarray, metadata: PuzzleDatasetMetadata
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (inputs, labels, puzzle identifiers) at ascending positions in the split."""
    ends = np.cumsum([len(puzzles.inputs) for puzzles in sets])
    found = []
    for puzzles, end, mine in zip(sets, ends, np.split(examples, np.searchsorted(examples, ends[:-1])), strict=True):
        mine = mine - (end - len(puzzles.inputs))
        labels = mark_ignored(torch.from_numpy(puzzles.labels[mine].astype(np.int32)), metadata).numpy()
        found.append((puzzles.inputs[mine], labels, puzzles.puzzle_identifiers[puzzles.puzzles_of(mine)]))
    inputs, labels, identifiers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return inputs, labels, identifiers
