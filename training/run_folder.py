"""The run folder: what was run, its source, its metrics and its checkpoints.

all_config.yaml             the resolved config
hrm_act_v1.py, losses.py    the source of the model and of its head
metrics.jsonl               one object a line: `step`, then `train/<metric>` or `eval/<metric>`
step_<n>                    state dict of the model
step_<n>_all_preds.<rank>   saved predictions
"""

import inspect
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

import coolname
import torch
import yaml

from dataset.common import PuzzleDatasetMetadata
from errors import UserError
from models.losses import ACTLossHead
from training.config import HEADS, MODELS, PretrainConfig
from training.distributed import Ranks

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "pydantic", "wandb")
COMPILED_PREFIX = "_orig_mod."  # what `torch.compile` of a whole model puts before each key
PUZZLE_TABLE = "model.inner.puzzle_emb.weights"


def name_run(config: PretrainConfig) -> PretrainConfig:
    """Fill in the names that were not given; on rank 0, since the slug is random."""
    project = config.project_name or f"{Path(config.data_path).name} ACT-torch".capitalize()
    run = config.run_name or f"{config.arch.name.split('@')[-1]} {coolname.generate_slug(2)}"
    path = config.checkpoint_path or str(Path("checkpoints") / project / run)
    return config.model_copy(update=dict(project_name=project, run_name=run, checkpoint_path=path))


def check_free(config: PretrainConfig, resumed_from: Path | None) -> None:
    """Refuse a folder whose run would be overwritten."""
    folder = Path(config.checkpoint_path)
    if resumed_from is not None and resumed_from.resolve().parent == folder.resolve():
        return
    if any(folder.glob("step_*")) or (config.resume is not True and (folder / "metrics.jsonl").exists()):
        remedy = "it has no training state to go on from" if config.resume is True else "go on with it (resume=true)"
        raise UserError(f"checkpoint_path={folder} already holds a run; {remedy}, choose another, or remove it")


def create(config: PretrainConfig, resumed_from: Path | None) -> Path:
    """Make the folder, or take up the one of the state that the run goes on from, and write down what will be run."""
    folder = Path(config.checkpoint_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "all_config.yaml").write_text(yaml.safe_dump(config.model_dump()))
        if resumed_from is not None and resumed_from.resolve().parent != folder.resolve():
            shutil.copy(resumed_from.parent / "metrics.jsonl", folder)
        for part in (MODELS[config.arch.name], HEADS[config.arch.loss.name]):
            shutil.copy(inspect.getfile(part), folder)
    except OSError as error:
        raise UserError(f"cannot write to checkpoint_path={folder}: {error.strerror}") from None
    return folder


def record_environment(folder: Path, ranks: Ranks, device: torch.device) -> None:
    """Add this start to environment.json."""
    path = folder / "environment.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    start = {
        "command": [sys.executable, *sys.argv],
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "ranks": ranks.world_size,
    }
    write_atomically(path, lambda file: file.write(json.dumps([*starts, start], indent=1).encode()))


def _versions() -> dict[str, str]:
    installed = {distribution.metadata["Name"].lower(): distribution.version for distribution in distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _git_commit() -> str | None:
    """Of the code that runs, `-dirty` where it was changed; None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


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


def write_best(folder: Path, best: dict) -> None:
    """Point `best.json` to the checkpoint with the highest `eval/exact_accuracy`."""
    text = json.dumps(best | {"checkpoint": f"step_{best['step']}"})
    write_atomically(folder / "best.json", lambda file: file.write(text.encode()))


def load_weights(
    head: torch.nn.Module, path: str | Path, belongs_to: str | None = None, other_puzzles: str = "error"
) -> None:
    """Load a checkpoint, the original's too, into a model on any device.

    `other_puzzles` says what becomes of a puzzle-embedding table with another number of rows: `error`, or all rows of
    the model's `zero`, or the `mean` of the checkpoint's rows in use. Raises `UserError` where the file is missing or
    damaged, or does not fit; `belongs_to` is the dataset it was trained on.
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
    expected = head.state_dict()
    if other_puzzles != "error" and PUZZLE_TABLE in weights and PUZZLE_TABLE in expected:
        weights[PUZZLE_TABLE] = _for_other_puzzles(weights[PUZZLE_TABLE], expected[PUZZLE_TABLE], other_puzzles)
    _check_fit(weights, expected, path, belongs_to)
    head.load_state_dict(weights)


def load_model(
    checkpoint: Path, config: PretrainConfig, metadata: PuzzleDatasetMetadata, *, batch_size: int, device: torch.device
) -> ACTLossHead:
    """The model of a checkpoint, for a dataset, on the device; `config` is its run's (`load_config`)."""
    if not checkpoint.is_file():
        raise UserError(f"checkpoint {checkpoint} does not exist")
    with torch.device(device):
        head = config.arch.build(
            batch_size=batch_size,
            seq_len=metadata.seq_len,
            vocab_size=metadata.vocab_size,
            num_puzzle_identifiers=metadata.num_puzzle_identifiers,
        )
    load_weights(head, checkpoint, belongs_to=config.data_path)
    return head


def _for_other_puzzles(theirs: torch.Tensor, ours: torch.Tensor, how: str) -> torch.Tensor:
    """A table (rows, dim) for the model's puzzles out of one for others; of the same size it stays as it is."""
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
