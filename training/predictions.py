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

Inputs, labels and identifiers are not repeated: they come from the dataset. The folder is written under another name
and renamed when every rank is done, so that an interrupted evaluation leaves the earlier predictions untouched.

The original's format is one torch dictionary per rank, `<run>/step_<n>_all_preds.<rank>`. Its tensors are some of
`inputs`, `labels`, `puzzle_identifiers`, `logits`, `q_halt_logits`, `q_continue_logits`. Padding rows are included:
their identifier is the blank, their inputs are padding, their labels are ignored. `predictions`, the most likely
tokens, may replace `logits`.
"""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.format import (
    IGNORE_LABEL_ID,
    NpyStream,
    PuzzleDatasetMetadata,
    PuzzleSet,
    description_digest,
    load_metadata,
    load_set,
)
from errors import UserError, first_line
from files import put_in_place, write_atomically
from puzzle_dataset import PuzzleDataset, mark_ignored
from training.distributed import Ranks

log = logging.getLogger(__name__)

FORMAT = 1
MAX_STEPS = np.iinfo(np.uint16).max


@dataclass
class PredictionRows:
    """Some examples and what was predicted for them, without padding."""

    inputs: np.ndarray  # (n, seq_len)
    labels: np.ndarray | None  # (n, seq_len), ignored = -100; None if a torch dictionary holds none
    puzzle_identifiers: np.ndarray  # (n,)
    answers: np.ndarray  # (n, seq_len)
    q_halt_logits: np.ndarray  # (n,) float32
    q_continue_logits: np.ndarray | None  # (n,) float32


def compact_folder(prefix: Path) -> Path:
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
        self.row_types: dict[str, tuple[tuple[int, ...], type]] = {
            "examples": ((), np.int64),
            "answers": ((meta.seq_len,), np.uint8),
            "q_halt_logits": ((), np.float32),
            "q_continue_logits": ((), np.float32),
            "steps": ((), np.uint16),
        }
        if answers_by_step:
            self.row_types["answers_by_step"] = ((max_steps, meta.seq_len), np.uint8)
        if logits:
            self.row_types["logits"] = ((meta.seq_len, meta.vocab_size), np.float32)
        self._expected = dataset.num_own_examples()
        self._manifest = {
            "format": FORMAT,
            "dataset": dataset.config.dataset_path,
            "dataset_digest": description_digest(Path(dataset.config.dataset_path) / dataset.split),
            "split": dataset.split,
            "sets": {name: len(puzzles.inputs) for name, puzzles in dataset.sets.items()},
            "examples": dataset.num_examples(),
            "seq_len": meta.seq_len,
            "vocab_size": meta.vocab_size,
            "checkpoint": checkpoint,
            "halt": halt,
            "max_steps": max_steps,
            "world_size": ranks.world_size,
            "fields": list(self.row_types),
        }
        self._streams: dict[str, NpyStream] = {}

    def __enter__(self) -> "PredictionWriter":
        # Named by rank 0's process, so that two evaluations of one checkpoint do not write into each other's files.
        name = self.ranks.broadcast_object(f".{self.place.name}.writing-{os.getpid()}")
        self._folder = self.place.with_name(name)
        with self._or_discard():
            if self.ranks.is_main:
                shutil.rmtree(self._folder, ignore_errors=True)  # left by a killed process with this number
                self._folder.mkdir(parents=True)
            self.ranks.barrier()
            for field, (shape, dtype) in self.row_types.items():
                self._streams[field] = NpyStream(_part(self._folder, field, self.ranks.rank), shape, dtype)
        return self

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
            self.ranks.barrier()
            if self.ranks.is_main:
                (self._folder / "manifest.json").write_text(json.dumps(self._manifest, indent=1))
                put_in_place(self._folder, self.place)
            self.ranks.barrier()

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
        shutil.rmtree(self._folder, ignore_errors=True)


def _part(folder: Path, field: str, rank: int) -> Path:
    return folder / f"{field}.{rank}.npy"


def read_predictions(
    prefix: str | Path, dataset_path: str | Path, split: str = "test", rows: int = 4096
) -> Iterator[PredictionRows]:
    """The predictions at `<run>/step_<n>` in either format (the newer, if there are both), at most `rows` at a time.

    They come rank after rank, and within a rank in the order of examples. For the original's format the dataset may
    lack the split. Raises `UserError`, already at the call, if there are none, or if they are incomplete or belong to
    another dataset.
    """
    prefix = Path(prefix)
    manifest, parts = compact_folder(prefix) / "manifest.json", torch_paths(prefix)
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
        return _read_compact(prefix, split_folder, load_metadata(split_folder), rows)
    only_names = Path(dataset_path).is_dir() and not split_folder.exists()  # enough for the original's format
    metadata = None if only_names else load_metadata(split_folder)
    return (PredictionRows(**part) for part in read_torch(parts, split_folder, metadata, rows))


def read_manifest(prefix: str | Path) -> dict:
    """Read manifest.json of the compact predictions at `<run>/step_<n>`."""
    path = compact_folder(Path(prefix)) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run evaluate.py on {prefix}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); run evaluate.py again") from None
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}; run evaluate.py again")
    return manifest


def _read_compact(
    prefix: Path, split_folder: Path, metadata: PuzzleDatasetMetadata, rows: int
) -> Iterator[PredictionRows]:
    folder, manifest = compact_folder(prefix), read_manifest(prefix)
    if manifest["split"] != split_folder.name or manifest["dataset_digest"] != description_digest(split_folder):
        raise UserError(
            f"{folder} holds predictions for {manifest['dataset']}/{manifest['split']}, not for {split_folder}; "
            f"name the dataset and split that were evaluated"
        )
    sets = [load_set(split_folder, name, metadata) for name in metadata.sets]
    total = sum(len(puzzles.inputs) for puzzles in sets)
    examples = [np.array(_map_part(folder, "examples", rank)) for rank in range(manifest["world_size"])]
    for rank, mine in enumerate(examples):
        lengths = {field: len(_map_part(folder, field, rank)) for field in manifest["fields"]}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{folder}: rank {rank} has unequal files, {lengths}; run evaluate.py again")
        if len(mine) and (mine[0] < 0 or mine[-1] >= total or (np.diff(mine) <= 0).any()):
            raise UserError(
                f"{_part(folder, 'examples', rank)} does not ascend within 0..{total - 1}, the examples of "
                f"{split_folder}; run evaluate.py again"
            )
    if sum(map(len, examples)) != manifest["examples"]:
        found = sum(map(len, examples))
        raise UserError(f"{folder} has {found} of {manifest['examples']} examples; run evaluate.py again")

    def read() -> Iterator[PredictionRows]:
        for rank, mine in enumerate(examples):
            for start in range(0, len(mine), rows):
                here = slice(start, start + rows)
                inputs, labels, identifiers = _gather(sets, mine[here], metadata)
                # Mapped anew for each part, so that pages that were read do not stay with the process.
                answers, q_halt, q_continue = (
                    np.array(_map_part(folder, field, rank)[here])
                    for field in ("answers", "q_halt_logits", "q_continue_logits")
                )
                yield PredictionRows(inputs, labels, identifiers, answers, q_halt, q_continue)

    return read()


def _map_part(folder: Path, field: str, rank: int) -> np.ndarray:
    path = _part(folder, field, rank)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing, {folder} is not complete; run evaluate.py again") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); run evaluate.py again") from None


def _gather(
    sets: list[PuzzleSet], examples: np.ndarray, metadata: PuzzleDatasetMetadata
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (inputs, labels, puzzle identifiers) at ascending positions in the split."""
    ends = np.cumsum([len(puzzles.inputs) for puzzles in sets])
    found = []
    for puzzles, end, mine in zip(sets, ends, np.split(examples, np.searchsorted(examples, ends[:-1])), strict=True):
        mine = mine - (end - len(puzzles.inputs))
        labels = mark_ignored(torch.from_numpy(puzzles.labels[mine]), metadata).numpy()
        found.append((puzzles.inputs[mine], labels, puzzles.puzzle_identifiers[puzzles.puzzles_of(mine)]))
    inputs, labels, identifiers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return inputs, labels, identifiers


