"""Checkpoints: the weights of a model in a file, and a model with the weights of a file.

A `step_<n>` is a state dict whose keys are those of the published checkpoints. `checkpoints.json` beside it says what
was written, so that a damaged one is not taken for a worse one: {"step_10": {"bytes": …, "sha256": …, "data": …}}.
There `data` is the identity of the training split (`dataset.format.content_digest`). A checkpoint without an entry,
such as a published one, is loaded as it is. It may carry the prefixes of compiled and parallel models, or lie in a
dictionary.

A `.safetensors` file holds the same state dict, and says of itself what it was: the file's name in its run, `step`,
`data`, and a digest of the tensors. On the Hugging Face Hub and in pretrained/ it is called `model.safetensors`.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataset.format import PuzzleDatasetMetadata, content_digest, same_content
from errors import UserError, describe_validation_error, first_line, is_out_of_memory
from files import check_is_file, file_digest, read_json, write_atomically
from models.losses import ACTLossHead
from training.config import PretrainConfig, load_config

RECORDS = "checkpoints.json"
SAFETENSORS = ".safetensors"
SHARED = f"model{SAFETENSORS}"  # the one checkpoint of a folder on the Hub or in pretrained/
ORIGINAL_CHECKPOINT = "checkpoint"  # as the original's repositories call it
# What others wrap a state dict in, and what their wrappers of a model put before each key
CONTAINERS = ("model_state_dict", "state_dict", "model")
COMPILED_PREFIX, PARALLEL_PREFIX = "_orig_mod.", "module."
# Tables of models/token_network.py, whose lengths tell what data a model was made for
PUZZLE_TABLE = "model.inner.puzzle_emb.weights"
TOKEN_TABLE = "model.inner.embed_tokens.embedding_weight"
POSITION_TABLE = "model.inner.embed_pos.embedding_weight"  # of models with learned positions
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


Weights = dict[str, Tensor]


def find_checkpoint(name: str | Path) -> Path:
    """The file that a person means by a checkpoint: itself or, of a run folder, the best or else the last one.

    The best is the one in `best.json` if it has anything right, the last that of the highest step, with averaged
    weights if there are any. A folder of the Hub or of pretrained/ holds one alone. Raises `UserError` for a folder
    without checkpoints, and for a path where there is neither a file nor a run; whether a run has the file is left to
    whoever reads it.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not folder.exists() and not (folder.parent / "all_config.yaml").exists():
            raise UserError(f"{name} does not exist; name a checkpoint step_<n> in its run folder, or the folder")
        return folder
    if (folder / "best.json").exists() and (best := best_checkpoint(folder)) is not None:
        return best
    steps = checkpoints_in(folder)
    alone = [folder / one for one in (SHARED, ORIGINAL_CHECKPOINT) if (folder / one).is_file()]
    if not steps and not alone:
        raise UserError(f"{folder} holds no checkpoint step_<n>; name a run folder, or a checkpoint in one")
    return steps[-1] if steps else alone[0]


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `best.json` names; None if no puzzle was right at any evaluation: the first is then no best.

    Raises `UserError` if the file is damaged, or what it names is gone.
    """
    try:
        best = read_json(folder / "best.json", "name another", limit=1 << 20)
        name = str(best["checkpoint"])
        if best.get("value") == 0:
            return None
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/best.json is damaged ({error}); name a step_<n> file") from None
    if step_of(name) is None or not (folder / name).is_file():
        raise UserError(f"{folder}/best.json names {name!a:.100}, which is not there; name a step_<n> file")
    return folder / name


def checkpoints_in(folder: Path) -> list[Path]:
    """The `step_<n>` files of a run folder by their step; averaged weights come after those of the same step."""
    return sorted(
        (path for path in folder.iterdir() if step_of(path.name) is not None and path.is_file()),
        key=lambda path: (step_of(path.name), path.name),
    )


def step_of(name: str) -> int | None:
    """The step in a checkpoint's file name (step_60, step_60_ema), None for any other file."""
    match = re.fullmatch(r"step_(\d+)(_ema)?", name)
    return int(match[1]) if match else None


def open_run(name: str | Path, data_path: str | None) -> tuple[Path, PretrainConfig]:
    """The checkpoint that a person means, see `find_checkpoint`, and the config of its run, which lies beside it.

    `data_path` is the dataset that the user names, see `check_data`.
    """
    checkpoint = find_checkpoint(name)
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    check_data(checkpoint, run, data_path)
    return checkpoint, run


def beside(checkpoint: Path) -> Path:
    """What the names of files begin with that are made from a checkpoint, such as its predictions."""
    return checkpoint.with_name(checkpoint.name.removesuffix(SAFETENSORS))


