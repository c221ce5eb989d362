"""The choice of the weights' optimiser: python -m pytest tests/test_optimizers.py"""

import json

import pytest
import torch

from models.adam_atan2 import AdamATan2, load_optimizer, portable_state
from tests import warm
from tests.in_memory import METADATA, TINY, composed, random_batches
from tests.runs import (
    LIGHT,
    assert_lines_close,
    edit_manifest,
    load,
    pretrain,
    read_metrics,
    reference_overrides,
    refusal,
)
from training.config import PretrainConfig
from training.distributed import Ranks
from training.optimizers import OPTIMIZERS
from training.step import TrainState, create_state, train_step

OTHERS = [name for name in OPTIMIZERS if name != "adam_atan2"]
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
pytestmark = pytest.mark.usefixtures("one_thread")


def marked(names):
    return [pytest.param(name, marks=needs_muon) if name == "muon" else name for name in names]


def fresh_state(config: PretrainConfig) -> TrainState:
    torch.manual_seed(0)
    state = create_state(config, METADATA, Ranks(0, 1, 0), torch.device("cpu"))
    state.head.train()
    return state


@pytest.mark.parametrize("name", marked(OPTIMIZERS))
def test_every_weight_has_one_optimizer(name):
    state = fresh_state(composed(*TINY, f"optimizer={name}"))
    _, *dense = state.optimizers
    trained = [p for optimizer in dense for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len({*map(id, trained)}) == len(list(state.head.parameters()))
    kinds = {"adam_atan2": [AdamATan2], "adamw": [torch.optim.AdamW]}
    assert [type(optimizer) for optimizer in dense] == kinds.get(name) or [
        {p.ndim for p in group["params"]} for optimizer in dense for group in optimizer.param_groups
    ] == [{2}, {1}]


def test_adamw_is_its_formula():
    """Loshchilov and Hutter 2019, algorithm 2, on one weight of the Q head over three steps."""
    config = composed(*TINY, "optimizer=adamw", "lr=1e-2", "lr_warmup_steps=0", "beta2=0.9")
    state = fresh_state(config)
    bias, batches = state.head.model.inner.q_head.bias, random_batches(8)
    value, m, v = bias[0].item(), 0.0, 0.0
    for step in range(1, 4):
        train_step(state, next(batches), config)
        gradient = bias.grad[0].item()
        m, v = 0.9 * m + 0.1 * gradient, 0.9 * v + 0.1 * gradient**2
        value -= 1e-2 * (m / (1 - 0.9**step) / ((v / (1 - 0.9**step)) ** 0.5 + 1e-8) + config.weight_decay * value)
        assert bias[0].item() == pytest.approx(value, rel=1e-5)


@needs_muon
def test_muon_makes_orthogonal_updates_of_the_size_of_adamw():
    """The larger half of an update's singular values lie near each other; its root mean square is at most 0.2 lr."""
    config = composed(*TINY, "optimizer=muon", "lr=1e-2", "lr_warmup_steps=0", "weight_decay=0")
    state = fresh_state(config)
    weight = state.head.model.inner.H_level.layers[0].self_attn.o_proj.weight
    before = weight.detach().clone()
    train_step(state, next(random_batches(8)), config)
    update = (weight.detach() - before) / 1e-2
    values = torch.linalg.svdvals(update)
    assert values[0] < 2.5 * values[len(values) // 2]
    assert 0.1 < update.square().mean().sqrt() < 0.22


@pytest.mark.parametrize("name", marked(OTHERS))
def test_a_run_goes_on_byte_for_byte(tmp_path, name):
    changes = LIGHT | {"optimizer": name, "epochs": 8, "eval_interval": 4, "ema_decay": 0.9}
    whole = pretrain(tmp_path / "whole", **changes)
    for _ in range(2):
        pretrain(tmp_path / "run", resume="true", max_minutes=1e-5, **changes)
    assert pretrain(tmp_path / "run", resume="true", **changes) == whole
    last = f"step_{whole[-1]['step']}"
    mine, theirs = load(tmp_path / "run" / last), load(tmp_path / "whole" / last)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", marked(OPTIMIZERS))
def test_what_the_command_says_is_not_taken_from_the_saved_state(name):
    """Else a resume would ignore another weight decay. Moments and counts, also a group's own, are the saved ones."""
    words = [*TINY, f"optimizer={name}", "beta2=0.9", "weight_decay=0.1", "puzzle_emb_weight_decay=0.1"]
    others = ["beta1=0.8", "beta2=0.7", "weight_decay=0.3", "puzzle_emb_weight_decay=0.4"]
    config = composed(*words)
    trained = fresh_state(config)
    train_step(trained, next(random_batches(8)), config)
    for changes in ([], others):
        for old, new in zip(trained.optimizers, fresh_state(composed(*words, *changes)).optimizers, strict=True):
            saved = portable_state(old)
            saved["param_groups"][0]["calls"] = 5  # as an optimiser may count in its group
            asked = [{key: value for key, value in group.items() if key != "params"} for group in new.param_groups]
            load_optimizer(new, saved)
            assert [group | asked for group, asked in zip(new.param_groups, asked, strict=True)] == new.param_groups
            assert new.param_groups[0]["calls"] == 5
            torch.testing.assert_close(portable_state(new)["state"], saved["state"], rtol=0, atol=0)


@pytest.mark.apart
@pytest.mark.parametrize("name", marked(OTHERS))
def test_two_ranks_are_one_process(tmp_path, name):
    """For a few steps: Muon's iteration, in bfloat16, makes much of rounding."""
    changes = {"optimizer": name, "epochs": 2, "eval_interval": 1, "arch.halt_exploration_prob": 0}
    for folder, ranks in (("one", None), ("two", 2)):
        warm.run("pretrain.py", *reference_overrides(tmp_path / folder, **changes), ranks=ranks)
    assert_lines_close(read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one"), rtol=2e-3)


def test_a_run_does_not_change_its_optimizer(tmp_path, capsys):
    """One of an earlier version, which does not say, has AdamATan2."""
    changes = LIGHT | {"epochs": 8, "eval_interval": 4, "resume": "true"}
    whole = pretrain(tmp_path / "whole", **changes)
    pretrain(tmp_path / "run", max_minutes=1e-5, **changes)
    (state,) = (tmp_path / "run").glob("state_*")
    assert json.loads((state / "manifest.json").read_text())["fixed"]["optimizer"] == "adam_atan2"
    edit_manifest(state, lambda manifest: manifest["fixed"].pop("optimizer"))
    line = refusal(capsys, tmp_path / "run", optimizer="adamw", **changes)
    assert "cannot be resumed with another optimizer (was adam_atan2, is adamw)" in line
    assert pretrain(tmp_path / "run", **changes) == whole


def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    line = refusal(capsys, tmp_path / "run", optimizer="adamw", cuda_graph="on")
    assert "cuda_graph=on cannot hold optimizer=adamw; use cuda_graph=auto" in line
    assert "adam_atan2" in refusal(capsys, tmp_path / "run", optimizer="adam")
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    line = refusal(capsys, tmp_path / "run", optimizer="muon")
    assert f"needs PyTorch 2.9 or newer, this is {torch.__version__}; use optimizer=adamw" in line
    assert not (tmp_path / "run").exists()
