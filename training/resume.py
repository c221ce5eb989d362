"""The training state: everything that a run needs to go on as if it had never stopped.

    <run>/state_<n>/manifest.json    step, position in the data, ranks, what must not change, bytes of metrics.jsonl
    <run>/state_<n>/model.pt         state dict of the model
    <run>/state_<n>/optimizers.pt    list of the optimisers' state dicts
    <run>/state_<n>/ema.pt           the averaged parameters, with ema_decay
    <run>/state_<n>/rank_<r>.pt      a rank's carry and random generators

A state is written under another name and renamed when every file is on disk; a folder with any other name is no state.
"""

import json
import logging
import pickle
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch

from dataset.format import description_digest
from errors import UserError
from files import durably, put_in_place
from training.config import RETIRED_ARCH_KEYS, PretrainConfig
from training.distributed import Ranks
from training.step import TrainState

log = logging.getLogger(__name__)

# If one of these changes, the position in the data or the weights mean nothing any more.
FIXED_KEYS = ("arch", "data", "global_batch_size", "eval_interval", "seed", "ema_decay", "freeze")


def fixed_values(config: PretrainConfig) -> dict:
    """What must not change on resuming: flat keys -> values; `data` is a digest of the training split's description."""
    values = config.model_dump() | {"data": description_digest(Path(config.data_path) / "train")}
    flat = {}
    for key in FIXED_KEYS:
        value = values[key]
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


class Schedule:
    """When a state is due between evaluations: after a number of steps, or of minutes."""

    def __init__(self, config: PretrainConfig):
        self._interval = config.checkpoint_interval
        self._seconds = None if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes
        self._saved_at = time.monotonic()

    def falls_on(self, step: int) -> bool:
        return self._interval is not None and step % self._interval == 0

    def due(self, step: int) -> bool:
        if self.falls_on(step):
            return True
        return self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds

    def saved(self) -> None:
        self._saved_at = time.monotonic()


def save_state(state: TrainState, config: PretrainConfig, ranks: Ranks, metrics_bytes: int) -> Path:
    """Write `state_<step>`, all ranks together, and remove the oldest states beyond `keep_last`.

    Raises `UserError` if it cannot be written; complete states are then left untouched.
    """
    if not all(torch.isfinite(p).all() for p in state.head.parameters()):
        raise UserError(f"the weights are not finite after step {state.step}; earlier states are untouched; lower lr")
    run = Path(config.checkpoint_path)
    place, beside = run / f"state_{state.step}", run / f".state_{state.step}.tmp"
    try:
        if ranks.is_main:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        ranks.barrier()
        shared = shared_state(state) if ranks.is_main else {}
        for name, value in {f"rank_{ranks.rank}.pt": rank_state(state), **shared}.items():
            with durably(beside / name) as file:
                torch.save(value, file)
        ranks.barrier()
        if ranks.is_main:
            manifest = {
                "progress": state.progress(),
                "world_size": ranks.world_size,
                "metrics_bytes": metrics_bytes,
                "fixed": fixed_values(config),
                "files": [*shared, *(f"rank_{rank}.pt" for rank in range(ranks.world_size))],
            }
            with durably(beside / "manifest.json") as file:
                file.write(json.dumps(manifest, indent=1).encode())
            # A state of the same step, saved before its evaluation, is moved aside: at every moment there is one.
            put_in_place(beside, place, aside=place.with_name(f"{place.name}.old"))
            for old in complete_states(run)[config.keep_last :]:
                shutil.rmtree(old)
        ranks.barrier()
    except (OSError, RuntimeError) as error:  # RuntimeError: another rank failed, and its connection is closed
        if ranks.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"cannot save the training state in {run}: {error}; earlier states are untouched") from error
    return place


def shared_state(state: TrainState) -> dict[str, dict | list]:
    """The part of the state that is the same on all ranks, by file."""
    files = {
        "model.pt": state.head.state_dict(),
        "optimizers.pt": [optimizer.state_dict() for optimizer in state.optimizers],
    }
    return files if state.ema is None else files | {"ema.pt": state.ema.state_dict()}


