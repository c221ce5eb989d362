"""Both formats of predictions, written and read: python -m pytest tests/test_predictions.py"""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

from errors import UserError
from tests.runs import PIPELINE
from tests.tiny_model import EXAMPLES, SEQ_LEN, VOCAB, build_model, every_step, in_two_sets, open_test_split
from training.distributed import Ranks
from training.evaluation import evaluate_split
from training.predictions import PredictionWriter, read_manifest, read_predictions, save_predictions

DATA = PIPELINE / "dataset"
ALL = ["inputs", "labels", "puzzle_identifiers", "logits", "q_halt_logits", "q_continue_logits"]
ONE = Ranks(0, 1, 0)
FIELDS = ("inputs", "labels", "puzzle_identifiers", "answers", "q_halt_logits", "q_continue_logits")


class InTurn(Ranks):
    """A rank of several that take turns in one process: nobody waits."""

    def barrier(self):
        pass

    def broadcast_object(self, value):
        return value

    def sum_to_main(self, values):
        return values


def writer_for(prefix, dataset, ranks=ONE, **options):
    return PredictionWriter(prefix, dataset, ranks, checkpoint="run/step_1", halt="max", max_steps=4, **options)


def save_compact(prefix, path=DATA, ranks=1, **changes):
    """Evaluate, and leave compact predictions; the ranks one after another, the first leaves last."""
    head = build_model()
    datasets = [open_test_split(path, rank, ranks, **changes) for rank in range(ranks)]
    members = [InTurn(rank, ranks, 0) for rank in range(ranks)]
    writers = [writer_for(prefix, dataset, rank) for dataset, rank in zip(datasets, members, strict=True)]
    for writer in writers:
        writer.__enter__()
    for dataset, rank, writer in reversed(list(zip(datasets, members, writers, strict=True))):
        evaluate_split(head, dataset, rank, torch.device("cpu"), [], writer=writer)
        writer.__exit__(None, None, None)


def save_torch(prefix, path=DATA, ranks=1, **changes):
    head = build_model()
    for rank in range(ranks):
        dataset = open_test_split(path, rank, ranks, **changes)
        _, saved = evaluate_split(head, dataset, InTurn(rank, ranks, 0), torch.device("cpu"), ALL)
        save_predictions(prefix.parent, prefix.name, rank, saved)


SAVE = {"compact": save_compact, "torch": save_torch}


def read(prefix, path=DATA, **options):
    chunks = list(read_predictions(prefix, path, **options))
    assert all(len(chunk.inputs) <= options.get("rows", 4096) for chunk in chunks)
    return {field: np.concatenate([getattr(chunk, field) for chunk in chunks]) for field in FIELDS}


def expected_order(ranks, examples):
    """Rank after rank, of each batch of 8 its share."""
    whole = [examples[start : start + 8] for start in range(0, len(examples), 8)]
    size = 8 // ranks
    return np.concatenate([batch[rank * size : (rank + 1) * size] for rank in range(ranks) for batch in whole])


@pytest.fixture(scope="module")
def expected():
    """What a plain loop over all examples at once gives."""
    steps = every_step(build_model())
    last = {key: steps[key][:, -1] for key in ("q_halt_logits", "q_continue_logits")}
    return steps | last | {"answers": steps["logits"][:, -1].argmax(-1)}


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("rows", [4096, 5])
def test_rows_equal_a_plain_loop(tmp_path, expected, form, ranks, rows):
    SAVE[form](tmp_path / "step_1", ranks=ranks)
    found = read(tmp_path / "step_1", rows=rows)
    order = expected_order(ranks, np.arange(EXAMPLES))
    for field in ("inputs", "labels", "puzzle_identifiers", "answers"):
        np.testing.assert_array_equal(found[field], expected[field][order])
    for field in ("q_halt_logits", "q_continue_logits"):
        np.testing.assert_allclose(found[field], expected[field][order], rtol=0, atol=2e-5)
        assert found[field].dtype == np.float32


