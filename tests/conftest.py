"""Fixtures that several files of tests share."""

import base64
import copy
import io
import os
import signal
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import IO
from unittest import mock

import pytest
import torch
from omegaconf import DictConfig

from tests import fake_gym
from tests.launch import ROOT
from tests.sample_datasets import build_sudoku

os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` runs a process a core; more threads would get in their way
if os.environ.get("HRM_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job that a shell has put in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what the tests start would ignore Ctrl-C as well


# Those of 10 s and more, in either part of the tests; `--dist loadfile` hands files out in order, and a long one at the
# end would run alone.
LONGEST = (
    "test_gpu_script", "test_architectures", "test_ranks", "test_compilation", "test_demo", "test_cuda_graph",
    "test_resume", "test_slurm", "test_report", "test_benchmarks", "test_search", "test_live_page", "test_visualizer",
    "test_stopping", "test_reference_models", "test_metrics_log", "test_pretrain", "test_new_architecture",
    "test_checkpoints", "test_docs", "test_optimizers", "test_own_puzzle_docs", "test_solve", "test_figures",
    "test_mixing", "test_solver", "test_build_arc_dataset", "test_visualizer_arc", "test_evaluate", "test_ladder",
    "test_visualizer_files", "test_measure", "test_arc_notebook", "test_arc_chain",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.apart)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True, scope="session")
def operations_are_counted_once():
    """A run counts the operations of its steps before it starts, which takes a third of the time of a tiny one; a
    search and a report do, too."""
    from evaluators import search  # imports Triton, which reads the environment that is set above
    from training import flops, outlook

    flops_per_step = flops.flops_per_step
    known: dict[tuple, float] = {}

    def counted(head: torch.nn.Module, batch: int, training: bool = True) -> float:
        model, trained = head.model, tuple(p.requires_grad for p in head.parameters())
        key = (type(model), repr(model.config), repr(model.data), head.loss_fn, trained, batch, training)
        if key not in known:
            known[key] = flops_per_step(head, batch, training)
        return known[key]

    with ExitStack() as patches:
        for module in (flops, outlook, search):
            patches.enter_context(mock.patch.object(module, "flops_per_step", counted))
        yield


@pytest.fixture(autouse=True, scope="session")
def configs_are_composed_once():
    """Hydra takes a tenth of a second for what most runs have in common: the files of config/, without the values."""
    from hydra.core.global_hydra import GlobalHydra

    from training import command_line

    known: dict[tuple, DictConfig] = {}
    compose = command_line.compose

    def composed(name: str, overrides: list[str]) -> DictConfig:
        places = {str(one.path) for one in GlobalHydra.instance().config_loader().get_search_path().get_path()}
        if f"{ROOT}/config" not in places or any(word.startswith("hydra.searchpath") for word in overrides):
            return compose(name, overrides)  # of files that a test may change
        key = (name, *overrides)
        if key not in known:
            known[key] = compose(name, overrides)
        return copy.deepcopy(known[key])

    with mock.patch.object(command_line, "compose", composed):
        yield


DRAWN = {  # the least that is a picture, by the name of its format
    "png": base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
    ),
    "svg": b"<?xml version='1.0'?><svg width='1' height='1' xmlns='http://www.w3.org/2000/svg'></svg>",
    "pdf": b"%PDF-1.4",
}


@pytest.fixture
def undrawn(request, monkeypatch):
    """Charts are saved without being drawn, which takes half a second, but in tests marked `drawn`."""
    if request.node.get_closest_marker("drawn"):
        return
    from matplotlib.figure import Figure

    numbers = count()

    def save(figure: Figure, file: IO, *, format: str, **_: object) -> None:
        content = b"%b<!-- %d -->" % (DRAWN[format], next(numbers))  # one in the place of another would be seen
        file.write(content.decode() if isinstance(file, io.TextIOBase) else content)

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def one_thread():
    """The order of additions depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser():
    from tests.browser import chromium  # needs selenium, which a machine that only computes may lack

    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    """puzzle_visualizer.html, not loaded yet; a message on the console fails the test."""
    from tests.browser import Page

    yield from Page.checked(browser)


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory) -> Path:
    return build_sudoku(tmp_path_factory.mktemp("sudoku"))


@pytest.fixture
def fake_package(monkeypatch):
    """The stand-in for reasoning-gym, tests/fake_gym.py."""
    fake_gym.install(monkeypatch)


@pytest.fixture(params=["fake", pytest.param("real", marks=fake_gym.NO_PACKAGE)])
def package(request):
    """Tests that use it run with the stand-in and, where it is installed, with the package itself."""
    if request.param == "fake":
        request.getfixturevalue("fake_package")
    return request.param
