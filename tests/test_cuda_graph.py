"""The recorded training step against the plain one: python -m pytest tests/test_cuda_graph.py

Without CUDA, a recorder launches the same operations again on the same memory (tests/recording.py).
"""

import pytest
import torch

from errors import UserError
from models.act import named_tensors
from tests.in_memory import FAMILY, METADATA, composed, random_batches
from tests.recording import record
from training import step
from training.config import PretrainConfig
from training.cuda_graph import WARM_UP, StepGraph, uses_graph
from training.distributed import Ranks
from training.step import TrainState, create_state, train_step

CPU, ONE = torch.device("cpu"), Ranks(0, 1, 0)
BATCH = 8
STEPS = 16  # beyond the warm-up and the recording each row halts several times: it stays for 4 segments at most
pytestmark = pytest.mark.usefixtures("one_thread")


def config(*overrides: str, experiment: str = "sudoku_extreme_1k") -> PretrainConfig:
    """With halting at different steps, exploration, warm-up and decay of the learning rate."""
    return composed(
        *FAMILY[experiment], "lr=1e-2", "lr_warmup_steps=5", "lr_min_ratio=0.1", "arch.halt_exploration_prob=0.5",
        "puzzle_emb_lr=1e-2", *overrides, experiment=experiment,
    )  # fmt: skip


def fresh_state(run: PretrainConfig) -> TrainState:
    torch.manual_seed(0)
    state = create_state(run, METADATA, ONE, CPU)
    with torch.no_grad():  # a Q head for which rows halt at different steps
        state.head.model.inner.q_head.weight.normal_()
        state.head.model.inner.q_head.bias.zero_()
    state.head.train()
    return state


def steps(state: TrainState, run: PretrainConfig, count: int) -> list[dict[str, float]]:
    batches = random_batches(BATCH)
    trace = []
    for _ in range(count):
        metrics, lr = train_step(state, next(batches), run)
        trace.append(metrics | {"lr": lr})
    return [{name: float(value) for name, value in metrics.items()} for metrics in trace]  # read late


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    tensors = dict(state.head.state_dict())
    for number, optimizer in enumerate(state.optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{key}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors |= dict(named_tensors(state.carry))
    return tensors | ({} if state.ema is None else state.ema.state_dict())


def record_with(monkeypatch: pytest.MonkeyPatch, recorder) -> None:
    monkeypatch.setattr(step, "StepGraph", lambda *parts: StepGraph(*parts, recorder))


ONE_STEP = ["arch.halt_max_steps=1"]


@pytest.mark.parametrize(
    "overrides",
    [[], ["ema_decay=0.9"], ["freeze=weights"], ["arch.q_target=off"], ["arch.halt_extra_steps=2"], ONE_STEP],
)
def test_a_recorded_step_is_the_plain_step(monkeypatch, overrides):
    compare(monkeypatch, config(*overrides), sums=1 if overrides == ONE_STEP else 3)


@pytest.mark.parametrize("experiment", [name for name in FAMILY if name != "sudoku_extreme_1k"])
def test_a_recorded_step_of_every_architecture_is_the_plain_step(monkeypatch, experiment):
    compare(monkeypatch, config(experiment=experiment), sums=1 if experiment == "direct_sudoku" else 2)


def compare(monkeypatch: pytest.MonkeyPatch, run: PretrainConfig, sums: int) -> None:
    """Metrics, weights, moments and their counts, averages, carry and random draws, bit for bit.

    Rows halt at different steps: so many sums of their steps there are at least.
    """
    plain = fresh_state(run)
    expected = steps(plain, run, STEPS)
    random = torch.rand(1)
    recorded = fresh_state(run)
    record_with(monkeypatch, record)
    recorded.graphs = {}
    calls = []
    forward = recorded.head.model.forward
    recorded.head.model.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    assert steps(recorded, run, STEPS) == expected
    assert len(calls) == WARM_UP + 1  # after it, nothing but the recording runs
    assert torch.equal(torch.rand(1), random)
    theirs = everything(plain)
    for name, tensor in everything(recorded).items():
        assert torch.equal(tensor, theirs[name]), name
    assert len({line["steps"] for line in expected}) >= sums


def test_steps_that_depend_on_something_else_have_a_graph_of_their_own(monkeypatch):
    run = config()
    expected = steps(fresh_state(run), run, STEPS)
    state = fresh_state(run)
    record_with(monkeypatch, record)
    state.graphs = {}
    begun = []
    state.head.model.inner.begin_step = lambda step: begun.append(step) or step % 3 == 0
    assert steps(state, run, STEPS) == expected
    assert begun == list(range(1, STEPS + 1))
    assert state.graphs.keys() == {True, False}


@pytest.mark.parametrize("where", ["inside", "at the end"])
def test_a_step_that_cannot_be_recorded_ends_the_run(monkeypatch, where):
    """What CUDA leaves of a capture that failed, in stream, generator and pool, is not fit to go on with."""

    def refuse(call):
        """Fails at a launch in the middle of the step, or at its end, when Python has run and nothing is launched."""
        if where == "inside":
            monkeypatch.setattr(torch.Tensor, "backward", launch)
        call()
        launch()

    def launch(*args):
        raise RuntimeError("operation not permitted when stream is capturing\nsee the manual")

    run = config()
    state = fresh_state(run)
    record_with(monkeypatch, refuse)
    state.graphs = {}
    with pytest.raises(
        UserError, match="a training step cannot be recorded as a CUDA graph \\(operation not permitted"
    ):
        steps(state, run, 10)
    assert state.step == WARM_UP + 1


def test_when_a_graph_is_used():
    cuda = torch.device("cuda", 0)
    assert uses_graph("auto", cuda, ONE)
    assert uses_graph("on", cuda, Ranks(0, 2, 0))
    assert not uses_graph("auto", cuda, Ranks(0, 2, 0))
    assert uses_graph("auto", cuda)
    assert not uses_graph("off", cuda, ONE)
    assert not uses_graph("auto", CPU, ONE)
    with pytest.raises(UserError, match="needs a CUDA device, not cpu; use auto"):
        uses_graph("on", CPU, ONE)
