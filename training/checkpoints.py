"""Checkpoints: the weights of a model in a file, and a model with the weights of a file.

A `step_<n>` is a state dict whose keys are those of the published checkpoints. `checkpoints.json` beside it says what
was written, so that a damaged one is not taken for a worse one: {"step_10": {"bytes": …, "sha256": …, "data": …}}.
There `data` is the identity of the training split (`dataset.format.content_digest`). A checkpoint without an entry,
such as a published one, is loaded as it is. It may carry the prefixes of compiled and parallel models, or lie in a
dictionary.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from dataset.format import PuzzleDatasetMetadata
from errors import UserError, describe_validation_error, first_line, is_out_of_memory
from files import check_is_file, file_digest, read_json, write_atomically
from models.losses import ACTLossHead
from training.config import PretrainConfig

RECORDS = "checkpoints.json"
# What others wrap a state dict in, and what their wrappers of a model put before each key
CONTAINERS = ("model_state_dict", "state_dict", "model")
COMPILED_PREFIX, PARALLEL_PREFIX = "_orig_mod.", "module."
# Tables of models/token_network.py, whose lengths tell what data a model was made for
PUZZLE_TABLE = "model.inner.puzzle_emb.weights"
TOKEN_TABLE = "model.inner.embed_tokens.embedding_weight"
POSITION_TABLE = "model.inner.embed_pos.embedding_weight"  # of models with learned positions
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class CheckpointRecord(BaseModel):
    """What is known of a checkpoint that was written here."""

    bytes: int
    sha256: str
    data: str | None = None


def save_weights(path: Path, weights: dict[str, Tensor], data: str | None) -> None:
    """Write a checkpoint and its entry in checkpoints.json; `data` is the identity of what it was trained on."""
    written = write_atomically(path, lambda file: torch.save(weights, file))
    record = CheckpointRecord(bytes=written.size, sha256=written.sha256, data=data)
    records = read_records(path.parent) | {path.name: record}
    text = json.dumps({name: record.model_dump() for name, record in records.items()}, indent=1)
    write_atomically(path.parent / RECORDS, lambda file: file.write(text.encode()))


def read_records(folder: Path) -> dict[str, CheckpointRecord]:
    """The entries of a folder's checkpoints.json, by file name; none if there is no such file."""
    path = folder / RECORDS
    if not path.exists():
        return {}
    remedy = "remove it to use the checkpoints unchecked"
    value = read_json(path, remedy)
    try:
        return {name: CheckpointRecord(**record) for name, record in value.items()}
    except ValidationError as error:
        reason = describe_validation_error(error, str)
    except (TypeError, AttributeError):
        reason = "not file names -> entries"
    raise UserError(f"{path} is damaged ({reason}); {remedy}")