# The original's format


def torch_path(prefix: Path, rank: int) -> Path:
    return prefix.with_name(f"{prefix.name}_all_preds.{rank}")


def torch_paths(prefix: Path) -> dict[int, Path]:
    """The dictionaries that are there, by rank."""
    found = prefix.parent.glob(f"{prefix.name}_all_preds.*")
    return dict(sorted((int(path.suffix[1:]), path) for path in found if path.suffix[1:].isdecimal()))


def save_predictions(folder: Path, step_name: str, rank: int, saved: dict[str, Tensor]) -> Path:
    """Write `<step_name>_all_preds.<rank>`."""
    path = torch_path(folder / step_name, rank)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(saved, file))
    return path


def read_torch(
    paths: dict[int, Path], split_folder: Path, metadata: PuzzleDatasetMetadata | None, rows: int
) -> Iterator[dict[str, np.ndarray | None]]:
    """The fields of `PredictionRows`, at most `rows` at a time, rank after rank.

    `metadata` is None if the dataset is not at hand: the dictionaries hold all that is needed of it.
    """
    ranks = max(paths) + 1
    missing = sorted(set(range(ranks)) - set(paths))
    if missing:
        raise UserError(f"{paths[ranks - 1]} is there, but not that of rank {missing[0]}; run evaluate.py again")
    sizes = [len(_map(paths[rank], split_folder, metadata)["inputs"]) for rank in range(ranks)]

    def read() -> Iterator[dict[str, np.ndarray | None]]:
        for rank, size in enumerate(sizes):
            for start in range(0, size, rows):
                # Mapped anew for each part, so that pages that were read do not stay with the process.
                part = _map(paths[rank], split_folder, metadata)
                yield _without_padding({key: values[start : start + rows] for key, values in part.items()}, metadata)

    return read()


