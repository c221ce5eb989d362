"""The run folder: what was run, its source, its metrics and its checkpoints.

all_config.yaml             the resolved config
hrm_act_v1.py, losses.py    the source of the model and of its head
metrics.jsonl               one object a line: `step`, then `train/<metric>` or `eval/<metric>`
step_<n>                    state dict of the model
step_<n>_all_preds.<rank>   saved predictions
"""

import inspect
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import coolname
import torch
import yaml

from dataset.common import PuzzleDatasetMetadata
from errors import UserError
from models.losses import ACTLossHead
from training.config import HEADS, MODELS, PretrainConfig, load_config

COMPILED_PREFIX = "_orig_mod."  # what `torch.compile` of a whole model puts before each key
PUZZLE_TABLE = "model.inner.puzzle_emb.weights"


def name_run(config: PretrainConfig) -> PretrainConfig:
    """Fill in the names that were not given; on rank 0, since the slug is random."""
    project = config.project_name or f"{Path(config.data_path).name} ACT-torch".capitalize()
    run = config.run_name or f"{config.arch.name.split('@')[-1]} {coolname.generate_slug(2)}"
    path = config.checkpoint_path or str(Path("checkpoints") / project / run)
    return config.model_copy(update=dict(project_name=project, run_name=run, checkpoint_path=path))


def create(config: PretrainConfig, resumed_from: Path | None) -> Path:
    """Make the folder, or take up the one of the state that the run goes on from, and write down what will be run."""
    folder = Path(config.checkpoint_path)
    in_use = (folder / "metrics.jsonl").exists()
    goes_on = resumed_from is not None and resumed_from.resolve().parent == folder.resolve()
    if in_use and not goes_on and config.resume is not True:
        raise UserError(
            f"checkpoint_path={folder} already holds a run; go on with it (resume=true), choose another, or remove it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "all_config.yaml").write_text(yaml.safe_dump(config.model_dump()))
        if resumed_from is not None and not goes_on:
            shutil.copy(resumed_from.parent / "metrics.jsonl", folder)
        for part in (MODELS[config.arch.name], HEADS[config.arch.loss.name]):
            shutil.copy(inspect.getfile(part), folder)
    except OSError as error:
        raise UserError(f"cannot write to checkpoint_path={folder}: {error.strerror}") from None
    return folder


def write_atomically(path: Path, save) -> None:
    """`save(file)` into a sibling that takes its place when complete."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def save_weights(folder: Path, step: int, head: torch.nn.Module) -> Path:
    path = folder / f"step_{step}"
    write_atomically(path, lambda file: torch.save(head.state_dict(), file))
    return path


def load_weights(head: torch.nn.Module, path: str | Path, belongs_to: str | None = None) -> None:
    """Load a checkpoint, the original's too, into a model on any device.

    Raises `UserError` where it is missing or damaged, or does not fit; `belongs_to` is the dataset it was trained on.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        reason = "damaged, or it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else "damaged"
        raise UserError(f"{path} is not a readable checkpoint: {reason}; name a step_<n> file") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict; name a step_<n> file")
    weights = {key.removeprefix(COMPILED_PREFIX): value for key, value in loaded.items()}
    _check_fit(weights, head.state_dict(), path, belongs_to)
    head.load_state_dict(weights)


def load_model(
    checkpoint: Path, metadata: PuzzleDatasetMetadata, *, batch_size: int, device: torch.device
) -> tuple[ACTLossHead, PretrainConfig]:
    """The model of a checkpoint, on the device, for a dataset; and the config that lies beside it."""
    config = load_config(str(checkpoint.parent / "all_config.yaml"))
    with torch.device(device):
        head = config.arch.build(
            batch_size=batch_size,
            seq_len=metadata.seq_len,
            vocab_size=metadata.vocab_size,
            num_puzzle_identifiers=metadata.num_puzzle_identifiers,
        )
    load_weights(head, checkpoint, belongs_to=config.data_path)
    return head, config


def _check_fit(weights: dict, expected: dict, path: str | Path, belongs_to: str | None) -> None:
    if PUZZLE_TABLE in weights and PUZZLE_TABLE in expected:
        theirs, ours = weights[PUZZLE_TABLE].shape, expected[PUZZLE_TABLE].shape
        if theirs != ours:
            of = f" ({belongs_to})" if belongs_to else ""
            raise UserError(
                f"{path} has a puzzle-embedding table of {theirs[0]} × {theirs[1]}, the dataset and config need "
                f"{ours[0]} × {ours[1]}; use the dataset that the checkpoint was trained on{of}"
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
