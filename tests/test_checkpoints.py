"""Which checkpoints are saved, and which weights a run starts from: python -m pytest tests/test_checkpoints.py"""

import json
import platform
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import UserError
from tests import warm
from tests.runs import (
    LIGHT,
    PIPELINE,
    TRAJECTORY,
    lines_with,
    load,
    pretrain,
    printed_metrics,
    read_metrics,
    refusal,
    save_in_state,
)
from training.checkpoints import load_weights, read_weights, save_weights, trained_on
from training.config import arch_config
from training.distributed import Ranks, processor_name
from training.run_folder import record_environment

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
    assert printed_metrics(whole.stdout)["eval/accuracy"] == f"{final['test/accuracy']:.4f}"


def test_training_alone(tmp_path, capsys, caplog):
    """Without a test split nothing is evaluated and nothing is best; it goes on after a stop all the same."""
    data, folder, asked = tmp_path / "data", tmp_path / "run", LIGHT | {"checkpoint_every_eval": "false"}
    shutil.copytree(PIPELINE / "dataset", data)
    shutil.rmtree(data / "test")
    lines = pretrain(folder, data_path=data, **asked)
    assert f"{data} has no test split: nothing is evaluated" in caplog.messages
    whole = pretrain(tmp_path / "whole", **asked)
    assert lines_with(lines, "train/") == lines_with(whole, "train/")
    assert not lines_with(lines, "eval/") and not lines_with(lines, "test/")
    assert sorted(path.name for path in folder.glob("step_*")) == ["step_60"]
    assert not (folder / "best.json").exists()
    assert pretrain(folder, data_path=data, resume="true", **asked) == lines
    line = refusal(capsys, tmp_path / "other", **{"data_path": data, "early_stop.patience": 2})
    assert "early_stop.patience counts evaluations, but there is nothing to evaluate on" in line


def test_a_subset_during_training_is_the_same_each_time(tmp_path):
    lines = pretrain(tmp_path / "run", eval_max_examples=5, lr=0, puzzle_emb_lr=0, **LIGHT)
    values = [line["eval/lm_loss"] for line in lines_with(lines, "eval/")]
    assert len(set(values)) == 1  # nothing was learned, so only another subset could change it
    (final,) = lines_with(lines, "test/")
    assert final["test/lm_loss"] != pytest.approx(values[0], rel=1e-3)


@pytest.mark.parametrize("log_interval", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, capsys, log_interval):
    folder = tmp_path / "run"
    pretrain(folder, epochs=4, **LIGHT)
    poisoned = load(folder / "state_20/model.pt")
    poisoned["model.inner.lm_head.weight"][0, 0] = float("nan")
    save_in_state(folder / "state_20", "model.pt", poisoned)
    changes = LIGHT | {"epochs": 8, "resume": "true", "checkpoint_interval": 4, "log_interval": log_interval}
    kept = f"the last good state is {folder / 'state_20'}; lower lr"
    assert refusal(capsys, folder, **changes) == (
        f"error: train/lm_loss is nan at step 21: the run has diverged; {kept}"
    )
    assert [path.name for path in folder.glob("state_*")] == ["state_20"]
    assert read_metrics(folder)[-1]["step"] == 20


def test_weights_that_are_not_finite_are_never_saved(tmp_path, capsys):
    """The loss of a step is computed before its update: it is still finite where the update has spoilt the weights.

    Here the decay makes the embedding of a token overflow that never occurs.
    """
    folder = tmp_path / "run"
    weights = load(PIPELINE / "init_checkpoint.pt")
    weights["model.inner.embed_tokens.embedding_weight"][0] = 3e38
    torch.save(weights, tmp_path / "large")
    changes = {"load_checkpoint": tmp_path / "large", "lr": 1e6, "lr_warmup_steps": 0, "weight_decay": 1}
    line = refusal(capsys, folder, checkpoint_interval=1, **changes)
    assert line == ("error: the weights are not finite after step 1; earlier states are untouched; lower lr")
    assert [line["step"] for line in read_metrics(folder)] == [1]
    assert not list(folder.glob("*state_*"))


WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2, dtype=torch.bfloat16)}