def _map(path: Path, split_folder: Path, metadata: PuzzleDatasetMetadata | None) -> dict[str, Tensor]:
    """A rank's dictionary, its tensors left on disk until they are read."""
    try:
        part = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        raise UserError(
            f"{path} does not hold saved predictions ({first_line(error)}); run evaluate.py again"
        ) from None
    if not isinstance(part, dict) or not all(isinstance(values, Tensor) for values in part.values()):
        raise UserError(f"{path} does not hold saved predictions, names -> tensors; run evaluate.py again")
    wanted = ["inputs", "puzzle_identifiers", "q_halt_logits"]
    missing = [key for key in wanted if key not in part]
    if "logits" not in part and "predictions" not in part:
        missing.append("logits")
    if missing:
        raise UserError(f"{path} holds no {', '.join(missing)}; evaluate again and save them (save_outputs)")
    if len({len(values) for values in part.values()}) > 1:
        raise UserError(f"{path} is damaged: its tensors are not equally long; run evaluate.py again")
    if metadata is not None and (
        part["inputs"].shape[1:] != (metadata.seq_len,)
        or (len(part["inputs"]) and part["puzzle_identifiers"].max() >= metadata.num_puzzle_identifiers)
    ):
        raise UserError(f"{path} holds predictions for another dataset than {split_folder}; name that dataset")
    return part


def _without_padding(part: dict[str, Tensor], metadata: PuzzleDatasetMetadata | None) -> dict[str, np.ndarray | None]:
    blank, pad = (metadata.blank_identifier_id, metadata.pad_id) if metadata else (0, 0)
    padding = part["puzzle_identifiers"] == blank
    padding &= (part["inputs"] == pad).all(1)  # without identifiers, all are the blank
    if "labels" in part:
        padding &= (part["labels"] == IGNORE_LABEL_ID).all(1)
    answers = part["predictions"] if "predictions" in part else part["logits"].argmax(-1)
    rows = {key: values[~padding] for key, values in (part | {"answers": answers}).items() if key != "logits"}
    optional = {
        "labels": rows["labels"].numpy() if "labels" in rows else None,
        "q_continue_logits": rows["q_continue_logits"].float().numpy() if "q_continue_logits" in rows else None,
    }
    return optional | {
        "inputs": rows["inputs"].numpy(),
        "puzzle_identifiers": rows["puzzle_identifiers"].numpy(),
        "answers": rows["answers"].numpy(),
        "q_halt_logits": rows["q_halt_logits"].float().numpy(),
    }
