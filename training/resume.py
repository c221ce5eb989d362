"""The training state: everything that a run needs to go on as if it had never stopped.

    <run>/state_<n>/manifest.json    `Manifest`: step, position in the data, what must not change, digests of the files
    <run>/state_<n>/model.pt         state dict of the model
    <run>/state_<n>/optimizers.pt    list of the optimisers' state dicts
    <run>/state_<n>/ema.pt           the averaged parameters, with ema_decay
    <run>/state_<n>/rank_<r>.pt      a rank's carry and random generators

A state is written under another name and renamed when every file is on disk; a folder with any other name is no state.
Before one is resumed, all of it is compared with its digests; a damaged one is passed over for the newest whole one.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataset.format import content_digest, description_digest, same_content
from errors import UserError, describe_validation_error, first_line, is_out_of_memory
from files import Written, durably, file_digest, put_in_place, read_json, temporary_folder
from models.adam_atan2 import load_optimizer, portable_state
from training.checkpoints import load_tensors
from training.config import RETIRED_ARCH_KEYS, RETIRED_ARCH_VALUES, PretrainConfig, load_config
from training.distributed import Ranks
from training.generators import generator_states, set_generator_states
from training.metrics import METRICS_FILE
from training.run_folder import CONFIG_FILE
from training.step import TrainState
from training.stopping import WINDOW

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE_NAME = re.compile(r"state_(\d+)(\.old)?")  # `.old` while another takes its place
# Of what evaluations, searches and figures leave, see training/run_folder.py
MADE_WITH_IT = r"(_preds|_all_preds\.\d+|_search|_(steps|participation|scaling|reliability)\.(png|json))"
CHECKPOINT_OR_ITS_WORK = re.compile(rf"step_(\d+)(_ema)?{MADE_WITH_IT}?")

# If one of these changes, the position in the data or the weights mean nothing any more.
FIXED_KEYS = (
    "arch", "data", "content", "global_batch_size", "eval_interval", "seed", "ema_decay", "freeze", "optimizer",
)  # fmt: skip
NEW_KERNELS = ("arch.mixing",)  # choices that states of earlier versions do not hold


def fixed_values(config: PretrainConfig) -> dict:
    """What must not change on resuming: flat keys -> values.

    `data` is a digest of the training split's description, `content.<split>` the identity of what a split holds, and
    `eval_interval` how many epochs a pass has: with null, all.
    """
    data = Path(config.data_path)
    splits = {"train", *(split for split in (config.eval_split, "test") if (data / split).exists())}
    contents = {split: content_digest(data / split) for split in sorted(splits)}
    values = config.model_dump() | {
        "data": description_digest(data / "train"),
        "content": contents,
        "eval_interval": config.epochs_per_pass,
    }
    flat = {}
    for key in FIXED_KEYS:
        value = values[key]
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Best(_Checked):
    metric: str
    value: float
    step: int = Field(ge=0)
    checkpoint: str


class Progress(_Checked):
    """The plain values of a `TrainState`. Those that an earlier version did not save have a default there."""

    step: int = Field(ge=0)
    passes: int = Field(ge=0)
    batches: int = Field(ge=0)
    evaluated: int | None = Field(default=None, ge=0)
    best: Best | None = None
    wandb_id: str | None = None
    evaluated_on: str | None = None
    ended_early: bool = False
    since_best: int = Field(default=0, ge=0)
    recent: list[Pair] = Field(default=[], max_length=WINDOW)
    held: list[Pair] = []

    @model_validator(mode="after")
    def _nothing_is_later_than_the_step(self):
        if max(self.batches, self.evaluated or 0, self.best.step if self.best else 0) > self.step:
            raise ValueError(f"its batches, evaluation or best lie behind step {self.step}")
        return self


class FileRecord(_Checked):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(_Checked):
    """`manifest.json`. States of earlier versions list their files without digests, and have none of the metrics."""

    progress: Progress
    world_size: int = Field(ge=1, le=1 << 20)
    metrics_bytes: int = Field(ge=0)  # of metrics.jsonl, when the state was saved
    metrics_sha256: str | None = None  # of these bytes
    fixed: dict[str, Any]
    files: dict[str, FileRecord] | list[str]

    @model_validator(mode="after")
    def _lists_the_files_of_a_state(self):
        missing = {"model.pt", "optimizers.pt", *(f"rank_{rank}.pt" for rank in range(self.world_size))} - {*self.files}
        if missing:
            raise ValueError(f"it lists no {min(missing)}")
        if any(Path(name).name != name for name in self.files):
            raise ValueError("it lists files outside its folder")
        return self


def _digest(manifest: dict) -> str:
    """Of all that a manifest says but this."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


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


