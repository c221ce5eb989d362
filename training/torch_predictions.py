"""Predictions in the original's format: `<run>/step_<n>_all_preds.<rank>`, a torch dictionary a rank.

Its tensors are some of `inputs`, `labels`, `puzzle_identifiers`, `logits`, `q_halt_logits`, `q_continue_logits`.
Padding rows are included: their identifier is the blank, their inputs are padding, their labels ignored. `predictions`,
the most likely tokens, may stand in place of `logits`.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.format import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from errors import UserError
from training.run_folder import write_atomically


def torch_path(prefix: Path, rank: int) -> Path:
    return prefix.with_name(f"{prefix.name}_all_preds.{rank}")


def torch_paths(prefix: Path) -> dict[int, Path]:
    """The dictionaries that are there, by rank."""
    found = prefix.parent.glob(f"{prefix.name}_all_preds.*")
    return dict(sorted((int(path.suffix[1:]), path) for path in found if path.suffix[1:].isdecimal()))


def save_predictions(folder: Path, step_name: str, rank: int, saved: dict[str, Tensor]) -> Path:
    """Write `<step_name>_all_preds.<rank>`."""
    path = torch_path(folder / step_name, rank)
    write_atomically(path, lambda file: torch.save(saved, file))
    return path


def read_torch(
    paths: dict[int, Path], split_folder: Path, metadata: PuzzleDatasetMetadata | None, rows: int
) -> Iterator[dict[str, np.ndarray | None]]:
    """The fields of `predictions.PredictionRows`, at most `rows` at a time, rank after rank.

    `metadata` is None where the dataset is not at hand: the dictionaries hold all that is needed of it.
    """
    ranks = max(paths) + 1
    missing = sorted(set(range(ranks)) - set(paths))
    if missing:
        raise UserError(f"{paths[ranks - 1]} is there, but not that of rank {missing[0]}; run evaluate.py again")
    sizes = [len(_map(paths[rank], split_folder, metadata)["inputs"]) for rank in range(ranks)]

    def read() -> Iterator[dict[str, np.ndarray | None]]:
        for rank, size in enumerate(sizes):
            for start in range(0, size, rows):
                # Mapped anew for each part: pages that were read do not stay with the process.
                part = _map(paths[rank], split_folder, metadata)
                yield _without_padding({key: values[start : start + rows] for key, values in part.items()}, metadata)

    return read()


def _map(path: Path, split_folder: Path, metadata: PuzzleDatasetMetadata | None) -> dict[str, Tensor]:
    """A rank's dictionary, its tensors left on disk until they are read."""
    try:
        part = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} does not hold saved predictions ({reason}); run evaluate.py again") from None
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
    padding &= (part["inputs"] == pad).all(1)  # where nothing has identifiers they are all blank
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
