"""Move a run to and from the Hugging Face Hub, or pack it into a folder of its own.

    python -m training.hub push <run> <user/name> [checkpoint=step_<n>] [private=true]
    python -m training.hub pull <user/name> [<run>] [revision=<branch, tag or commit>] [subfolder=<folder>]
    python -m training.hub pack <run> <folder> [checkpoint=step_<n>] [dtype=bfloat16]

A repository holds one checkpoint:

model.safetensors            its tensors, bit for bit; metadata: `checkpoint`, the file's name in the run, `step`, and
                             `data`, the identity of what it was trained on (checkpoints.json)
README.md                    a model card
dataset.json                 of the training split, if it is at hand: what kind of puzzle the model solves
all_config.yaml, metrics.jsonl, the model's source    as in the run folder, see training/run_folder.py
environment.json             of the run folder, without the commands, in which there may be secrets

A packed folder, such as those in pretrained/, is the same but for what makes it small enough for a repository of code:
it has no source and no environment.json, and of the metrics the evaluations alone. `dtype` rounds the weights. Its
README says with which command the run was started. Every command takes such a folder as a checkpoint.

Nothing else is uploaded or brought, training states and predictions neither. Pull also takes repositories in the
original's format: a pickled `checkpoint` or `step_<n>` beside `all_config.yaml`. Nothing that comes with a download is
ever executed. Pushing needs a login with write permission (`hf auth login`, or HF_TOKEN).
"""

import fnmatch
import glob
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
from typing import Literal

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
from safetensors import SafetensorError

from errors import UserError, first_line, one_line_errors, warn
from files import read_json, temporary_folder, write_atomically
from training.checkpoints import (
    ORIGINAL_CHECKPOINT,
    SAFETENSORS,
    SHARED,
    Weights,
    best_checkpoint,
    checkpoints_in,
    find_checkpoint,
    read_safetensors,
    read_weights,
    save_weights,
    step_of,
    trained_on,
    write_safetensors,
)
from training.config import PretrainConfig, load_config
from training.curves import check_history, number, read_lines
from training.options import StrictModel, from_cli
from training.run_folder import model_sources

DATASET = "dataset.json"
RECORDS = ("all_config.yaml", "metrics.jsonl", "environment.json", DATASET)
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
    """Upload a checkpoint (default: the best, else the last) and what describes it, as one commit; -> the repository's
    full name.

    Everything in the run is read and checked before the repository is made.
    """
    config, name, weights, data = open_run(run, checkpoint)
    metrics = metrics_at(run, step_of(name))
    api = HfApi()
    with hub_errors("push to", repo):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id  # with the user's name before it
        public = private and not api.repo_info(repo).private
    if public:
        raise UserError(f"{repo} exists and is public, private=true cannot change that; do so on its page, or rename")
    with tempfile.TemporaryDirectory(prefix="hub-") as temporary:
        folder = Path(temporary)
        try:
            write_safetensors(weights, folder / SHARED, name, data)
            copy_records(run, folder, config)
            copy_description(run, folder, config)
            (folder / "README.md").write_text(model_card(repo, name, config, metrics), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot prepare the upload in {folder}: {error}; free space, or set TMPDIR") from None
        with hub_errors("push to", repo):
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"{name} of {run.resolve().name}",
                delete_patterns=of_another_run(api.list_repo_files(repo)),  # but for those that are uploaded anew
            )
    if left_out := strangers(run, config):
        print(f"left out, since no run writes it: {', '.join(left_out)}")
    return repo


def of_another_run(names: list[str]) -> list[str]:
    """Patterns for the files of a repository that a push made, but perhaps not the next push: records and sources.

    What lies in a folder there is none of them; `*.py` alone would be the sources of a run in a folder, too.
    """
    return [glob.escape(name) for name in names if name in RECORDS or ("/" not in name and name.endswith(".py"))]


def open_run(run: Path, checkpoint: str | None) -> tuple[PretrainConfig, str, Weights, str | None]:
    """Read a run that is to be moved, and check it; -> its config, and name, tensors and data of a checkpoint."""
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; name a run folder (checkpoint_path of pretrain.py)")
    config = load_config(str(run / "all_config.yaml"))
    found = read_checkpoint(choose_checkpoint(run, checkpoint))
    check_history(run, "restore it, or move the states away to take it as it is")
    public_environment(run)
    return config, *found


