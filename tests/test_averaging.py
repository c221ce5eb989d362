"""The moving average of the weights: python -m pytest tests/test_averaging.py"""

import json

import torch

from tests import warm
from tests.runs import PIPELINE, load, pretrain
from training.checkpoints import PUZZLE_TABLE

CHANGES = {"ema_decay": 0.75, "epochs": 4, "checkpoint_interval": 1, "keep_last": 100}


def test_the_average_is_saved_and_evaluated_and_changes_nothing_else(tmp_path):
    folder = tmp_path / "run"
    lines = pretrain(folder, **CHANGES)
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

    plain = pretrain(tmp_path / "plain", epochs=4)
    assert lines[:-1] == plain[:-1]  # training
    final = load(tmp_path / "plain/step_20")
    assert all(torch.equal(value, final[key]) for key, value in load(folder / "step_20").items())
    assert lines[-1] != plain[-1]  # evaluation
    assert json.loads((folder / "best.json").read_text())["checkpoint"] == "step_20_ema"
    table = warm.run("evaluate.py", f"checkpoint={folder / 'step_20_ema'}", "save_format=none").stdout
    assert f"eval/accuracy         {lines[-1]['eval/accuracy']:.4f}" in table
    assert f"eval/lm_loss          {lines[-1]['eval/lm_loss']:.4f}" in table


def test_a_stopped_run_goes_on_with_its_average(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(whole, **CHANGES)
    for _ in range(2):
        pretrain(parts, **CHANGES, resume="true", max_minutes=1e-5)
    pretrain(parts, **CHANGES, resume="true")
    for name in ("step_20", "step_20_ema", "state_20/ema.pt"):
        one, other = load(whole / name), load(parts / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
