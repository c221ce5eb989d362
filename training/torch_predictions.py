"""Predictions in the original's format: one torch dictionary per rank, `<run>/step_<n>_all_preds.<rank>`.

Its tensors are some of `inputs`, `labels`, `puzzle_identifiers`, `logits`, `q_halt_logits`, `q_continue_logits`.
Padding rows are included: their identifier is the blank, their inputs are padding, their labels are ignored.
`predictions`, the most likely tokens, may replace `logits`.
"""

import re
import warnings
import zipfile
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from dataset.format import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from errors import UserError, first_line, is_out_of_memory
from files import check_is_file, written_beside
from training.distributed import Ranks
from training.prediction_rows import AGAIN, PredictionRows, check_tokens, warn_of_no_numbers


def torch_path(prefix: Path, rank: int) -> Path:
    return prefix.with_name(f"{prefix.name}_all_preds.{rank}")


def torch_paths(prefix: Path) -> dict[int, Path]:
    """The dictionaries that are there, by rank."""
    found = prefix.parent.glob(f"{escape(prefix.name)}_all_preds.*")
    ranks = {path: path.suffix[1:] for path in found}
    return dict(sorted((int(rank), path) for path, rank in ranks.items() if re.fullmatch("0|[1-9][0-9]{0,5}", rank)))


def save_torch(prefix: Path, saved: dict[str, Tensor], ranks: Ranks) -> None:
    """Save every rank's dictionary, all ranks together, in place of earlier ones when all are on disk.

    Rank 0's gets its name last: without it the others are not read, so that those of two evaluations are not mixed
    after a kill. Raises `UserError` if one cannot be written.
    """
    place = torch_path(prefix, ranks.rank)
    with written_beside(place, lambda file: torch.save(saved, file)) as (beside, _):
        ranks.barrier()
        if ranks.is_main:
            for path in torch_paths(prefix).values():
                path.unlink()
        ranks.barrier()
        if not ranks.is_main:
            beside.replace(place)
        ranks.barrier()
        if ranks.is_main:
            beside.replace(place)


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TENSORS = {  # of a dictionary: field -> axes, types
    "inputs": (2, _INTEGERS),
    "labels": (2, _INTEGERS),
    "puzzle_identifiers": (1, _INTEGERS),
    "predictions": (2, _INTEGERS),
    "logits": (3, _FLOATS),
    "q_halt_logits": (1, _FLOATS),
    "q_continue_logits": (1, _FLOATS),
}


def read_torch(
    paths: dict[int, Path], split_folder: Path, metadata: PuzzleDatasetMetadata | None, rows: int
) -> Iterator[PredictionRows]:
    """`metadata` is None if the dataset is not at hand: the dictionaries hold all that is needed of it."""
    missing = next(rank for rank in range(len(paths) + 1) if rank not in paths)
    if missing < len(paths):
        raise UserError(f"{paths[max(paths)]} is there, but not that of rank {missing}; {AGAIN}")
    sizes, seen = [], {}
    for path in paths.values():
        checksums = _checksums(path)
        part = _map(path)
        _check_torch(path, part, split_folder, metadata)
        sizes.append(len(part["inputs"]))
        twin = seen.setdefault(checksums, path)
        if twin != path and len(_without_padding(_known(part), path, metadata)[1]):
            raise UserError(f"{twin} and {path} hold the same predictions: one is a copy; {AGAIN}")

    def read() -> Iterator[PredictionRows]:
        for path, size in zip(paths.values(), sizes, strict=True):
            passed = total = 0
            for start in range(0, size, rows):
                # Mapped anew for each part, so that pages that were read do not stay with the process.
                here = {key: values[start : start + rows] for key, values in _known(_map(path)).items()}
                found, numbers = _without_padding(here, path, metadata)
                passed += int((~numbers).sum())
                total += len(numbers)
                yield found.only(numbers)
            warn_of_no_numbers(path, passed, total)

    return read()


def _checksums(path: Path) -> tuple[int, ...]:
    """The file's own checksums, which PyTorch writes and does not look at; here its bytes are compared with them."""
    check_is_file(path, AGAIN)
    try:
        with zipfile.ZipFile(path) as file:
            damaged, checksums = file.testzip(), tuple(part.CRC for part in file.infolist())
    except Exception as error:  # of a parser of bytes that may be anything
        _not_predictions(path, f"({first_line(error)})")
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of its part {damaged} differs; {AGAIN}")
    return checksums


def _known(part: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: values for key, values in part.items() if key in _TENSORS}


