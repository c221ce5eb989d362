"""The moving average of the weights: python -m pytest tests/test_averaging.py"""

import json

import pytest
import torch

from tests import warm
from tests.interrupted import signal_in_evaluation
from tests.runs import LIGHT, PIPELINE, load, pretrain, printed_metrics, read_metrics
from training.checkpoints import PUZZLE_TABLE

CHANGES = LIGHT | {"ema_decay": 0.75, "epochs": 4, "checkpoint_interval": 1, "keep_last": 100}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "whole"
    pretrain(folder, **CHANGES)
    return folder


def test_the_average_is_saved_and_evaluated_and_changes_nothing_else(tmp_path, whole):
    folder, lines = whole, read_metrics(whole)
    average = load(PIPELINE / "init_checkpoint.pt")
    for step in range(1, 21):
        weights = load(folder / f"state_{step}/model.pt")
        average = {key: 0.75 * average[key] + 0.25 * value for key, value in weights.items()}
    average |= {key: weights[key] for key in (PUZZLE_TABLE, "model.inner.H_init", "model.inner.L_init")}
    saved = load(folder / "step_20_ema")
    assert saved.keys() == average.keys()
    for key, value in average.items():
        torch.testing.assert_close(saved[key], value, rtol=0, atol=1e-6)
    assert not torch.allclose(saved["model.inner.lm_head.weight"], weights["model.inner.lm_head.weight"], atol=1e-4)

    plain = pretrain(tmp_path / "plain", epochs=4, **LIGHT)
    assert lines[:-1] == plain[:-1]  # training
    final = load(tmp_path / "plain/step_20")
    assert all(torch.equal(value, final[key]) for key, value in load(folder / "step_20").items())
    assert lines[-1] != plain[-1]  # evaluation
    assert json.loads((folder / "best.json").read_text())["checkpoint"] == "step_20_ema"
    done = warm.run("evaluate.py", f"checkpoint={folder / 'step_20_ema'}", "save_format=none")
    expected = {key: f"{value:.4f}" for key, value in lines[-1].items() if key.startswith("eval/")}
    assert printed_metrics(done.stdout) == expected


def assert_same_weights(one, other, *names):
    for name in names:
        first, second = load(one / name), load(other / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_a_stopped_run_goes_on_with_its_average(tmp_path, whole):
    for _ in range(2):
        pretrain(tmp_path / "parts", **CHANGES, resume="true", max_minutes=1e-5)
    pretrain(tmp_path / "parts", **CHANGES, resume="true")
    assert_same_weights(tmp_path / "parts", whole, "step_20", "step_20_ema", "state_20/ema.pt")


def test_a_signal_within_an_evaluation_saves_the_weights_and_not_their_average(tmp_path, whole):
    folder = tmp_path / "run"
    with signal_in_evaluation():
        lines = pretrain(folder, **CHANGES)
    assert lines[-1]["step"] == 20
    assert "eval/accuracy" not in lines[-1]
    assert_same_weights(folder, whole, "state_20/model.pt", "state_20/ema.pt")
    pretrain(folder, **CHANGES, resume="true")
    assert_same_weights(folder, whole, "step_20", "step_20_ema")
