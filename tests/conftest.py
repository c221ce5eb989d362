"""Fixtures that several files of tests share."""

import os
from pathlib import Path

import pytest

from tests.browser import Page, chromium
from tests.sample_datasets import build_sudoku

os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` runs a process a core; more threads would get in their way


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    """puzzle_visualizer.html, not loaded yet; a message on the console fails the test."""
    yield from Page.checked(browser)


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory) -> Path:
    return build_sudoku(tmp_path_factory.mktemp("sudoku"))
