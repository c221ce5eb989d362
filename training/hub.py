"""Move a run to and from the Hugging Face Hub.

    python -m training.hub push <run> <user/name> [checkpoint=step_<n>] [private=true]
    python -m training.hub pull <user/name> [<run>] [revision=<branch, tag or commit>] [subfolder=<folder>]

A repository holds one checkpoint:

model.safetensors            its tensors, bit for bit; metadata: `checkpoint`, the file's name in the run, `step`, and
                             `data`, the identity of what it was trained on (checkpoints.json)
README.md                    a model card
all_config.yaml, metrics.jsonl, the model's source    as in the run folder, see training/run_folder.py
environment.json             of the run folder, without the commands, in which there may be secrets

Nothing else is uploaded or brought, training states and predictions neither. Pull also takes repositories in the
original's format: a pickled `checkpoint` or `step_<n>` beside `all_config.yaml`. Nothing that comes with a download is
ever executed. Pushing needs a login with write permission (`hf auth login`, or HF_TOKEN).
"""

import fnmatch
import glob
import hashlib
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import (
    GatedRepoError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.logging import set_verbosity_error
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from errors import UserError, first_line, one_line_errors
from files import check_is_file, read_json, temporary_folder, write_atomically
from training.checkpoints import read_weights, save_weights, trained_on
from training.config import PretrainConfig, load_config
from training.curves import check_history, number, read_lines
from training.options import StrictModel, from_cli
from training.run_folder import model_sources

Weights = dict[str, torch.Tensor]

ORIGINAL_CHECKPOINT = "checkpoint"  # as the original's repositories call it
RECORDS = ("all_config.yaml", "metrics.jsonl", "environment.json")
DOWNLOADED = ("model.safetensors", "README.md", *RECORDS, "*.py", ORIGINAL_CHECKPOINT, "step_*")
AT_HOME = (
    "step_*", "state_*", "best.json", "checkpoints.json", "learning_curves.png", "report.html", "comparison.*",
    "README.md", "wandb", ".*",
)  # fmt: skip
ENVIRONMENT = ("git_commit", "python", "packages", "device", "ranks")  # what environment.json says in public
PREDICTIONS = ("*_all_preds.*", "*_preds/*")
CARD_METRICS = ("eval/exact_accuracy", "test/exact_accuracy")

LOG_IN = "log in (hf auth login, or HF_TOKEN); a push needs write permission"
REMEDIES = {  # the first that fits counts, so subclasses come before their base classes
    GatedRepoError: f"ask for access on its page, and {LOG_IN}",
    RepositoryNotFoundError: f"check the name, and if it is private, {LOG_IN}",
    RevisionNotFoundError: "choose an existing branch, tag or commit",
    HFValidationError: "a repository is named user/name",
    LocalTokenNotFoundError: LOG_IN,
}


def push(run: Path, repo: str, checkpoint: str | None = None, private: bool = False) -> str:
    """Upload a checkpoint (default: the newest) and what describes it, as one commit; -> the repository's full name.

    Everything in the run is read and checked before the repository is made.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; name a run folder (checkpoint_path of pretrain.py)")
    config = load_config(str(run / "all_config.yaml"))
    path = choose_checkpoint(run, checkpoint)
    weights = read_weights(path)  # it is moved, not asked for an answer
    check_history(run, "restore it, or move the states away to push it as it is")
    public_environment(run)
    metrics = metrics_at(run, step_of(path.name))
    api = HfApi()
    with hub_errors("push to", repo):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id  # with the user's name before it
        public = private and not api.repo_info(repo).private
    if public:
        raise UserError(f"{repo} exists and is public, private=true cannot change that; do so on its page, or rename")
    with tempfile.TemporaryDirectory(prefix="hub-") as temporary:
        folder = Path(temporary)
        try:
            write_safetensors(weights, folder / "model.safetensors", path.name, trained_on(path))
            copy_records(run, folder, config)
            (folder / "README.md").write_text(model_card(repo, path.name, config, metrics), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot prepare the upload in {folder}: {error}; free space, or set TMPDIR") from None
        with hub_errors("push to", repo):
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"{path.name} of {run.resolve().name}",
                delete_patterns="metrics.jsonl",  # of another run, if this one has none
            )
    if left_out := strangers(run, config):
        print(f"left out, since no run writes it: {', '.join(left_out)}")
    return repo


def pull(repo: str, run: Path, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Make a run folder from a repository, whole or not at all; -> its checkpoint, for evaluate.py or load_checkpoint.

    `subfolder` is the folder of the repository that holds the run. The download goes through the Hub's cache, so that
    an interrupted one goes on where it stopped.
    """
    inside = PurePosixPath(subfolder or ".")
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"subfolder={subfolder} leaves the repository; name a folder in it")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} exists already; name a new folder, or remove it")
    with hub_errors("pull", repo):
        patterns = [str(PurePosixPath(glob.escape(str(inside)), name)) for name in DOWNLOADED]
        snapshot = Path(
            snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=list(PREDICTIONS))
        )
    try:
        snapshot = snapshot / inside
        if not snapshot.is_dir():
            raise UserError(f"it has no folder {subfolder}")
        config = load_config(str(snapshot / "all_config.yaml"))
        name, weights, data = read_snapshot(snapshot)
    except UserError as error:
        raise UserError(f"{repo} is not a run: {error}") from None
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(run) as folder:
            if data is not None:
                save_weights(folder / name, weights, data)
            else:  # of an earlier version or the original, which say nothing to check it by
                write_atomically(folder / name, lambda file: torch.save(weights, file))
            copy_records(snapshot, folder, config)
            if (snapshot / "README.md").is_file():
                shutil.copyfile(snapshot / "README.md", folder / "README.md")
            folder.rename(run)
    except OSError as error:
        raise UserError(f"cannot write {run}: {error.strerror or error}; nothing was kept") from None
    return run / name


