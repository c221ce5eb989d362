"""The run folder: what was run, its source, its metrics and its checkpoints.

all_config.yaml             the resolved config
.lock                       held while the run trains: host and process
hrm_act_v1.py, act.py, …    the source of the model and of its head
metrics.jsonl               one object per line: `step`, then `train/<metric>`, `eval/<metric>` or `test/<metric>`
step_<n>                    state dict of the model
step_<n>_ema                the same of its averaged weights, with ema_decay
checkpoints.json            size and digest of every checkpoint, see training/checkpoints.py
state_<n>/                  training state, see training/resume.py
best.json                   metric, value, step and file of the best checkpoint
environment.json            command, versions, device, work and times of every start
step_<n>_preds/             predictions of evaluate.py, see training/predictions.py
step_<n>_all_preds.<rank>   the same in the original's format
step_<n>_search/            a search with it, see evaluators/search_folder.py
"""

import inspect
import json
import logging
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import coolname
import torch
import yaml

from errors import UserError
from extension import import_below
from files import locked, read_json, remove_abandoned, write_atomically
from training.checkpoints import ORIGINAL_CHECKPOINT, RECORDS, SHARED, read_records
from training.config import HEADS, ArchConfig, PretrainConfig, load_config
from training.distributed import Ranks, device_name
from training.metrics import METRICS_FILE

log = logging.getLogger(__name__)

CONFIG_FILE, ENVIRONMENT, LOCK = "all_config.yaml", "environment.json", ".lock"
WRITTEN = (CONFIG_FILE, METRICS_FILE, RECORDS, ENVIRONMENT, "best.json")
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "pydantic", "wandb")


def name_run(config: PretrainConfig) -> PretrainConfig:
    """Fill in the names that were not given; called on rank 0 only, since the slug is random."""
    project = config.project_name or f"{Path(config.data_path).name.capitalize()} ACT-torch"
    run = config.run_name or f"{config.arch.name.split('@')[-1]} {coolname.generate_slug(2)}"
    path = config.checkpoint_path or str(Path("checkpoints") / project / run)
    return config.model_copy(update=dict(project_name=project, run_name=run, checkpoint_path=path))


def check_free(config: PretrainConfig, resumed_from: Path | None) -> None:
    """Raise `UserError` if the folder holds a run that would be overwritten, or a checkpoints.json that is damaged."""
    folder = Path(config.checkpoint_path)
    read_records(folder)
    if resumed_from is not None and resumed_from.parent.resolve() == folder.resolve():
        return
    branched_from = _branch_without_a_state(folder)
    if branched_from is not None and config.resume is True:
        raise UserError(
            f"checkpoint_path={folder} branched off and has no training state of its own yet; give "
            f"resume={branched_from} again"
        )
    if branched_from is not None and os.path.abspath(str(config.resume)) == os.path.abspath(branched_from):
        return
    if any(folder.glob("step_*")) or (config.resume is not True and (folder / METRICS_FILE).exists()):
        remedy = "it has no training state to go on from" if config.resume is True else "go on with it (resume=true)"
        raise UserError(f"checkpoint_path={folder} already holds a run; {remedy}, choose another, or remove it")
    if published := [name for name in (SHARED, ORIGINAL_CHECKPOINT) if (folder / name).exists()]:
        raise UserError(
            f"checkpoint_path={folder} holds {published[0]}, a checkpoint that was published; choose another, and "
            f"start from its weights with load_checkpoint={folder / published[0]}"
        )
    theirs = [name for name in (*WRITTEN, *model_sources(config.arch)) if os.path.lexists(folder / name)]
    if theirs and not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"checkpoint_path={folder} is no run folder, but holds {', '.join(theirs)}, which the run would overwrite; "
            f"choose another"
        )


def _branch_without_a_state(folder: Path) -> str | None:
    """What the run in this folder goes on from, if it branched off and was ended before it had saved a state."""
    if not (folder / CONFIG_FILE).is_file() or any(folder.glob("step_*")) or any(folder.glob("state_*")):
        return None
    try:
        branched_from = load_config(str(folder / CONFIG_FILE)).resume
    except UserError:  # of a damaged one, which is written anew
        return None
    return branched_from if isinstance(branched_from, str) else None


def lock(config: PretrainConfig):
    """A context in which no other process trains in the run folder. Raises `UserError` if one does."""
    return locked(Path(config.checkpoint_path) / LOCK, f"trains in {config.checkpoint_path}")