class CheckpointRecord(BaseModel):
    """What is known of a checkpoint that was written here."""

    bytes: int
    sha256: str
    data: str | None = None


def save_weights(path: Path, weights: Weights, data: str | None) -> bool:
    """Write a checkpoint and its entry in checkpoints.json; `data` is the identity of what it was trained on.

    -> whether it differs from the one that was there, or there was none.
    """
    before = file_digest(path) if path.is_file() else None
    written = write_atomically(path, lambda file: torch.save(weights, file))
    record = CheckpointRecord(bytes=written.size, sha256=written.sha256, data=data)
    records = read_records(path.parent) | {path.name: record}
    text = json.dumps({name: record.model_dump() for name, record in records.items()}, indent=1)
    write_atomically(path.parent / RECORDS, lambda file: file.write(text.encode()))
    return written != before


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
    if checkpoint.suffix == SAFETENSORS:
        return read_safetensors(checkpoint)[2]
    record = read_records(checkpoint.parent).get(checkpoint.name)
    return None if record is None else record.data


def check_data(checkpoint: Path, run: PretrainConfig, data_path: str | None) -> None:
    """Raise `UserError` if the run's dataset was built anew since the checkpoint was trained on it.

    A `data_path` that the user names is what they asked for. Without a train split, or for a checkpoint of an earlier
    version or of the original, nobody can tell.
    """
    trained, split = trained_on(checkpoint), Path(run.data_path) / "train"
    if data_path is not None or trained is None or not (split / "dataset.json").exists():
        return
    content = content_digest(split)
    if not same_content(content, trained):
        raise UserError(
            f"{checkpoint} was trained on {run.data_path} of content {trained}, which is {content} now: it was built "
            f"anew; give data_path=… to evaluate on it all the same"
        )


def read_weights(path: str | Path) -> Weights:
    """The tensors of a checkpoint, on the CPU, without what others put around and before their names.

    Raises `UserError` if the file is missing, is not what was written, or holds anything but dense tensors.
    """
    path = Path(path)
    remedy = "name a step_<n> file"
    check_is_file(path, remedy)
    check_record(path)
    is_safe = path.suffix == SAFETENSORS
    weights = _unwrapped(read_safetensors(path)[1] if is_safe else load_tensors(path, remedy), path)
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


def write_safetensors(weights: Weights, path: Path, checkpoint: str, data: str | None) -> None:
    """Write the tensors of the checkpoint of this name, which was trained on `data`, bit for bit."""
    # safetensors takes neither views of a shared storage nor tensors that are not row-major.
    separate = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    step = step_of(checkpoint)
    about = {"format": "pt", "checkpoint": checkpoint, "step": step, "data": data, "sha256": tensors_digest(weights)}
    save_file(separate, path, metadata={key: str(value) for key, value in about.items() if value is not None})


def read_safetensors(path: Path) -> tuple[str, Weights, str | None]:
    """-> (the checkpoint's name in its run, its tensors, the identity of what it was trained on)"""
    remedy = "get the file again"
    check_is_file(path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # the last of PyTorch's mapping
        raise UserError(f"{path} is damaged: {first_line(error)}; {remedy}") from None
    name = about.get("checkpoint", ORIGINAL_CHECKPOINT)
    # It becomes a file name where a run is pulled, so the file may not choose it freely.
    if step_of(name) is None and name != ORIGINAL_CHECKPOINT:
        raise UserError(f"{path} names its checkpoint {name!r}; it must be step_<n> or {ORIGINAL_CHECKPOINT}")
    if not weights:
        raise UserError(f"{path} holds no tensors; {remedy}")
    if about.get("sha256", sent := tensors_digest(weights)) != sent:
        raise UserError(f"{path} does not hold the tensors that were written: it is damaged; {remedy}")
    data = about.get("data", "")
    return name, weights, data if re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", data) else None


def tensors_digest(weights: Weights) -> str:
    """SHA-256 of names, types, shapes and values, however a file lays them out."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _unwrapped(loaded: Any, path: Path) -> Weights:
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
    and `mean` fill the model's table with zeros or with the mean of the rows in use, and `first` takes the first rows
    of a longer one. `belongs_to` names the dataset that the checkpoint was trained on, for messages. Raises `UserError`
    if the file is missing, damaged or does not fit.
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
    # Of several datasets `data_path` is the first, whose puzzles have the first rows of the common table
    other_puzzles = "first" if config.has_other_datasets else "error"
    load_weights(head, checkpoint, belongs_to=config.data_path, other_puzzles=other_puzzles)
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
    if how == "first":
        return theirs[: len(ours)]
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