@pytest.mark.parametrize("form", SAVE)
def test_a_subset_of_two_sets(tmp_path, expected, form):
    """`max_examples` holds for each set."""
    data = in_two_sets(tmp_path / "data")
    SAVE[form](tmp_path / "step_1", data, max_examples=10)
    found = read(tmp_path / "step_1", data)
    subset = np.sort(np.random.default_rng(7).choice(13, 10, replace=False))
    order = np.concatenate([subset, np.arange(13, EXAMPLES)])
    for field in ("inputs", "labels", "answers"):
        np.testing.assert_array_equal(found[field], expected[field][order])
    if form == "compact":
        examples = np.load(tmp_path / "step_1_preds/examples.0.npy")
        np.testing.assert_array_equal(examples, order)
        manifest = read_manifest(tmp_path / "step_1")
        assert manifest["sets"] == {"a": 13, "b": 8}
        assert manifest["examples"] == 18


def test_identifiers_come_from_the_puzzle_of_an_example(tmp_path):
    """Puzzles of several examples, the labels of some cells ignored."""
    rng = np.random.default_rng(0)
    sizes = np.array([3, 1, 2, 4])
    split = tmp_path / "data/test"
    split.mkdir(parents=True)
    metadata = json.loads((DATA / "test/dataset.json").read_text())
    metadata |= dict(total_groups=4, mean_puzzle_examples=2.5, num_puzzle_identifiers=9, sets=["all"])
    (split / "dataset.json").write_text(json.dumps(metadata))
    inputs, labels = rng.integers(0, VOCAB, (2, 10, SEQ_LEN))
    arrays = dict(inputs=inputs, labels=labels, puzzle_identifiers=[5, 8, 2, 7], group_indices=np.arange(5))
    for field, values in (arrays | {"puzzle_indices": [0, *np.cumsum(sizes)]}).items():
        np.save(split / f"all__{field}.npy", np.asarray(values))
    dataset = open_test_split(tmp_path / "data")
    with writer_for(tmp_path / "step_1", dataset) as writer:
        for _, _, examples in dataset.test_batches():
            n = len(examples)
            answers, zeros = np.full((n, SEQ_LEN), 3), np.zeros(n)
            writer.append(
                dict(examples=examples, answers=answers, steps=zeros, q_halt_logits=zeros, q_continue_logits=zeros)
            )
    found = read(tmp_path / "step_1", tmp_path / "data", rows=4)
    np.testing.assert_array_equal(found["puzzle_identifiers"], [5, 5, 5, 8, 2, 2, 7, 7, 7, 7])
    np.testing.assert_array_equal(found["inputs"], inputs)
    np.testing.assert_array_equal(found["labels"], np.where(labels == 0, -100, labels))


def test_the_manifest_says_what_was_evaluated(tmp_path):
    save_compact(tmp_path / "step_1", ranks=2)
    manifest = read_manifest(tmp_path / "step_1")
    assert len(manifest.pop("dataset_digest")) == 16
    assert manifest == {
        "format": 1, "dataset": str(DATA), "split": "test", "sets": {"all": 21}, "examples": 21, "seq_len": 16,
        "vocab_size": 6, "checkpoint": "run/step_1", "halt": "max", "max_steps": 4, "world_size": 2,
        "fields": ["examples", "answers", "q_halt_logits", "q_continue_logits", "steps"],
    }  # fmt: skip
    types = {field: np.load(tmp_path / f"step_1_preds/{field}.1.npy").dtype.name for field in manifest["fields"]}
    assert list(types.values()) == ["int64", "uint8", "float32", "float32", "uint16"]
    assert len(list((tmp_path / "step_1_preds").iterdir())) == 11
    assert os.listdir(tmp_path) == ["step_1_preds"]