def _map(path: Path) -> dict[str, Tensor]:
    """A rank's dictionary, its tensors left on disk until they are read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layouts in beta, which are refused anyway
            part = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises what its instructions bring about
        if is_out_of_memory(error):
            raise
        _not_predictions(path, f"({first_line(error)})")
    if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
        _not_predictions(path, "names -> tensors")
    if not all(isinstance(values, Tensor) for values in part.values()):
        _not_predictions(path, "names -> tensors")
    return {key: values.detach() for key, values in part.items()}


def _not_predictions(path: Path, why: str) -> NoReturn:
    comma = "" if why.startswith("(") else ","
    raise UserError(f"{path} does not hold saved predictions{comma} {why}; {AGAIN}") from None


def _check_torch(
    path: Path, part: dict[str, Tensor], split_folder: Path, metadata: PuzzleDatasetMetadata | None
) -> None:
    missing = [key for key in ("inputs", "puzzle_identifiers", "q_halt_logits") if key not in part]
    if "logits" not in part and "predictions" not in part:
        missing.append("logits")
    if missing:
        raise UserError(f"{path} holds no {', '.join(missing)}; evaluate again and save them (save_outputs)")
    known = _known(part)
    for key, values in known.items():
        _check_tensor(path, key, values, *_TENSORS[key])
    if len({len(values) for values in known.values()}) > 1:
        raise UserError(f"{path} is damaged: its tensors are not equally long; {AGAIN}")
    widths = {values.shape[1] for values in known.values() if values.ndim > 1}
    if len(widths) > 1:
        raise UserError(f"{path} is damaged: its sequences have {sorted(widths)} cells; {AGAIN}")
    ids = part["puzzle_identifiers"]
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if lowest < 0:
        raise UserError(f"{path} is damaged: puzzle_identifiers holds {lowest}; {AGAIN}")
    if metadata is None:
        return
    vocab_size = part["logits"].shape[2] if "logits" in part else metadata.vocab_size
    shape = (*widths, vocab_size, highest < metadata.num_puzzle_identifiers)
    if shape != (metadata.seq_len, metadata.vocab_size, True):
        raise UserError(f"{path} holds predictions for another dataset than {split_folder}; name that dataset")


def _check_tensor(path: Path, key: str, values: Tensor, axes: int, dtypes: tuple[torch.dtype, ...]) -> None:
    plain = values.layout == torch.strided and not values.is_nested and values.device.type == "cpu"
    if not plain or values.ndim != axes or values.dtype not in dtypes:
        kind = f"{values.dtype}".removeprefix("torch.") if plain else f"{values.layout} on {values.device}"
        wanted = "integers" if dtypes is _INTEGERS else "floating-point numbers"
        shape = f" with {values.ndim} axes" if plain else ""
        raise UserError(f"{path}: {key} is a tensor of {kind}{shape}, not of {wanted} with {axes}; {AGAIN}")
    if values.numel() * values.element_size() > values.untyped_storage().nbytes():
        raise UserError(f"{path} is damaged: {key} of shape {tuple(values.shape)} is larger than its data; {AGAIN}")


def _without_padding(
    part: dict[str, Tensor], path: Path, metadata: PuzzleDatasetMetadata | None
) -> tuple[PredictionRows, np.ndarray]:
    """-> the rows that are examples, and which of them (n,) are numbers."""
    blank, pad = (metadata.blank_identifier_id, metadata.pad_id) if metadata else (0, 0)
    padding = part["puzzle_identifiers"] == blank
    padding &= (part["inputs"] == pad).all(1)  # without identifiers, all are the blank
    if "labels" in part:
        padding &= (part["labels"] == IGNORE_LABEL_ID).all(1)
    part = {key: values[~padding] for key, values in part.items()}
    numbers = torch.isfinite(part["q_halt_logits"])
    if "q_continue_logits" in part:
        numbers &= torch.isfinite(part["q_continue_logits"])
    if "predictions" in part:
        answers = part["predictions"]
    else:
        answers = part["logits"].argmax(-1)
        numbers &= ~part["logits"].isnan().flatten(1).any(1)
    vocab_size = metadata.vocab_size if metadata else 256
    check_tokens(part["inputs"], vocab_size, path, "inputs")
    check_tokens(answers, vocab_size, path, "predictions")
    if "labels" in part:
        check_tokens(part["labels"], vocab_size, path, "labels", lowest=IGNORE_LABEL_ID)
    rows = PredictionRows(
        inputs=part["inputs"].numpy(),
        labels=part["labels"].numpy() if "labels" in part else None,
        puzzle_identifiers=part["puzzle_identifiers"].numpy(),
        answers=answers.numpy(),
        q_halt_logits=part["q_halt_logits"].float().numpy(),
        q_continue_logits=part["q_continue_logits"].float().numpy() if "q_continue_logits" in part else None,
    )
    return rows, numbers.numpy()