def choose_checkpoint(folder: Path, name: str | None) -> Path:
    """The checkpoint with this file name, the one in best.json for `best`, or by default the newest step_<n>."""
    if name == "best" and (folder / "best.json").exists():
        try:
            name = str(read_json(folder / "best.json", "name another", limit=1 << 20)["checkpoint"])
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"{folder}/best.json is damaged ({error}); name a step_<n> file") from None
    there = sorted((path for path in folder.iterdir() if is_checkpoint(path.name) and path.is_file()), key=by_step)
    chosen = [path for path in there if (path.name == name if name else re.fullmatch(r"step_\d+", path.name))]
    if not chosen:
        has = f"; it has {', '.join(path.name for path in there)}" if there else ""
        raise UserError(f"{folder} holds no checkpoint {name or 'step_<n>'}{has}")
    return chosen[-1]


def by_step(path: Path) -> int:
    step = step_of(path.name)
    return -1 if step is None else step


def is_checkpoint(name: str) -> bool:
    return name == ORIGINAL_CHECKPOINT or step_of(name) is not None


def step_of(name: str) -> int | None:
    """The step in a checkpoint's file name (step_60, step_60_ema), None for any other file."""
    match = re.fullmatch(r"step_(\d+)(_ema)?", name)
    return int(match[1]) if match else None


def write_safetensors(weights: Weights, path: Path, checkpoint: str, data: str | None) -> None:
    # safetensors takes neither views of a shared storage nor tensors that are not row-major.
    separate = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    step = step_of(checkpoint)
    about = {"format": "pt", "checkpoint": checkpoint, "step": step, "data": data, "sha256": tensors_digest(weights)}
    save_file(separate, path, metadata={key: str(value) for key, value in about.items() if value is not None})


def read_safetensors(path: Path) -> tuple[str, Weights, str | None]:
    """-> (the checkpoint's file name, its tensors, the identity of what it was trained on)"""
    check_is_file(path, "pull again")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # the last of PyTorch's mapping
        raise UserError(f"{path} is damaged: {first_line(error)}; pull again") from None
    name = about.get("checkpoint", ORIGINAL_CHECKPOINT)
    # The name becomes a file name here, so the repository may not choose it freely.
    if not is_checkpoint(name):
        raise UserError(f"{path} names its checkpoint {name!r}; it must be step_<n> or {ORIGINAL_CHECKPOINT}")
    if not weights:
        raise UserError(f"{path} holds no tensors")
    if about.get("sha256", sent := tensors_digest(weights)) != sent:
        raise UserError(f"{path} does not hold the tensors that were pushed: it is damaged; pull again")
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


def read_snapshot(folder: Path) -> tuple[str, Weights, str | None]:
    """The same of a download in this format or the original's."""
    if (folder / "model.safetensors").exists():
        return read_safetensors(folder / "model.safetensors")
    has_original = (folder / ORIGINAL_CHECKPOINT).is_file()
    path = choose_checkpoint(folder, ORIGINAL_CHECKPOINT if has_original else None)
    return path.name, read_weights(path), None


def copy_records(source: Path, target: Path, config: PretrainConfig) -> None:
    """Copy what a run folder is known to hold beside its checkpoints, and nothing else that may lie there."""
    for name in ("all_config.yaml", "metrics.jsonl", *source_names(config)):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    environment = public_environment(source)
    if environment is not None:
        (target / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")


def source_names(config: PretrainConfig) -> list[str]:
    return list(model_sources(config.arch))


def strangers(run: Path, config: PretrainConfig) -> list[str]:
    """The names in a run folder that no run, evaluation or figure has written."""
    known = (*RECORDS, *source_names(config), *AT_HOME)
    names = sorted(path.name for path in run.iterdir())
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known)]