def assert_the_weights(found: dict) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_a_checkpoint_that_changed_since_it_was_written_is_refused(tmp_path):
    path = tmp_path / "step_10"
    save_weights(path, WEIGHTS, data="0123456789abcdef")
    save_weights(tmp_path / "step_20", {key: value + 1 for key, value in WEIGHTS.items()}, data=None)
    assert_the_weights(read_weights(path))
    assert (trained_on(path), trained_on(tmp_path / "step_20")) == ("0123456789abcdef", None)
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(whole)), 50):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"step_10 is not what the run wrote .*: it is damaged or was replaced"):
            read_weights(path)
    shutil.copy(tmp_path / "step_20", path)
    with pytest.raises(UserError, match="is not what the run wrote"):
        read_weights(path)
    path.write_bytes(whole)
    for content in ("{", "[1]", '{"step_10": {"bytes": 5}}', '{"step_10": []}'):
        (tmp_path / "checkpoints.json").write_text(content)
        with pytest.raises(UserError, match="remove it to use the checkpoints unchecked"):
            read_weights(path)
    (tmp_path / "checkpoints.json").unlink()
    assert_the_weights(read_weights(path))  # as the original's


def with_prefix(prefix: str, weights: dict = WEIGHTS) -> dict:
    return {prefix + key: value for key, value in weights.items()}


