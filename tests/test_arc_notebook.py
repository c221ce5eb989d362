"""arc_eval.ipynb, executed, and its pictures: python -m pytest tests/test_arc_notebook.py"""

import base64
import io
import math
import re

import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image

from evaluators.arc import demonstrations, vote
from evaluators.figure_plots import draw_tasks
from puzzles.draw import PALETTE
from tests.arc_predictions import build_dataset, predict, raw_tasks, save_torch
from tests.launch import ROOT

NOTEBOOK = ROOT / "arc_eval.ipynb"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Dataset and predictions: some tasks are solved and some are not."""
    folder = tmp_path_factory.mktemp("arc")
    dataset = build_dataset(folder)
    rows, _ = predict(dataset, seed=1, right=0.2)
    return dataset, save_torch(folder / "step_1", rows)


@pytest.fixture(scope="module")
def tasks(paths):
    return vote(paths[0], [paths[1]])


def test_the_committed_notebook_is_clean():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    first_code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first_code.metadata.tags == ["parameters"]


@pytest.mark.apart
def test_the_notebook_runs(paths, tasks, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    values = {"DATASET": str(paths[0]), "PREDICTIONS": [str(paths[1])], "DRAWN": 3}
    for name, value in values.items():
        parameters.source, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", parameters.source)
        assert count == 1
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "4 tasks with 6 test inputs, 42 predictions" in printed
    images = [
        np.array(Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB"))
        for output in outputs
        if "data" in output and "image/png" in output.data
    ]
    solved = [name for name, tests in tasks.items() if all(test.rank <= 2 for test in tests)]
    assert 0 < len(solved) < len(tasks)
    assert len(images) == 2
    for image, names in zip(images, (solved, [name for name in tasks if name not in solved]), strict=True):
        rows = sum(len(tasks[name]) + math.ceil(len(raw_tasks()[name]["train"]) / 4) for name in names[:3])
        assert image.shape[0] == pytest.approx(
            232 * rows, rel=0.15
        )  # a row of panels for each test input and four demonstrations
        light_blue = (np.array(to_rgb(PALETTE["arc_8"])) * 255).round()
        assert (image == light_blue).all(-1).sum() > 100


def test_what_is_drawn(tasks):
    figure = draw_tasks(tasks, attempts=3)
    tests = [test for inputs in tasks.values() for test in inputs]
    rows = np.array(figure.axes).reshape(len(tests), 5)
    verdicts = set()
    for axes, test in zip(rows, tests, strict=True):
        candidates = [one.grid for one in test.candidates]
        for axis, grid in zip(axes, [test.input, test.answer, *candidates], strict=False):
            if grid.size:
                (image,) = axis.images
                assert image.origin == "upper"
                pixels, (high, wide) = np.asarray(image.get_array()), grid.shape
                cell = (pixels.shape[0] - 3) // high  # behind the line, before the mark of a wrong cell
                corners = np.ix_(*(np.arange(count) * cell + 1 + cell // 6 for count in (high, wide)))
                colours = np.array([to_rgb(PALETTE[f"arc_{colour}"]) for colour in range(10)])
                np.testing.assert_array_equal(pixels[corners], (255 * colours).round()[grid])
        for axis, grid in zip(axes[2:], candidates, strict=False):
            verdict = "right" if grid.tolist() == test.answer.tolist() else "wrong"
            assert verdict in axis.get_title()
            assert axis.title.get_color() == PALETTE[verdict]
            marks = (np.asarray(axis.images[0].get_array()) == _rgb("wrong")).all(-1).any() if grid.size else False
            if grid.shape == test.answer.shape:
                count = (grid != test.answer).sum()
                assert marks == (count > 0)
                assert (f"{count} of {grid.size} cells differ" in axis.get_title()) == (count > 0)
            else:
                assert not marks and "{}×{}, not {}×{}".format(*grid.shape, *test.answer.shape) in axis.get_title()
            verdicts.add(verdict)
        for axis in axes[2 + len(candidates) :]:
            assert "none" in axis.get_title() and not axis.images
    assert verdicts == {"right", "wrong"}
    assert [axes[0].get_title().split() for axes in rows[:3]] == [
        ["12997ef3", "input", "1"],
        ["12997ef3", "input", "2"],
        ["2c0b0aff", "input"],
    ]
    assert draw_tasks({}).axes[0].texts[0].get_text() == "none"


def _rgb(name: str) -> np.ndarray:
    return (255 * np.array(to_rgb(PALETTE[name]))).round()


def test_demonstrations_are_drawn_above_their_task(paths, tasks):
    """They are read from the train split, where they lie anywhere on the canvas."""
    found = demonstrations(paths[0], tasks)
    for name, pairs in found.items():
        wanted = [[pair["input"], pair["output"]] for pair in raw_tasks()[name]["train"]]
        assert [[grid.tolist() for grid in pair] for pair in pairs] == wanted
    assert set(found) == set(tasks)
    name = next(iter(tasks))
    figure = draw_tasks({name: tasks[name]}, attempts=2, demonstrations=found)
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes]
    count = len(found[name])
    assert titles[:count] == [f"demonstration {number}" for number in range(1, count + 1)]
    assert titles[4 * math.ceil(count / 4)] == name
    colours = {colour for grid in found[name][0] for colour in grid.ravel().tolist()}
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert all((shown == _rgb(f"arc_{colour}")).all(-1).sum() > 100 for colour in colours)