def test_a_rank_without_examples_has_empty_files(tmp_path, expected):
    save_compact(tmp_path / "step_1", ranks=8, max_examples=3)
    assert np.load(tmp_path / "step_1_preds/answers.7.npy").shape == (0, 16)
    assert len(read(tmp_path / "step_1")["answers"]) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_evaluation_leaves_the_one_before(tmp_path, error):
    def interrupt():
        raise error

    prefix, dataset = tmp_path / "step_1", open_test_split()
    for before in (False, True):
        with pytest.raises(error), writer_for(prefix, dataset) as writer:
            evaluate_split(build_model(), dataset, ONE, torch.device("cpu"), [], writer=writer, after_batch=interrupt)
        assert os.listdir(tmp_path) == ["step_1_preds"] * before
        if before:
            assert len(read(prefix)["answers"]) == EXAMPLES
        else:
            with pytest.raises(UserError, match="no predictions of"):
                read_predictions(prefix, DATA)
            save_compact(prefix)


def test_a_killed_evaluation_is_not_read(tmp_path):
    """Nothing runs after SIGKILL: the files stay, under another name, and the next evaluation is not disturbed."""
    dataset = open_test_split()
    writer = writer_for(tmp_path / "step_1", dataset).__enter__()
    evaluate_split(build_model(), dataset, ONE, torch.device("cpu"), [], writer=writer)
    with pytest.raises(UserError, match="no predictions of"):
        read_predictions(tmp_path / "step_1", DATA)
    save_compact(tmp_path / "step_1")
    assert len(read(tmp_path / "step_1")["answers"]) == EXAMPLES


def test_a_full_disk_is_told_in_a_line(tmp_path, monkeypatch):
    save_compact(tmp_path / "step_1")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dataset.format.NpyStream.append", full)
    with pytest.raises(UserError, match=r"cannot write predictions to .*step_1_preds: No space left"):
        save_compact(tmp_path / "step_1")
    assert os.listdir(tmp_path) == ["step_1_preds"]
    assert len(read(tmp_path / "step_1")["answers"]) == EXAMPLES


def test_the_newer_format_is_read(tmp_path):
    prefix = tmp_path / "step_1"
    save_torch(prefix)
    save_compact(prefix, max_examples=5)
    assert len(read(prefix)["answers"]) == 5
    later = (tmp_path / "step_1_preds/manifest.json").stat().st_mtime + 1
    os.utime(tmp_path / "step_1_all_preds.0", (later, later))
    assert len(read(prefix)["answers"]) == EXAMPLES


def test_fewer_fields_in_the_original_format(tmp_path, expected):
    """As other people's scripts save them: answers in place of logits, or half-precision logits, without labels."""
    prefix = tmp_path / "step_1"
    save_torch(prefix)
    whole = torch.load(tmp_path / "step_1_all_preds.0", weights_only=True)
    part = {key: whole[key] for key in ("inputs", "puzzle_identifiers", "q_halt_logits")}
    for answers in (
        {"predictions": whole["logits"].argmax(-1).to(torch.uint8)},
        {"logits": whole["logits"].bfloat16()},
    ):
        save_predictions(tmp_path, "step_1", 0, part | answers)
        (rows,) = read_predictions(prefix, DATA)
        assert rows.labels is None
        assert rows.q_continue_logits is None
        assert rows.answers.shape == (EXAMPLES, SEQ_LEN)  # padding is found by the inputs
        if "predictions" in answers:
            np.testing.assert_array_equal(rows.answers, expected["answers"])
        else:
            assert (rows.answers == expected["answers"]).mean() > 0.98


def drop(name):
    return lambda folder: (folder / name).unlink()


def truncate(name):
    return lambda folder: os.truncate(folder / name, 200)


def replace(name, rows):
    return lambda folder: np.save(folder / name, np.asarray(rows))


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def edit_manifest(**changes):
    def change(folder):
        path = folder / "step_1_preds/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