def save_state(state: TrainState, config: PretrainConfig, ranks: Ranks, metrics: Written, fixed: dict) -> Path:
    """Write `state_<step>`, all ranks together, and remove the oldest states beyond `keep_last`.

    `metrics` says what metrics.jsonl holds; `fixed` is `fixed_values`, as of the start. Raises `UserError` if the state
    cannot be written; complete states are then left untouched.
    """
    if not all(torch.isfinite(p).all() for p in state.head.parameters()):
        raise UserError(f"the weights are not finite after step {state.step}; earlier states are untouched; lower lr")
    run = Path(config.checkpoint_path)
    place = run / f"state_{state.step}"
    try:
        with temporary_folder(place) if ranks.is_main else nullcontext() as folder:
            folder = ranks.broadcast_object(folder)
            mine = {f"rank_{ranks.rank}.pt": rank_state(state)} | (shared_state(state) if ranks.is_main else {})
            files = ranks.gather_objects({name: _save(value, folder / name) for name, value in mine.items()})
            if ranks.is_main:
                manifest = {
                    "progress": state.progress(),
                    "world_size": ranks.world_size,
                    "metrics_bytes": metrics.size,
                    "metrics_sha256": metrics.sha256,
                    "fixed": fixed,
                    "files": {name: record for of_rank in files for name, record in of_rank.items()},
                }
                with durably(folder / MANIFEST) as file:
                    file.write(json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1).encode())
                # A state of the same step, saved before its evaluation, is moved aside: at every moment there is one.
                put_in_place(folder, place, aside=place.with_name(f"{place.name}.old"))
                for old in saved_states(run)[config.keep_last :]:
                    old.unlink() if old.is_symlink() else shutil.rmtree(old)
        ranks.barrier()
    except (OSError, RuntimeError) as error:
        # Of a rank that failed, others find the connection closed, or the folder removed by rank 0.
        by_another = isinstance(error, RuntimeError) or (isinstance(error, FileNotFoundError) and not ranks.is_main)
        reason = "another rank failed, and says why" if by_another else error
        raise UserError(f"cannot save the training state in {run}: {reason}; earlier states are untouched") from error
    return place


def _save(value: dict | list, path: Path) -> dict:
    with durably(path) as file:
        torch.save(value, file)
    return {"bytes": file.written.size, "sha256": file.written.sha256}


def shared_state(state: TrainState) -> dict[str, dict | list]:
    """The part of the state that is the same on all ranks, by file."""
    files = {
        "model.pt": state.head.state_dict(),
        "optimizers.pt": [portable_state(optimizer) for optimizer in state.optimizers],
    }
    return files if state.ema is None else files | {"ema.pt": state.ema.state_dict()}


def rank_state(state: TrainState) -> dict:
    """A rank's own part, as tensors in plain containers."""
    return {"carry": None if state.carry is None else asdict(state.carry), "generators": generator_states()}


def saved_states(run: Path) -> list[Path]:
    """The folders of a run's states, newest first, unchecked."""
    found = [path for path in run.glob("state_*") if STATE_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_number(path), not path.suffix), reverse=True)


def _number(state: Path) -> int:
    return int(STATE_NAME.fullmatch(state.name)[1])


def read_state(path: Path) -> Manifest:
    """The manifest of a state whose files are those that were saved. Raises `UserError` naming what is not."""
    raw = read_json(path / MANIFEST, "the state is not whole")
    try:
        manifest = Manifest(**raw)
    except ValidationError as error:
        raise UserError(f"{path / MANIFEST} is damaged ({describe_validation_error(error, str)})") from None
    except TypeError:
        raise UserError(f"{path / MANIFEST} is damaged: it is no object") from None
    if raw.get("sha256", _digest(raw)) != _digest(raw) or ("sha256" in raw) != isinstance(manifest.files, dict):
        raise UserError(f"{path / MANIFEST} is damaged: its digest differs")
    if STATE_NAME.fullmatch(path.name) and _number(path) != manifest.progress.step:
        raise UserError(f"{path / MANIFEST} is of step {manifest.progress.step}")
    for name in manifest.files:
        if not (path / name).is_file():
            raise UserError(f"{path} is not complete: {name} is missing")
        record = manifest.files[name] if isinstance(manifest.files, dict) else None
        if record is not None and file_digest(path / name) != (record.bytes, record.sha256):
            raise UserError(f"{path / name} is damaged: its digest differs from the manifest's")
    return manifest