def pack(run: Path, folder: Path, checkpoint: str | None = None, dtype: str | None = None) -> Path:
    """Make `folder`, which holds a checkpoint (default: the best, else the last) and what describes it; -> the file.

    `dtype` is that of its floats, by default as they are. The folder is made whole or not at all.
    """
    config, name, weights, data = open_run(run, checkpoint)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name a new folder, or remove it")
    if dtype is not None:
        to = getattr(torch, dtype)
        weights = {key: value.to(to) if value.is_floating_point() else value for key, value in weights.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as made:
            write_safetensors(weights, made / SHARED, name, data)
            shutil.copyfile(run / "all_config.yaml", made / "all_config.yaml")
            described = copy_description(run, made, config)
            (made / "metrics.jsonl").write_text("".join(evaluations(run)), encoding="utf-8")
            card = packed_card(folder, name, config, metrics_at(run, step_of(name)), first_command(run), described)
            (made / "README.md").write_text(card, encoding="utf-8")
            shutil.copymode(made / "README.md", made / SHARED)  # safetensors lets nobody else read its file
            made.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}; nothing was kept") from None
    return folder / SHARED


def evaluations(run: Path) -> list[str]:
    """The lines of metrics.jsonl that hold what was measured on a split held out, as JSON."""
    path = run / "metrics.jsonl"
    lines = read_lines(path) if path.exists() else []
    kept = [{key: value for key, value in line.items() if not key.startswith("train/")} for line in lines]
    return [json.dumps(line) + "\n" for line in kept if len(line) > 1]


def first_command(run: Path) -> str | None:
    """What the run was started with, as one types it, if environment.json says so."""
    path = run / "environment.json"
    starts = read_json(path, "remove it", limit=1 << 26) if path.is_file() else []
    command = starts[0].get("command") if starts else None
    words = [str(word) for word in command] if isinstance(command, list) else []
    return " ".join(["python", Path(words[1]).name, *map(shlex.quote, words[2:])]) if len(words) > 1 else None


def pull(repo: str, run: Path, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Make a run folder from a repository, whole or not at all; -> its checkpoint, for evaluate.py or load_checkpoint.

    `subfolder` is the folder of the repository that holds the run. The download goes through the Hub's cache, so that
    an interrupted one goes on where it stopped.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} exists already; name a new folder, or remove it")
    snapshot = download(repo, revision, subfolder)
    try:
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
            for beside in ("README.md", DATASET):
                if (snapshot / beside).is_file():
                    shutil.copyfile(snapshot / beside, folder / beside)
            folder.rename(run)
    except OSError as error:
        raise UserError(f"cannot write {run}: {error.strerror or error}; nothing was kept") from None
    return run / name


def download(repo: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Bring a repository into the cache of the Hub's client; -> the folder there, whose files must not be changed."""
    inside = PurePosixPath(subfolder or ".")
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"subfolder={subfolder} leaves the repository; name a folder in it")
    with hub_errors("pull", repo):
        patterns = [str(PurePosixPath(glob.escape(str(inside)), name)) for name in DOWNLOADED]
        snapshot = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=list(PREDICTIONS)
        )
    if not (Path(snapshot) / inside).is_dir():
        raise UserError(f"{repo} is not a run: it has no folder {subfolder}")
    return Path(snapshot) / inside


def choose_checkpoint(folder: Path, name: str | None) -> Path:
    """The checkpoint with this file name, the one in best.json for `best`, or by default what the folder stands for."""
    if name is None:
        return find_checkpoint(folder)
    if name == "best" and (folder / "best.json").exists():
        if (best := best_checkpoint(folder)) is None:
            raise UserError(f"no checkpoint of {folder} is best: no puzzle was right at any evaluation; name one")
        return best
    if is_checkpoint(name) and (folder / name).is_file():
        return folder / name
    there = ", ".join(path.name for path in checkpoints_in(folder))
    raise UserError(f"{folder} holds no checkpoint {name}" + (f"; it has {there}" if there else ""))


def is_checkpoint(name: str) -> bool:
    return name in (ORIGINAL_CHECKPOINT, SHARED) or step_of(name) is not None


def read_snapshot(folder: Path) -> tuple[str, Weights, str | None]:
    """-> name, tensors and data of the checkpoint in a download, in this format or the original's."""
    alone = [folder / name for name in (SHARED, ORIGINAL_CHECKPOINT) if (folder / name).is_file()]
    return read_checkpoint(alone[0] if alone else find_checkpoint(folder))


def read_checkpoint(path: Path) -> tuple[str, Weights, str | None]:
    """-> (its name in its run, its tensors, the identity of what it was trained on, if that is known)"""
    return read_safetensors(path) if path.suffix == SAFETENSORS else (path.name, read_weights(path), trained_on(path))