WRAPPED = {
    "compiled": with_prefix("_orig_mod."),
    "parallel": with_prefix("module."),
    "compiled and parallel": with_prefix("_orig_mod.module."),
    "parallel and compiled": with_prefix("module._orig_mod."),
    "compiled inside": {"a._orig_mod.weight": WEIGHTS["a.weight"], "b.bias": WEIGHTS["b.bias"]},
    "in model_state_dict": {"model_state_dict": WEIGHTS, "optimizer": {"step": 3}, "epoch": 5},
    "in state_dict": {"state_dict": with_prefix("module."), "epoch": 5},
    "twice": {"model": {"state_dict": WEIGHTS}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_others_put_around_weights_is_taken_off(tmp_path, how):
    torch.save(WRAPPED[how], tmp_path / "theirs")
    assert_the_weights(read_weights(tmp_path / "theirs"))


class Executed:
    def __reduce__(self):
        return pytest.fail, ("the pickle was executed",)


with warnings.catch_warnings():  # "a prototype"
    warnings.simplefilter("ignore")
    NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
HOLDS_ITSELF = {}
HOLDS_ITSELF["model"] = HOLDS_ITSELF
TABLE_2 = "model.inner.embed_tokens.embedding_weight"
NO_CHECKPOINTS = {
    "a list": ([1, 2], "names -> tensors, but holds a list"),
    "nothing": ({}, "names -> tensors, but holds a dict"),
    "a config": ({"lr": 1e-4, "seed": 0}, "names -> tensors, but holds lr, seed"),
    "numbers as names": ({1: torch.ones(2)}, "names -> tensors, but holds 1"),
    "both": (with_prefix("module.") | with_prefix("module._orig_mod."), "holds some tensors twice"),
    "in itself": (HOLDS_ITSELF, "names -> tensors, but holds model"),
    "nested": ({"w": NESTED}, "w is a nested tensor"),
    "without values": ({"w": torch.ones(2, device="meta")}, r"w is a valueless \(meta\) tensor"),
    "sparse": ({"w": torch.eye(3).to_sparse()}, "w is a sparse_coo tensor, where plain ones are expected"),
    "no table": ({TABLE_2: torch.ones(3)}, "has 1 axes, where a table of 2 is expected"),
    "code": (Executed(), "is not a readable checkpoint: damaged, or it holds more than tensors"),
}


@pytest.mark.parametrize("what", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path, what):
    value, message = NO_CHECKPOINTS[what]
    torch.save(value, tmp_path / "theirs")
    with pytest.raises(UserError, match=message) as refused:
        read_weights(tmp_path / "theirs")
    assert str(refused.value).startswith(f"{tmp_path / 'theirs'}")


OTHER_TENSORS = {
    "complex": (lambda w: w.to(torch.complex64), r"holds torch\.complex64, where torch\.float32 is expected"),
    "integers": (lambda w: w.to(torch.int64), r"holds torch\.int64, where torch\.float32 is expected"),
    "not a number": (lambda w: w.index_fill(1, torch.tensor(3), torch.nan), "has values that are not finite"),
    "infinite": (lambda w: w.half().index_fill(1, torch.tensor(3), torch.inf), "has values that are not finite"),
    "too large": (lambda w: w.double().fill_(1e300), "has values that are not finite"),
    "another shape": (lambda w: w[:, :-1], r"is \(\d+, \d+\), the dataset and config need"),
}


@pytest.mark.parametrize("what", OTHER_TENSORS)
def test_tensors_of_another_kind_are_refused(tmp_path, what):
    change, message = OTHER_TENSORS[what]
    weights = load(PIPELINE / "init_checkpoint.pt")
    head = arch_config(TRAJECTORY["config"]["arch"]).build(
        batch_size=8, seq_len=16, vocab_size=6, num_puzzle_identifiers=1
    )
    weights["model.inner.lm_head.weight"] = change(weights["model.inner.lm_head.weight"])
    torch.save(weights, tmp_path / "theirs")
    with pytest.raises(UserError, match=f"model.inner.lm_head.weight:? {message}"):
        load_weights(head, tmp_path / "theirs")


def test_names_of_another_model_are_named(tmp_path):
    head = arch_config(TRAJECTORY["config"]["arch"]).build(
        batch_size=8, seq_len=16, vocab_size=6, num_puzzle_identifiers=1
    )
    torch.save(WEIGHTS, tmp_path / "theirs")
    with pytest.raises(UserError, match=r"2 unknown \(.* is missing, a\.weight is unknown\); rename them: the"):
        load_weights(head, tmp_path / "theirs")


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
        pretrain(folder, epochs=4, resume="true", **LIGHT)
    first, second = json.loads((folder / "environment.json").read_text())
    assert first["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert any(argument.endswith("pretrain.py") for argument in second["command"])
    assert first["ranks"] == 1
    assert first["git_commit"] is None or len(first["git_commit"].removesuffix("-dirty")) == 40


OLD_NAME = f"cpu ({platform.machine()})"  # an earlier version's word for any processor


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({}, ""),
        ({"device": "cpu (Other, AVX512)"}, "in place of cpu (Other, AVX512): from here on its last digits"),
        ({"packages": {"torch": "1.0"}, "threads": 77}, "in place of 1.0; threads "),
        ({"threads": 77}, "in place of 77"),
        ({"device": OLD_NAME}, ""),
        ({"device": None, "packages": [], "threads": None}, ""),
        ({"device": "a\nb", "packages": {"torch": 2}, "threads": "1"}, ""),
        ({"device": "", "packages": {"torch": "x" * 5000}, "threads": True}, ""),
    ],
)
@pytest.mark.parametrize("branch", [False, True])
def test_a_run_that_goes_on_where_sums_are_rounded_otherwise_says_so(tmp_path, caplog, before, said, branch):
    run = tmp_path / "run"
    starts_of(run, {"first_step": 0})
    resumed_at(8, run, run)
    assert not caplog.text
    starts_of(run, {"first_step": 0} | before)
    content = (run / "environment.json").read_bytes()
    resumed_at(8, run, tmp_path / "branch" if branch else run)
    assert said in caplog.text and bool(said) == bool(caplog.text)
    assert not branch or (run / "environment.json").read_bytes() == content


def starts_of(run, *changes: dict) -> None:
    """Of this processor, but for these changes."""
    run.mkdir(exist_ok=True)
    (run / "environment.json").unlink(missing_ok=True)
    record_environment(run, Ranks(0, 1, 0), torch.device("cpu"))
    start = json.loads((run / "environment.json").read_text())[0]
    assert torch.backends.cpu.get_cpu_capability() in start["device"]
    (run / "environment.json").write_text(json.dumps([start | change for change in changes]))


def resumed_at(step: int, run, folder) -> None:
    folder.mkdir(exist_ok=True)
    record_environment(folder, Ranks(0, 1, 0), torch.device("cpu"), {"first_step": step}, run / f"state_{step}")


def test_a_state_is_compared_with_the_start_that_saved_it(tmp_path, caplog):
    """Going back to one from before another processor, or after a start there that saved nothing."""
    other = {"device": "cpu (Other, AVX512)", "first_step": 8}
    for step in (4, 8):
        starts_of(tmp_path, {"first_step": 0}, other)
        resumed_at(step, tmp_path, tmp_path)
        assert not caplog.text
    resumed_at(12, tmp_path, tmp_path)
    assert not caplog.text  # by the start at 8 on this processor, which is the last one
    starts_of(tmp_path, {"first_step": 0}, other)
    resumed_at(12, tmp_path, tmp_path)
    assert "state_12 goes on with device cpu" in caplog.text


def test_a_branch_leaves_a_damaged_record_of_the_other_run_alone(tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text("{")
    branch = tmp_path / "branch"
    starts_of(branch, {"device": "cpu (Other, AVX512)", "first_step": 0})  # which did not save the other run's state
    resumed_at(8, run, branch)
    assert [path.name for path in run.iterdir()] == ["environment.json"] and not caplog.text


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (b"processor: 0\nmodel name\t: A: B\n", "A: B"),
        (b"model name\nmodel name :\nmodel name\t: C\n", "C"),
        (b"model name : \xff\n", "\ufffd"),
        (b"", None),
        (None, None),
    ],
)
def test_the_processor_has_a_name_whatever_the_system_says(tmp_path, monkeypatch, cpuinfo, name):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_bytes(cpuinfo)
    monkeypatch.setattr("training.distributed.Path", lambda path: tmp_path / Path(path).name)
    assert processor_name() == (name or platform.processor() or platform.machine())