def check_metrics(run: Path, manifest: Manifest, needed: bool) -> None:
    """Whether metrics.jsonl begins with the lines that the run had written when the state was saved.

    If not, this is a `UserError` or, where they are not `needed`, a warning, and none of them is kept.
    """
    path, size = run / METRICS_FILE, manifest.metrics_bytes
    if not path.is_file():
        same = False
    elif manifest.metrics_sha256 is not None:
        same = file_digest(path, first=size) == (size, manifest.metrics_sha256)
    else:  # of an earlier version; its last line is of the state's step
        start = path.read_bytes()[:size]
        same = len(start) == size and start.endswith(b"\n") and _step(start) == manifest.progress.step
    if same:
        return
    problem = f"{path} has not the lines that it had at step {manifest.progress.step}"
    if needed:
        raise UserError(f"{problem}; restore it, or go on without it elsewhere: resume=<state> checkpoint_path=<new>")
    log.warning("%s; the new run begins without them", problem)
    manifest.metrics_bytes, manifest.metrics_sha256 = 0, None


def _step(lines: bytes) -> int | None:
    """The step of the last line."""
    try:
        return json.loads(lines.splitlines()[-1])["step"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None


class Found(NamedTuple):
    """The state to go on from, and states that are later or not whole and must not be taken for newer ones."""

    path: Path
    manifest: Manifest
    passed_over: list[Path]


def find_state(config: PretrainConfig) -> Found | None:
    """The newest whole state that `resume` asks for; None for a fresh start.

    A run goes on in its folder only with the metrics that its state knows; a branch without them begins a new list.
    Raises `UserError` if a state is asked for and none is whole.
    """
    if config.resume is False:
        return None
    run = Path(config.checkpoint_path)
    asked = Path(os.path.abspath(run if config.resume is True else config.resume))
    candidates = [asked] if (asked / MANIFEST).exists() else saved_states(asked)
    passed_over: list[Path] = []
    problem = None
    for path in candidates:
        in_place = path.parent.resolve() == run.resolve()  # the state itself may be a link to another disk
        try:
            manifest = read_state(path)
            check_metrics(path.parent, manifest, needed=in_place)
        except UserError as error:
            log.warning("%s; passing over this state", error)
            problem = problem or error  # that of the newest
            passed_over.append(path)
            continue
        not_whole = {passed.resolve() for passed in passed_over}  # links that lead nowhere among them
        others = [state for state in saved_states(run) if state.resolve() != path.resolve()]
        wrong = [state for state in others if _number(state) > manifest.progress.step or state.resolve() in not_whole]
        return Found(path, manifest, wrong if in_place else [])
    if config.resume is True and not candidates:
        return None
    raise UserError(
        f"resume={asked}: {problem or 'it holds no training state; name a run folder or a state_<n> in it'}"
    )


def later_checkpoints(run: Path, step: int) -> list[Path]:
    """Checkpoints of steps that the run has not made yet, since it goes on from an earlier state, and what was made
    with them: it would be taken for the work of the checkpoints that will come in their place."""
    matches = ((CHECKPOINT_OR_ITS_WORK.fullmatch(path.name), path) for path in sorted(run.glob("step_*")))
    return [path for match, path in matches if match and int(match[1]) > step]


def made_with(run: Path, checkpoint: str) -> list[Path]:
    """The predictions of a checkpoint, searches with it and figures of it."""
    work = re.compile(re.escape(checkpoint) + MADE_WITH_IT)
    return [path for path in sorted(run.glob("step_*")) if work.fullmatch(path.name)]


def set_aside(paths: list[Path]) -> None:
    """Rename what the run does not go on from, so that it is not taken for its newest."""
    for path in paths:
        names = (f"{path.name}.aside{number or ''}" for number in itertools.count())
        aside = next(place for name in names if not (place := path.with_name(name)).exists())
        path.rename(aside)
        log.info("%s is now called %s", path, aside.name)


def check_same_run(path: Path, manifest: Manifest, fixed: dict, config: PretrainConfig) -> None:
    """Raise `UserError` unless the run may go on with this config, whose `fixed_values` are given."""
    # A hyper-parameter that is new since then counts as its default; one that no longer exists did nothing.
    defaults = {f"arch.{key}": field.default for key, field in type(config.arch).model_fields.items()}
    # Where a kernel is new there is a choice: the default, or PyTorch's, which the run had.
    defaults |= {key: fixed[key] for key in NEW_KERNELS if key in fixed}
    then = {"optimizer": PretrainConfig.model_fields["optimizer"].default} | defaults | manifest.fixed
    then = {key: value for key, value in then.items() if key.removeprefix("arch.") not in RETIRED_ARCH_KEYS}
    if then.get("eval_interval") is None:  # of an earlier version: a pass had all epochs, whose number it does not say
        then["eval_interval"] = _epochs_of_last_start(path.parent, config)
    for key, value in RETIRED_ARCH_VALUES:
        if then.get(f"arch.{key}") == value:
            raise UserError(
                f"{path} was trained with arch.{key}={value}, which no longer exists: it cannot be gone on with; "
                f"start a new run from its weights: load_checkpoint=<its run>/step_<n>"
            )
    by_default = {"eval_interval": ": null means all epochs"} if config.eval_interval is None else {}
    differing = [
        f"{key} (was {then.get(key)}, is {fixed.get(key)}{by_default.get(key, '')})"
        for key in sorted(fixed.keys() | then.keys())
        if fixed.get(key) != then.get(key) and not key.startswith("content.")
    ]
    for key in sorted(key for key in fixed.keys() & then.keys() if key.startswith("content.")):
        if not same_content(str(then[key]), fixed[key]):
            split = Path(config.data_path) / key.removeprefix("content.")
            differing.append(f"dataset ({split} holds other puzzles than it did: it was rebuilt or changed)")
    if differing:
        raise UserError(
            f"{path} cannot be resumed with another {', '.join(differing)}; "
            f"restore these, or start a new run with load_checkpoint"
        )


def check_not_past_the_end(path: Path, manifest: Manifest, config: PretrainConfig) -> None:
    """Raise `UserError` if the run has begun epochs that this config does not have: it would never be over."""
    done = manifest.progress
    begun = config.epochs_per_pass * (done.passes + (done.batches > 0))  # epochs
    if begun > config.epochs:
        raise UserError(
            f"{path} is of epoch {begun}, which is behind epochs={config.epochs}; give epochs={begun} or more, or "
            f"go on from an earlier state"
        )


def _epochs_of_last_start(run: Path, config: PretrainConfig) -> int:
    """The epochs of the run that saved a state; where its config cannot be read, those of the run that goes on."""
    try:
        return load_config(str(run / CONFIG_FILE)).epochs
    except UserError as error:
        log.warning("%s; taking the epochs for unchanged", error)
        return config.epochs


def load_state(
    path: Path, manifest: Manifest, state: TrainState, run: Path, ranks: Ranks, device: torch.device
) -> None:
    """Bring a freshly created state to where the saved one was; the run goes on in the folder `run`."""
    try:
        _load_state(path, manifest, state, run, ranks, device)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} does not hold what its manifest says ({first_line(error)}); resume from an older state"
        ) from error


def _load_state(
    path: Path, manifest: Manifest, state: TrainState, run: Path, ranks: Ranks, device: torch.device
) -> None:
    remedy = "remove its folder to resume from an older state"
    state.head.load_state_dict(load_tensors(path / "model.pt", remedy))
    for optimizer, saved in zip(state.optimizers, load_tensors(path / "optimizers.pt", remedy), strict=True):
        load_optimizer(optimizer, saved)
    if state.ema is not None:
        state.ema.load_state_dict(load_tensors(path / "ema.pt", remedy))
    state.load_progress(manifest.progress.model_dump())
    if path.parent.resolve() != run.resolve():
        state.wandb_id = None  # another run, which branches off
    if manifest.world_size != ranks.world_size:
        log.warning(
            "%s was saved by %d ranks, now there are %d: every sequence starts afresh",
            path, manifest.world_size, ranks.world_size,
        )  # fmt: skip
        return
    saved = load_tensors(path / f"rank_{ranks.rank}.pt", remedy)
    if saved["carry"] is not None:
        data = {name: field.to(device) for name, field in saved["carry"]["current_data"].items()}
        state.carry = state.head.initial_carry(data)
        state.carry.load(saved["carry"])
    set_generator_states(saved["generators"], device)