COMPACT_DAMAGE = {
    "no manifest": (drop("step_1_preds/manifest.json"), "no manifest.json, it is not complete, and no .*_all_preds.0"),
    "half a manifest": (write("step_1_preds/manifest.json", '{"form'), "manifest.json is damaged"),
    "a later format": (edit_manifest(format=2), "has format 2, this version reads 1"),
    "a rank's file": (drop("step_1_preds/steps.1.npy"), "steps.1.npy is missing, .* is not complete"),
    "a rank": (edit_manifest(world_size=3), "examples.2.npy is missing"),
    "rows": (edit_manifest(examples=25), "has 21 of 25 examples"),
    "half a file": (truncate("step_1_preds/answers.0.npy"), "answers.0.npy is damaged"),
    "unequal files": (replace("step_1_preds/steps.0.npy", [1, 2]), "rank 0 has unequal files"),
    "beyond the split": (replace("step_1_preds/examples.1.npy", [*range(4, 12), 21]), "does not ascend within 0..20"),
    "an example twice": (replace("step_1_preds/examples.1.npy", [*range(4, 12), 11]), "does not ascend"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPACT_DAMAGE)
def test_damaged_compact_predictions_are_refused(compact_predictions, tmp_path, name):
    damage, message = COMPACT_DAMAGE[name]
    shutil.copytree(compact_predictions, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "run" / "step_1", DATA)


@pytest.fixture(scope="module")
def compact_predictions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact")
    save_compact(folder / "step_1", ranks=2)
    return folder


def test_another_dataset_or_split_is_refused(compact_predictions, tmp_path):
    prefix = compact_predictions / "step_1"
    with pytest.raises(UserError, match=rf"for {DATA}/test, not for {DATA}/train"):
        read_predictions(prefix, DATA, "train")
    with pytest.raises(UserError, match=r"not for .*two/test; name the dataset and split"):
        read_predictions(prefix, in_two_sets(tmp_path / "two"))
    with pytest.raises(UserError, match="no dataset at"):
        read_predictions(prefix, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"there is no .*step_2_preds, and no .*step_2_all_preds.0; run evaluate.py"):
        read_predictions(compact_predictions / "step_2", DATA)


def rewrite(**changes):
    """Change fields of rank 0's dictionary; None takes one out."""

    def change(folder):
        path = folder / "step_1_all_preds.0"
        part = torch.load(path, weights_only=True) | changes
        torch.save({key: value for key, value in part.items() if value is not None}, path)

    return change


TORCH_DAMAGE = {
    "a rank": (drop("step_1_all_preds.0"), "step_1_all_preds.1 is there, but not that of rank 0"),
    "half a file": (truncate("step_1_all_preds.0"), "does not hold saved predictions"),
    "a list": (lambda folder: torch.save([1], folder / "step_1_all_preds.0"), "names -> tensors"),
    "fields": (rewrite(logits=None, inputs=None), "holds no inputs, logits; evaluate again and save them"),
    "rows": (rewrite(inputs=torch.zeros(3, SEQ_LEN)), "not equally long"),
    "length": (rewrite(inputs=torch.zeros(12, 81)), "predictions for another dataset"),
    "identifiers": (rewrite(puzzle_identifiers=torch.full((12,), 7)), "predictions for another dataset"),
}


@pytest.fixture(scope="module")
def torch_predictions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    save_torch(folder / "step_1", ranks=2)
    return folder


@pytest.mark.parametrize("name", TORCH_DAMAGE)
def test_damaged_torch_predictions_are_refused(torch_predictions, tmp_path, name):
    damage, message = TORCH_DAMAGE[name]
    shutil.copytree(torch_predictions, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "run" / "step_1", DATA)


def test_tokens_beyond_a_byte_are_refused(tmp_path):
    shutil.copytree(DATA, tmp_path / "data")
    path = tmp_path / "data/test/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 257}))
    with pytest.raises(UserError, match="vocabulary of 257; use save_format=torch"):
        writer_for(tmp_path / "step_1", open_test_split(tmp_path / "data"))


def test_rows_that_are_missing_are_noticed(tmp_path):
    with pytest.raises(AssertionError, match="0 of 21 examples"), writer_for(tmp_path / "step_1", open_test_split()):
        pass
    assert os.listdir(tmp_path) == []