def public_environment(folder: Path) -> list[dict] | None:
    """What environment.json says of each start but the command, in which a token may have been given; None without."""
    path = folder / "environment.json"
    if not path.is_file():
        return None
    starts = read_json(path, "remove it", limit=1 << 26)
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise UserError(f"{path} is damaged: it must be a list of starts; remove it")
    return [{key: start[key] for key in ENVIRONMENT if key in start} for start in starts]


def metrics_at(run: Path, step: int | None) -> dict[str, float]:
    """The metrics for the checkpoint's model card, as far as the run measured them."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return {}
    found = {}
    for line in read_lines(path):
        if line["step"] == step:
            found |= {key: number(line[key]) for key in CARD_METRICS if key in line}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def model_card(repo: str, checkpoint: str, config: PretrainConfig, metrics: dict[str, float]) -> str:
    dataset = re.sub(r"[^\w.+ -]", "_", Path(config.data_path).name)  # whatever it is, it stays in its cell and line
    run = default_run(repo)
    about, *_ = (sys.modules[config.arch.model_class.__module__].__doc__ or config.arch.name).strip().splitlines()
    rows = [
        ("checkpoint", f"`{checkpoint}`"),
        ("dataset folder", f"`{dataset}`"),
        *((f"`{key}`", f"{value:.4f}") for key, value in metrics.items()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: pytorch
tags:
- hierarchical-reasoning-model
---

# {repo.split("/")[-1]}

{about}
It is a small recurrent network that solves puzzles by updating its state until it decides to halt.

| | |
| --- | --- |
{table}

`model.safetensors` holds the weights, `all_config.yaml` the architecture and how it was trained, `metrics.jsonl` the
learning curves where they were recorded, the `.py` files the source of the model.

To use it, in a checkout of the code that it was trained with and with the dataset built there:

```bash
python -m training.hub pull {shlex.quote(repo)} {shlex.quote(run)}
python evaluate.py checkpoint={shlex.quote(f"{run}/{checkpoint}")} data_path={shlex.quote(f"data/{dataset}")}
```
"""


@contextmanager
def hub_errors(action: str, repo: str) -> Iterator[None]:
    """Turn whatever a call of the Hub's client raises into one line with a remedy."""
    try:
        yield
    except Exception as error:  # its own errors, and those of the HTTP client under it, which differ between versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        other = LOG_IN if status in (401, 403) else "check the network, HF_HUB_OFFLINE and the free disk space"
        remedy = next((text for kind, text in REMEDIES.items() if isinstance(error, kind)), other)
        raise UserError(f"cannot {action} {repo} ({type(error).__name__}: {first_line(error)}); {remedy}") from error


def default_run(repo: str, subfolder: str | None = None) -> str:
    return str(Path("checkpoints", repo.split("/")[-1], subfolder or ""))


class PushConfig(StrictModel):
    run: str = Field(min_length=1, description="run folder")
    repo: str = Field(description="user/name; made where it does not exist")
    checkpoint: str | None = Field(default=None, description="its file name, or best; null: the newest step_<n>")
    private: bool = Field(default=False, description="make the repository private")


class PullConfig(StrictModel):
    repo: str = Field(description="user/name")
    run: str | None = Field(
        default=None, min_length=1, description="run folder to make; null: checkpoints/<name>[/<subfolder>]"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit; null: the newest of main")
    subfolder: str | None = Field(default=None, description="the run's folder in the repository; null: all of it")


COMMANDS = {"push": (PushConfig, ("run", "repo")), "pull": (PullConfig, ("repo", "run"))}


def main(args: list[str] | None = None) -> None:
    name, *rest = (sys.argv[1:] if args is None else args) or [""]
    set_verbosity_error()  # otherwise each retry of the Hub's client would print a line
    with one_line_errors():
        if name not in COMMANDS:
            print(__doc__)
            raise SystemExit(0 if name in ("-h", "--help") else 2)
        model, positional = COMMANDS[name]
        about = f"python -m training.hub {name} {' '.join(f'<{key}>' for key in positional)} [key=value …]"
        given = from_cli(model, rest, about, positional)
        if name == "push":
            repo = push(Path(given.run), given.repo, given.checkpoint, given.private)
            print(f"pushed to {repo}; fetch it with: python -m training.hub pull {repo} <run>")
        else:
            run = given.run or default_run(given.repo, given.subfolder)
            checkpoint = pull(given.repo, Path(run), given.revision, given.subfolder)
            print(f"evaluate with: python evaluate.py {shlex.quote(f'checkpoint={checkpoint}')} data_path=<dataset>")


if __name__ == "__main__":
    main()