def copy_records(source: Path, target: Path, config: PretrainConfig) -> None:
    """Copy what a run folder is known to hold beside its checkpoints, and nothing else that may lie there."""
    for name in ("all_config.yaml", "metrics.jsonl", *source_names(config)):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    environment = public_environment(source)
    if environment is not None:
        (target / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")


def copy_description(source: Path, target: Path, config: PretrainConfig) -> bool:
    """Copy what the run's training split says of itself, from the run if it has that already, else from the dataset;
    -> whether it is there. Without it, which a warning says, no command can read grids of one's own."""
    places = (source / DATASET, Path(config.data_path) / "train" / DATASET)
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        warn(f"no dataset at {config.data_path}: {DATASET}, which says what the model was trained on, is left out")
        return False
    shutil.copyfile(place, target / DATASET)
    return True


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
    dataset, run = dataset_name(config), default_run(repo)
    return f"""---
library_name: pytorch
tags:
- hierarchical-reasoning-model
---

# {repo.split("/")[-1]}

{about_model(checkpoint, config, metrics)}
`model.safetensors` holds the weights, `all_config.yaml` the architecture and how it was trained, `metrics.jsonl` the
learning curves where they were recorded, the `.py` files the source of the model.

To use it, in a checkout of the code that it was trained with and with the dataset built there:

```bash
python -m training.hub pull {shlex.quote(repo)} {shlex.quote(run)}
python evaluate.py checkpoint={shlex.quote(f"{run}/{checkpoint}")} data_path={shlex.quote(f"data/{dataset}")}
```
"""


def packed_card(
    folder: Path,
    checkpoint: str,
    config: PretrainConfig,
    metrics: dict[str, float],
    command: str | None,
    described: bool,
) -> str:
    of_dataset = ", `dataset.json` what it\nwas trained on" if described else ""
    trained = f"\nIt was trained with\n\n```bash\n{command}\n```\n" if command else ""
    return f"""# {folder.name}

{about_model(checkpoint, config, metrics)}
`model.safetensors` holds the weights, `all_config.yaml` the architecture and how it was trained{of_dataset},
`metrics.jsonl` what was measured.
{trained}
To use it:

```bash
python solve.py checkpoint={shlex.quote(folder.as_posix())} puzzle=…
```
"""


def about_model(checkpoint: str, config: PretrainConfig, metrics: dict[str, float]) -> str:
    """What a card says of any model, and a table."""
    about, *_ = (sys.modules[config.arch.model_class.__module__].__doc__ or config.arch.name).strip().splitlines()
    rows = [
        ("checkpoint", f"`{checkpoint}`"),
        ("dataset folder", f"`{dataset_name(config)}`"),
        *((f"`{key}`", f"{value:.4f}") for key, value in metrics.items()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""{about}
It is a small recurrent network that solves puzzles by updating its state until it decides to halt.

| | |
| --- | --- |
{table}
"""


def dataset_name(config: PretrainConfig) -> str:
    """The name of its dataset's folder; whatever it is, it stays in its cell and line."""
    return re.sub(r"[^\w.+ -]", "_", Path(config.data_path).name)


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


WHICH = "its file name; best: the one in best.json; null: the best, else the last"


class PushConfig(StrictModel):
    run: str = Field(min_length=1, description="run folder")
    repo: str = Field(description="user/name; made where it does not exist")
    checkpoint: str | None = Field(default=None, description=WHICH)
    private: bool = Field(default=False, description="make the repository private")


class PullConfig(StrictModel):
    repo: str = Field(description="user/name")
    run: str | None = Field(
        default=None, min_length=1, description="run folder to make; null: checkpoints/<name>[/<subfolder>]"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit; null: the newest of main")
    subfolder: str | None = Field(default=None, description="the run's folder in the repository; null: all of it")


class PackConfig(StrictModel):
    run: str = Field(min_length=1, description="run folder")
    folder: str = Field(min_length=1, description="folder to make")
    checkpoint: str | None = Field(default=None, description=WHICH)
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="null: as it is")


COMMANDS = {
    "push": (PushConfig, ("run", "repo")),
    "pull": (PullConfig, ("repo", "run")),
    "pack": (PackConfig, ("run", "folder")),
}


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
        elif name == "pack":
            made = pack(Path(given.run), Path(given.folder), given.checkpoint, given.dtype)
            print(f"packed {made} ({made.stat().st_size:,} bytes); read its README.md before you publish it")
        else:
            run = given.run or default_run(given.repo, given.subfolder)
            checkpoint = pull(given.repo, Path(run), given.revision, given.subfolder)
            print(f"evaluate with: python evaluate.py {shlex.quote(f'checkpoint={checkpoint}')} data_path=<dataset>")


if __name__ == "__main__":
    main()