def trained_on(checkpoint: Path) -> str | None:
    """The identity of the training split (`dataset.format.content_digest`) of a checkpoint, if it was recorded."""
    record = read_records(checkpoint.parent).get(checkpoint.name)
    return None if record is None else record.data


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, without what others put around and before their names.

    Raises `UserError` if the file is missing, is not what was written, or holds anything but dense tensors.
    """
    path = Path(path)
    remedy = "name a step_<n> file"
    check_is_file(path, remedy)
    check_record(path)
    weights = _unwrapped(load_tensors(path, remedy), path)
    for name, tensor in weights.items():
        if kind := _odd_kind(tensor):
            raise UserError(f"{path}: {name:.100} is a {kind} tensor, where plain ones are expected; convert it")
        if name in (PUZZLE_TABLE, TOKEN_TABLE, POSITION_TABLE) and tensor.ndim != 2:
            raise UserError(f"{path}: {name} has {tensor.ndim} axes, where a table of 2 is expected; {remedy}")
    return weights


def _odd_kind(tensor: Tensor) -> str | None:
    """What else a tensor is than rows of numbers in memory."""
    if tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else "valueless (meta)"
    return None if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")


def check_record(path: Path) -> None:
    """Raise `UserError` if checkpoints.json says that something else was written."""
    record = read_records(path.parent).get(path.name)
    if record is not None and file_digest(path) != (record.bytes, record.sha256):
        raise UserError(
            f"{path} is not what the run wrote (its digest is not that of {RECORDS}): it is damaged or was replaced; "
            f"use another checkpoint, or remove its entry there if you changed it on purpose"
        )


def load_tensors(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote, on the CPU.

    Code in the file is not run. Raises `UserError`, ended by `remedy`, for a file that is damaged or something else.
    """
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise whatever its bytes happen to say
        if is_out_of_memory(error):
            raise
        reason = first_line(error)[:100] if isinstance(error, OSError) else "damaged, or it holds more than tensors"
        raise UserError(f"{path} is not a readable checkpoint: {reason}; {remedy}") from None


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, with its keys as they are here."""
    for _ in CONTAINERS:  # one in the other at most; a dictionary may also hold itself
        outer = loaded if isinstance(loaded, dict) else {}
        loaded = next((outer[name] for name in CONTAINERS if isinstance(outer.get(name), dict)), loaded)
    pairs = list(loaded.items()) if isinstance(loaded, dict) else []
    if not pairs or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        found = ", ".join(str(key)[:40] for key, _ in pairs[:4]) or f"a {type(loaded).__name__}"
        raise UserError(f"{path} is not a checkpoint: it must hold a state dict, names -> tensors, but holds {found}")
    names = [key.replace(COMPILED_PREFIX, "") for key, _ in pairs]
    while all(name.startswith(PARALLEL_PREFIX) for name in names):
        names = [name.removeprefix(PARALLEL_PREFIX) for name in names]
    if len({*names}) < len(names):
        raise UserError(f"{path} holds some tensors twice, with and without a prefix; remove one of each")
    return dict(zip(names, (value for _, value in pairs), strict=True))


def load_weights(
    head: torch.nn.Module, path: str | Path, belongs_to: str | None = None, other_puzzles: str = "error"
) -> None:
    """Load a checkpoint, the original's too, into a model on any device.

    `other_puzzles` says what to do if the puzzle-embedding table has another number of rows: `error` refuses it, `zero`
    and `mean` fill the model's table with zeros or with the mean of the rows in use. `belongs_to` names the dataset
    that the checkpoint was trained on, for messages. Raises `UserError` if the file is missing, damaged or does not
    fit.
    """
    weights = read_weights(path)
    expected = head.state_dict()
    if other_puzzles != "error" and PUZZLE_TABLE in weights and PUZZLE_TABLE in expected:
        weights[PUZZLE_TABLE] = _for_other_puzzles(weights[PUZZLE_TABLE], expected[PUZZLE_TABLE], other_puzzles)
    _check_fit(weights, expected, path, belongs_to)
    head.load_state_dict(weights)


def load_model(
    checkpoint: Path, config: PretrainConfig, metadata: PuzzleDatasetMetadata, *, batch_size: int, device: torch.device
) -> ACTLossHead:
    """Build the checkpoint's model for a dataset, on the device; `config` is that of its run (`load_config`)."""
    check_is_file(checkpoint, "name a step_<n> file")  # before a model is built for it
    head = config.arch.build_for(metadata, batch_size=batch_size, device=device)
    load_weights(head, checkpoint, belongs_to=config.data_path)
    return head


