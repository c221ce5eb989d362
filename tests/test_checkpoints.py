"""Which checkpoints are saved, and which weights a run starts from: python -m pytest tests/test_checkpoints.py"""

import json
import shutil

import numpy as np
import pytest
import torch

from errors import UserError
from tests import warm
from tests.runs import PIPELINE, TRAJECTORY, lines_with, load, pretrain, read_metrics, refusal
from training.checkpoints import load_weights
from training.config import arch_config

TABLE = "model.inner.puzzle_emb.weights"


@pytest.fixture(scope="module")
def with_val(tmp_path_factory):
    """The reference dataset with a val split: the first 10 groups of train."""
    path = tmp_path_factory.mktemp("data") / "dataset"
    shutil.copytree(PIPELINE / "dataset", path)
    shutil.copytree(path / "train", path / "val")
    arrays = {file: np.load(file) for file in (path / "val").glob("*.npy")}
    by_field = {file.stem.removeprefix("all__"): array for file, array in arrays.items()}
    groups = 10
    puzzles = by_field["group_indices"][groups]
    examples = by_field["puzzle_indices"][puzzles]
    rows = {"inputs": examples, "labels": examples, "puzzle_identifiers": puzzles}
    rows |= {"puzzle_indices": puzzles + 1, "group_indices": groups + 1}
    for file, array in arrays.items():
        np.save(file, array[: rows[file.stem.removeprefix("all__")]])
    description = json.loads((path / "val/dataset.json").read_text())
    (path / "val/dataset.json").write_text(json.dumps(description | {"total_groups": groups}))
    return path


def test_best_is_chosen_on_val_and_the_test_split_is_evaluated_once(tmp_path, with_val):
    folder = tmp_path / "run"
    lines = pretrain(folder, data_path=with_val, eval_split="val", checkpoint_every_eval="false", lr=5e-3)
    evaluations = {line["step"]: line["eval/exact_accuracy"] for line in lines_with(lines, "eval/")}
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == max(evaluations.values()) == evaluations[best["step"]]
    assert (folder / best["checkpoint"]).exists()
    (final,) = lines_with(lines, "test/")
    whole = warm.run("evaluate.py", f"checkpoint={folder / 'step_60'}", f"data_path={with_val}", "save_format=none")
    assert f"eval/accuracy         {final['test/accuracy']:.4f}" in whole.stdout


def test_a_subset_during_training_is_the_same_each_time(tmp_path):
    lines = pretrain(tmp_path / "run", eval_max_examples=5, lr=0, puzzle_emb_lr=0)
    values = [line["eval/lm_loss"] for line in lines_with(lines, "eval/")]
    assert len(set(values)) == 1  # nothing was learned, so only another subset could change it
    (final,) = lines_with(lines, "test/")
    assert final["test/lm_loss"] != pytest.approx(values[0], rel=1e-3)


@pytest.mark.parametrize("log_interval", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, capsys, log_interval):
    folder = tmp_path / "run"
    pretrain(folder, epochs=4)
    poisoned = load(folder / "state_20/model.pt")
    poisoned["model.inner.lm_head.weight"][0, 0] = float("nan")
    torch.save(poisoned, folder / "state_20/model.pt")
    changes = {"epochs": 8, "resume": "true", "checkpoint_interval": 4, "log_interval": log_interval}
    kept = f"the last good state is {folder / 'state_20'}; lower lr"
    assert refusal(capsys, folder, **changes) == (
        f"error: train/lm_loss is nan at step 21: the run has diverged; {kept}"
    )
    assert [path.name for path in folder.glob("state_*")] == ["state_20"]
    assert read_metrics(folder)[-1]["step"] == 20


def test_weights_that_are_not_finite_are_never_saved(tmp_path, capsys):
    """The loss of a step is computed before its update: it is still finite where the update has spoilt the weights."""
    folder = tmp_path / "run"
    line = refusal(capsys, folder, lr=1e39, lr_warmup_steps=0, checkpoint_interval=1)
    assert line == ("error: the weights are not finite after step 1; earlier states are untouched; lower lr")
    assert [line["step"] for line in read_metrics(folder)] == [1]
    assert not list(folder.glob("*state_*"))


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_weights_for_other_puzzles(tmp_path, capsys, how):
    weights = load(PIPELINE / "init_checkpoint.pt")
    weights[TABLE] = torch.zeros(5, 32)
    weights[TABLE][2:4] = torch.tensor([1.0, 3.0]).unsqueeze(1)
    weights[TABLE][0] = 7.0  # the blank is no puzzle, row 4 was never trained: neither counts in the mean
    torch.save(weights, tmp_path / "other")
    changes = {"load_checkpoint": tmp_path / "other", "lr": 0, "puzzle_emb_lr": 0}
    # The reference dataset knows the blank alone, so give it two puzzles more.
    data = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset", data)
    for split in ("train", "test"):
        description = json.loads((data / split / "dataset.json").read_text())
        (data / split / "dataset.json").write_text(json.dumps(description | {"num_puzzle_identifiers": 3}))
    changes["data_path"] = data
    message = refusal(capsys, tmp_path / "refused", **changes)
    assert "5 × 32" in message
    assert "load_checkpoint_puzzle_emb=mean|zero" in message
    pretrain(tmp_path / "run", load_checkpoint_puzzle_emb=how, epochs=4, **changes)
    table = load(tmp_path / "run/step_20")[TABLE]
    assert torch.equal(table[0], torch.full((32,), 7.0 if how == "mean" else 0.0))
    assert torch.equal(table[1:], torch.full((2, 32), 2.0 if how == "mean" else 0.0))


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_the_same_puzzles_keep_their_embeddings_and_another_width_is_refused(tmp_path, how):
    """Of as many puzzles the model may know them; numbers of another width mean nothing to it."""
    arch = arch_config(TRAJECTORY["config"]["arch"])
    head = arch.build(batch_size=8, seq_len=16, vocab_size=6, num_puzzle_identifiers=5)
    weights = load(PIPELINE / "init_checkpoint.pt")
    for width in (32, 16):
        weights[TABLE] = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
        torch.save(weights, tmp_path / str(width))
    load_weights(head, tmp_path / "32", other_puzzles=how)
    saved = load(tmp_path / "32")[TABLE]
    assert torch.equal(head.state_dict()[TABLE], saved)
    with pytest.raises(UserError, match="5 × 16, the dataset and config need 5 × 32"):
        load_weights(head, tmp_path / "16", other_puzzles=how)
    assert torch.equal(head.state_dict()[TABLE], saved)


def test_frozen_weights_leave_the_puzzle_embeddings_to_learn(tmp_path, capsys):
    folder = tmp_path / "run"
    pretrain(folder, freeze="weights", epochs=4, max_minutes=1e-5)
    lines = pretrain(folder, freeze="weights", epochs=4, resume="true")
    before, after = load(PIPELINE / "init_checkpoint.pt"), load(folder / "step_20")
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {TABLE}
    assert lines[-2]["train/lr"] == pytest.approx(1e-2 * (0.1 + 0.9 * 0), rel=1e-6)  # the puzzle embeddings'
    assert "freeze (was weights, is None)" in refusal(capsys, folder, epochs=4, resume="true")


def test_the_environment_is_recorded_at_every_start(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        pretrain(folder, epochs=4, resume="true")
    first, second = json.loads((folder / "environment.json").read_text())
    assert first["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert any(argument.endswith("pretrain.py") for argument in second["command"])
    assert first["ranks"] == 1
    assert first["git_commit"] is None or len(first["git_commit"].removesuffix("-dirty")) == 40
