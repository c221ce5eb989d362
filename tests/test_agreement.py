"""Whether the benchmarks notice a graph, or a resumed run, that differs: python -m pytest tests/test_agreement.py

Graphs are those of tests/recording.py.
"""

import argparse
import itertools
import json

import pytest
import torch

from benchmarks import agreement, step
from benchmarks.sizes import SIZES, build_head, config_of, random_batches
from errors import UserError
from tests.recording import record
from training import step as training_step
from training.cuda_graph import WARM_UP, Graph, StepGraph
from training.distributed import Ranks

CPU, ONE = torch.device("cpu"), Ranks(0, 1, 0)
pytestmark = pytest.mark.usefixtures("one_thread")


def record_steps(monkeypatch, recorder) -> None:
    """`cuda_graph` without CUDA (tests/recording.py), and without the compiler."""
    monkeypatch.setattr(training_step, "uses_graph", lambda mode, *_: mode != "off")
    monkeypatch.setattr(agreement, "uses_graph", lambda mode, *_: mode != "off")
    monkeypatch.setattr(training_step, "StepGraph", lambda *parts: StepGraph(*parts, recorder))
    monkeypatch.setattr(agreement, "Graph", lambda what: Graph(what, recorder))
    monkeypatch.setattr(step.OurTrainer, "compile", lambda trainer: None)


def refuse(call):
    raise RuntimeError("not here")


def forget(call):
    """A graph that does nothing."""
    record(call)
    return lambda: None


def test_the_checked_steps_of_a_graph_are_replays(monkeypatch):
    size = SIZES["toy"]
    config, batches = config_of(size, 8), list(itertools.islice(random_batches(size, 8, CPU), 4))
    name = "blocks compiled, CUDA graph"
    baseline = step.prepare("baseline", config, size, batches, ONE, CPU)
    record_steps(monkeypatch, record)
    way = step.prepare(name, config, size, batches, ONE, CPU)
    assert way.trainer.replays(batches[0])
    assert len(way.losses) >= WARM_UP + 2
    assert step.check_same_losses(name, way, baseline, torch.float32) <= 1e-5
    record_steps(monkeypatch, refuse)
    with pytest.raises(UserError, match="cannot be recorded as a CUDA graph"):
        step.prepare(name, config, size, batches, ONE, CPU)
    record_steps(monkeypatch, forget)
    with pytest.raises(AssertionError, match="differ"):
        step.check_same_losses(name, step.prepare(name, config, size, batches, ONE, CPU), baseline, torch.float32)


TOY = argparse.Namespace(toy=True, batch=None, steps=8)


def test_a_graph_agrees_or_is_told_not_to(monkeypatch, capsys):
    record_steps(monkeypatch, record)
    agreement.graph(TOY, CPU)
    out = capsys.readouterr().out
    assert "float32: CUDA graph | 0.0e+00 | 0.0e+00 | 0.0e+00 | the same in 8 of 8 steps |" in out
    assert "| 0 of 16 puzzles | 0.0e+00 |" in out
    record_steps(monkeypatch, forget)
    with pytest.raises(AssertionError, match="the graph differs"):
        agreement.graph(TOY, CPU)
    head = build_head(SIZES["toy"], 8, CPU)
    batches = list(itertools.islice(random_batches(SIZES["toy"], 8, CPU), 2))
    with pytest.raises(AssertionError, match="other answers"):
        agreement.compare_answers("", head, batches, Graph("", forget))


def test_a_resumed_run_that_differs_is_noticed(capsys):
    lines = [{"step": n, "train/lm_loss": 2.0, "train/steps": 1.0} for n in (1, 2)]
    whole = "\n".join(map(json.dumps, lines)).encode()
    other = whole.replace(b'"step": 2, "train/lm_loss": 2.0', b'"step": 2, "train/lm_loss": 2.0002')
    agreement.compare_runs("float32", whole, whole, 2, 0.0)
    agreement.compare_runs("float32", whole, other, 2, 1e-3)
    assert "| float32 | 2, 1 | not equal to the byte | 1.0e-04 | 1.0e-04 |" in capsys.readouterr().out
    for allowed in (0.0, 1e-5):
        with pytest.raises(AssertionError, match="differ"):
            agreement.compare_runs("float32", whole, other, 2, allowed)
    with pytest.raises(AssertionError, match="from the whole"):  # on a CPU another metric is enough
        agreement.compare_runs("float32", whole, whole.replace(b'"train/steps": 1.0', b'"train/steps": 1.5'), 2, 0.0)
    with pytest.raises(AssertionError, match="too short"):
        agreement.compare_runs("float32", whole, whole, 3, 0.0)
    with pytest.raises(AssertionError, match="other lines"):
        agreement.compare_runs("float32", whole, whole.splitlines()[0], 2, 0.0)


def test_a_loss_of_zero_is_compared():
    """In float32 a Q(halt) that is sure and right has a loss of exactly 0."""
    assert agreement.relative_difference(0.0, 0.0) == 0
    assert agreement.relative_difference(0.0, 1e-9) == pytest.approx(1e-3)
    assert agreement.relative_difference(2.0, 2.5) == pytest.approx(0.25)