def load_model_alone(
    checkpoint: Path, config: PretrainConfig, seq_len: int, device: torch.device, metadata: PuzzleDatasetMetadata | None
) -> ACTLossHead:
    """Build the checkpoint's model without a dataset, for sequences of `seq_len` tokens, even of another length.

    Vocabulary and number of puzzles are read off the weights or, if an architecture keeps them elsewhere, off
    `metadata`, which is the dataset's if that is at hand. Raises `UserError` as `load_model` does, and if the model
    has learned positions for another number of tokens.
    """
    weights = read_weights(checkpoint)
    if TOKEN_TABLE in weights:
        vocab_size, puzzles = len(weights[TOKEN_TABLE]), len(weights.get(PUZZLE_TABLE, [0]))
    elif metadata is not None:
        vocab_size, puzzles = metadata.vocab_size, metadata.num_puzzle_identifiers
    else:
        raise UserError(f"{checkpoint} has no {TOKEN_TABLE} to read its vocabulary off; set data_path to its dataset")
    with torch.device(device):
        head = config.arch.build(
            batch_size=1, seq_len=seq_len, vocab_size=max(2, vocab_size), num_puzzle_identifiers=puzzles
        )
    learned = len(weights.get(POSITION_TABLE, [])) - (head.model.inner.positions - seq_len)
    if POSITION_TABLE in weights and learned != seq_len:
        raise UserError(
            f"{checkpoint} has learned the positions of {learned} cells and cannot read a puzzle of {seq_len}; "
            f"use a checkpoint of such puzzles"
        )
    _check_fit(weights, head.state_dict(), checkpoint, belongs_to=None)
    head.load_state_dict(weights)
    return head


def _for_other_puzzles(theirs: torch.Tensor, ours: torch.Tensor, how: str) -> torch.Tensor:
    """Turn a table (rows, dim) for other puzzles into one for the model's; one of the same size stays as it is."""
    if theirs.shape == ours.shape or theirs.shape[1] != ours.shape[1]:
        return theirs
    if how == "zero":
        return torch.zeros_like(ours, device="cpu")
    # Row 0 is the blank, and rows that were never trained are zero: neither says anything about puzzles.
    used = theirs[1:][theirs[1:].any(dim=1)]
    mean = used.mean(dim=0) if len(used) else torch.zeros_like(theirs[0])
    table = mean.expand(ours.shape).clone()
    table[0] = theirs[0]
    return table


def _check_fit(weights: dict, expected: dict, path: str | Path, belongs_to: str | None) -> None:
    if PUZZLE_TABLE in weights and PUZZLE_TABLE in expected:
        theirs, ours = weights[PUZZLE_TABLE].shape, expected[PUZZLE_TABLE].shape
        if theirs != ours:
            of = f" ({belongs_to})" if belongs_to else ""
            raise UserError(
                f"{path} has a puzzle-embedding table of {theirs[0]} × {theirs[1]}, the dataset and config need "
                f"{ours[0]} × {ours[1]}; use the dataset that the checkpoint was trained on{of}, "
                f"or start new puzzles from it: pretrain.py load_checkpoint_puzzle_emb=mean|zero"
            )
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unknown:
        both = ((missing, "missing"), (unknown, "unknown"))
        first = [f"{min(names):.100} is {what}" for names, what in both if names]
        remedy = "set arch to the checkpoint's all_config.yaml"
        if missing == expected.keys():
            remedy = f"rename them: the model's are called like {min(expected)}"
        raise UserError(
            f"{path} does not fit the model: {len(missing)} tensors missing, {len(unknown)} unknown "
            f"({', '.join(first)}); {remedy}"
        )
    for key, value in expected.items():
        theirs = weights[key]
        if theirs.dtype != value.dtype and not (theirs.dtype in FLOATS and value.dtype in FLOATS):
            raise UserError(f"{path}: {key} holds {theirs.dtype}, where {value.dtype} is expected; convert it")
        if theirs.shape != value.shape:
            raise UserError(
                f"{path}: {key} is {tuple(theirs.shape)}, the dataset and config need {tuple(value.shape)}; "
                f"set arch to the checkpoint's all_config.yaml and use its dataset"
            )
        if theirs.dtype in FLOATS and not torch.isfinite(theirs.to(value.dtype)).all():
            raise UserError(f"{path}: {key} has values that are not finite; use an earlier checkpoint of the run")