def create(config: PretrainConfig, resumed_from: Path | None, keep_bytes: int = 0) -> Path:
    """Make the folder, or go on in that of the resumed state, and record what will be run.

    Of the metrics of another run, from which this one branches off, the first `keep_bytes` are copied.
    """
    folder = Path(config.checkpoint_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG_FILE, lambda file: file.write(yaml.safe_dump(config.model_dump()).encode()))
        remove_abandoned(folder)
        if resumed_from is not None and resumed_from.parent.resolve() != folder.resolve():
            metrics = resumed_from.parent.resolve() / METRICS_FILE
            kept = metrics.read_bytes()[:keep_bytes] if keep_bytes else b""
            write_atomically(folder / METRICS_FILE, lambda copy: copy.write(kept))
        for name, source in model_sources(config.arch).items():
            write_atomically(folder / name, lambda copy, source=source: copy.write(source.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot write to checkpoint_path={folder}: {error.strerror}") from None
    return folder


def model_sources(arch: ArchConfig) -> dict[str, Path]:
    """The source files of the architecture, its network and the loss head, and of what they build on below models/.

    They are given by the names that they get in the run folder; of two of one name, the second has its folder's before.
    """
    classes = (arch.model_class, arch.model_class.Inner, HEADS[arch.loss.name])
    parts = [part for one in classes for part in one.__mro__ if part.__module__.startswith("models.")]
    named = import_below("models", arch.name.partition("@")[0])  # it may only import the class
    sources: dict[str, Path] = {}
    for path in dict.fromkeys(Path(inspect.getfile(part)) for part in (named, *parts)):
        sources[path.name if path.name not in sources else f"{path.parent.name}_{path.name}"] = path
    return sources


def record_environment(
    folder: Path, ranks: Ranks, device: torch.device, about: dict[str, Any] | None = None, state: Path | None = None
) -> None:
    """Add this start, from a `state` or from nothing, and what else is known `about` it, to environment.json."""
    path = folder / ENVIRONMENT
    starts = _earlier_starts(path)
    start = {
        "command": [sys.executable, *sys.argv],
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "device": device_name(device),
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "started": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    } | (about or {})
    if state is not None:
        those = starts if state.parent.resolve() == folder.resolve() else _starts_of_another(state.parent)
        if changes := _what_rounds_otherwise(_start_that_saved(those, start.get("first_step")), start):
            log.warning("%s goes on with %s: from here on its last digits are others", state, "; ".join(changes))
    write_atomically(path, lambda file: file.write(json.dumps([*starts, start], indent=1).encode()))


def _start_that_saved(starts: list, step: int | None) -> dict[str, Any]:
    """The one that got to this step: the last that began before it."""
    known = [start for start in starts if isinstance(start, dict)]
    before = [start for start in known if isinstance(first := start.get("first_step", 0), int) and first < (step or 0)]
    return before[-1] if before else {}


def _what_rounds_otherwise(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed since `before` so that sums are rounded otherwise; what it does not say has not."""

    def said(start: dict[str, Any]) -> dict[str, str]:
        packages = start.get("packages")
        device, threads = start.get("device"), start.get("threads")
        values = {
            "device": device,
            "PyTorch": packages.get("torch") if isinstance(packages, dict) else None,
            "threads": str(threads) if type(threads) is int and now["device"].startswith("cpu") else None,
        }
        return {key: value for key, value in values.items() if _is_a_name(value)}

    its = said(now)
    was = {key: value for key, value in said(before).items() if key in its}
    if was.get("device", "").endswith(f" ({platform.machine()})"):  # as earlier versions had it, of any processor
        del was["device"]
    return [f"{key} {its[key]} in place of {value}" for key, value in was.items() if value != its[key]]


def _is_a_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) < 200


def record_end(folder: Path, step: int) -> None:
    """Say in environment.json when, and at which step, the last start ended. A run that is killed does not say it."""
    path = folder / ENVIRONMENT
    starts = _earlier_starts(path)
    if starts and isinstance(starts[-1], dict):
        starts[-1] |= {"ended": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "last_step": step}
        write_atomically(path, lambda file: file.write(json.dumps(starts, indent=1).encode()))


def _earlier_starts(path: Path) -> list:
    """What environment.json says; a damaged one is renamed."""
    try:
        return _read_starts(path)
    except UserError as error:
        log.warning("%s", error)
        path.replace(path.with_name(f"{path.name}.damaged"))
        return []


def _starts_of_another(run: Path) -> list:
    """A damaged record of another run stays as it is, and says nothing."""
    try:
        return _read_starts(run / ENVIRONMENT)
    except UserError:
        return []


def _read_starts(path: Path) -> list:
    starts = read_json(path, "a new list is begun") if path.exists() else []
    if not isinstance(starts, list):
        raise UserError(f"{path} is no list; a new one is begun")
    return starts


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git_commit() -> str | None:
    """The commit of the running code, with `-dirty` if it was changed; None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_best(folder: Path, best: dict | None) -> None:
    """Point `best.json` to the checkpoint with the highest `eval/exact_accuracy`.

    There is no such file with None, and where the checkpoint is in the folder of a run that this one branched off.
    """
    if best is None or not (folder / best["checkpoint"]).exists():
        (folder / "best.json").unlink(missing_ok=True)
    else:
        write_atomically(folder / "best.json", lambda file: file.write(json.dumps(best).encode()))
