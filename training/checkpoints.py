"""Checkpoints: the weights of a model in a file, and a model with the weights of a file.

A `step_<n>` is a state dict whose keys are those of the published checkpoints; theirs may carry a prefix.
"""

import pickle
from pathlib import Path

import torch

from dataset.format import PuzzleDatasetMetadata
from errors import UserError
from files import write_atomically
from models.losses import ACTLossHead
from training.config import PretrainConfig

COMPILED_PREFIX = "_orig_mod."  # what `torch.compile` of a whole model puts before each key
# Tables of models/token_network.py, whose lengths tell what data a model was made for
PUZZLE_TABLE = "model.inner.puzzle_emb.weights"
TOKEN_TABLE = "model.inner.embed_tokens.embedding_weight"
POSITION_TABLE = "model.inner.embed_pos.embedding_weight"  # of models with learned positions


def save_weights(path: Path, head: torch.nn.Module) -> None:
    write_atomically(path, lambda file: torch.save(head.state_dict(), file))


def trained_on(checkpoint: Path) -> str | None:
    """The identity of the training split (`dataset.format.content_digest`) of a checkpoint, if it was recorded."""
    return None


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU, without the prefix of compiled ones."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"checkpoint {path} {_not_a_file(Path(path))}") from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        reason = "damaged, or it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else "damaged"
        raise UserError(f"{path} is not a readable checkpoint: {reason}; name a step_<n> file") from None
    pairs = loaded.items() if isinstance(loaded, dict) else []
    if not pairs or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in pairs):
        raise UserError(f"{path} is not a checkpoint: it must hold a state dict, names -> tensors")
    return {key.removeprefix(COMPILED_PREFIX): value for key, value in pairs}


def _not_a_file(path: Path) -> str:
    return "is a folder; name a step_<n> file" if path.is_dir() else "does not exist"


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
    if not checkpoint.is_file():
        raise UserError(f"checkpoint {checkpoint} {_not_a_file(checkpoint)}")
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
        raise UserError(
            f"{path} is of another architecture: {len(missing)} tensors missing, {len(unknown)} unknown, "
            f"first {sorted(missing | unknown)[0]}; set arch to the checkpoint's all_config.yaml"
        )
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise UserError(
                f"{path}: {key} is {tuple(weights[key].shape)}, the dataset and config need {tuple(value.shape)}; "
                f"set arch to the checkpoint's all_config.yaml and use its dataset"
            )