def rank_state(state: TrainState) -> dict:
    """A rank's own part, as tensors in plain containers."""
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        generators["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        generators["mps"] = torch.mps.get_rng_state()
    return {"carry": None if state.carry is None else asdict(state.carry), "generators": generators}


def complete_states(run: Path) -> list[Path]:
    """The complete states of a run, newest first; one that lacks a file is skipped with a warning."""
    matches = [(re.fullmatch(r"state_(\d+)(\.old)?", path.name), path) for path in run.glob("state_*")]
    found = sorted((int(match[1]), match[2] is None, path) for match, path in matches if match)
    return [path for _, _, path in reversed(found) if _is_complete(path)]


def _is_complete(path: Path) -> bool:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        missing = [name for name in manifest["files"] if not (path / name).is_file()]
    except (OSError, ValueError, KeyError) as error:
        missing = [f"a readable manifest.json ({type(error).__name__})"]
    if missing:
        log.warning("%s is not complete (no %s); passing over it", path, ", ".join(missing))
    return not missing


def find_state(config: PretrainConfig) -> Path | None:
    """The state that `resume` asks for; None for a fresh start."""
    if config.resume is False:
        return None
    if config.resume is True:
        states = complete_states(Path(config.checkpoint_path))
        return states[0] if states else None
    path = Path(config.resume)
    if (path / "manifest.json").exists():
        if not _is_complete(path):
            raise UserError(f"resume={path} is not a complete state; name another, or the run folder for its newest")
        return path
    states = complete_states(path)
    if not states:
        raise UserError(f"resume={path} holds no complete training state; name a run folder or a state_<n> in it")
    return states[0]


def read_manifest(path: Path, config: PretrainConfig) -> dict:
    """Read the manifest, and check that the run may go on with this config."""
    manifest = json.loads((path / "manifest.json").read_text())
    now = fixed_values(config)
    # A hyper-parameter that is new since then counts as its default; one that no longer exists did nothing.
    then = {f"arch.{key}": field.default for key, field in type(config.arch).model_fields.items()} | manifest["fixed"]
    then = {key: value for key, value in then.items() if key.removeprefix("arch.") not in RETIRED_ARCH_KEYS}
    differing = [
        f"{key} (was {then.get(key)}, is {now.get(key)})"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ]
    if differing:
        raise UserError(
            f"{path} cannot be resumed with another {', '.join(differing)}; "
            f"restore these, or start a new run with load_checkpoint"
        )
    return manifest


def load_state(path: Path, manifest: dict, state: TrainState, run: Path, ranks: Ranks, device: torch.device) -> None:
    """Bring a freshly created state to where the saved one was; the run goes on in the folder `run`."""
    state.head.load_state_dict(_read(path / "model.pt"))
    for optimizer, saved in zip(state.optimizers, _read(path / "optimizers.pt"), strict=True):
        optimizer.load_state_dict(saved)
    if state.ema is not None:
        state.ema.load_state_dict(_read(path / "ema.pt"))
    state.load_progress(manifest["progress"])
    if path.resolve().parent != run.resolve():
        state.wandb_id = None  # another run, which branches off
    if manifest["world_size"] != ranks.world_size:
        log.warning(
            "%s was saved by %d ranks, now there are %d: every sequence starts afresh",
            path, manifest["world_size"], ranks.world_size,
        )  # fmt: skip
        return
    saved = _read(path / f"rank_{ranks.rank}.pt")
    if saved["carry"] is not None:
        data = {name: field.to(device) for name, field in saved["carry"]["current_data"].items()}
        state.carry = state.head.initial_carry(data)
        state.carry.load(saved["carry"])
    generators = saved["generators"]
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and device.type == "cuda":
        torch.cuda.set_rng_state(generators["cuda"])
    if "mps" in generators and device.type == "mps":
        torch.mps.set_rng_state(generators["mps"])


def _read(path: Path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}); remove its folder to resume from an older state"
        ) from None
