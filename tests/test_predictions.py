"""Both formats of predictions, written and read: python -m pytest tests/test_predictions.py"""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch

from dataset.format import content_digest
from errors import UserError
from tests.runs import PIPELINE
from tests.tiny_model import EXAMPLES, SEQ_LEN, VOCAB, build_model, every_step, in_two_sets, open_test_split
from training.distributed import Ranks
from training.evaluation import evaluate_split
from training.predictions import PredictionWriter, read_manifest, read_predictions
from training.torch_predictions import save_torch, torch_paths

DATA = PIPELINE / "dataset"
ALL = ["inputs", "labels", "puzzle_identifiers", "logits", "q_halt_logits", "q_continue_logits"]
ONE = Ranks(0, 1, 0)
FIELDS = ("inputs", "labels", "puzzle_identifiers", "answers", "q_halt_logits", "q_continue_logits")


class InTurn(Ranks):
    """A rank of several that take turns in one process: nobody waits."""

    def barrier(self):
        pass

    def broadcast_object(self, value):
        if self.is_main:
            InTurn.said = value
        return InTurn.said

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


def save_dictionaries(prefix, path=DATA, ranks=1, **changes):
    head = build_model()
    for rank in range(ranks):
        dataset = open_test_split(path, rank, ranks, **changes)
        _, saved = evaluate_split(head, dataset, InTurn(rank, ranks, 0), torch.device("cpu"), ALL)
        save_torch(prefix, saved, InTurn(rank, ranks, 0))


SAVE = {"compact": save_compact, "torch": save_dictionaries}


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
        assert manifest.sets == {"a": 13, "b": 8}
        assert manifest.examples == 18


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
    manifest = json.loads((tmp_path / "step_1_preds/manifest.json").read_text())
    assert len(manifest.pop("dataset_digest")) == 16
    assert manifest.pop("data") == content_digest(DATA / "test")
    digests = manifest.pop("digests")
    assert manifest == {
        "format": 1, "dataset": str(DATA), "split": "test", "sets": {"all": 21}, "examples": 21, "seq_len": 16,
        "vocab_size": 6, "checkpoint": "run/step_1", "halt": "max", "max_steps": 4, "world_size": 2,
        "fields": ["examples", "answers", "q_halt_logits", "q_continue_logits", "steps"],
    }  # fmt: skip
    types = {field: np.load(tmp_path / f"step_1_preds/{field}.1.npy").dtype.name for field in manifest["fields"]}
    assert list(types.values()) == ["int64", "uint8", "float32", "float32", "uint16"]
    files = {f"{field}.{rank}.npy" for field in types for rank in range(2)}
    assert digests == {
        name: hashlib.sha256(np.load(tmp_path / "step_1_preds" / name).tobytes()).hexdigest() for name in files
    }
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

    monkeypatch.setattr("dataset.arrays.NpyStream.append", full)
    with pytest.raises(UserError, match=r"cannot write predictions to .*step_1_preds: No space left"):
        save_compact(tmp_path / "step_1")
    assert os.listdir(tmp_path) == ["step_1_preds"]
    assert len(read(tmp_path / "step_1")["answers"]) == EXAMPLES


def test_the_newer_format_is_read(tmp_path):
    prefix = tmp_path / "step_1"
    save_dictionaries(prefix)
    save_compact(prefix, max_examples=5)
    assert len(read(prefix)["answers"]) == 5
    later = (tmp_path / "step_1_preds/manifest.json").stat().st_mtime + 1
    os.utime(tmp_path / "step_1_all_preds.0", (later, later))
    assert len(read(prefix)["answers"]) == EXAMPLES


def test_dictionaries_of_more_ranks_are_replaced(tmp_path):
    """Else those of ranks that are no more would be read as well."""
    prefix = tmp_path / "step_1"
    save_dictionaries(prefix, ranks=4)
    assert list(torch_paths(prefix)) == [0, 1, 2, 3]
    save_dictionaries(prefix, ranks=2)
    assert list(torch_paths(prefix)) == [0, 1]
    assert len(read(prefix)["answers"]) == EXAMPLES


def test_fewer_fields_in_the_original_format(tmp_path, expected):
    """As other people's scripts save them: answers in place of logits, or half-precision logits, without labels."""
    prefix = tmp_path / "step_1"
    save_dictionaries(prefix)
    whole = torch.load(tmp_path / "step_1_all_preds.0", weights_only=True)
    part = {key: whole[key] for key in ("inputs", "puzzle_identifiers", "q_halt_logits")}
    for answers in (
        {"predictions": whole["logits"].argmax(-1).to(torch.uint8)},
        {"logits": whole["logits"].bfloat16()},
    ):
        save_torch(prefix, part | answers, ONE)
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


def edit_manifest(drop=(), **changes):
    def change(folder):
        path = folder / "step_1_preds/manifest.json"
        manifest = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in manifest.items() if key not in drop}))

    return change


def undigested(name, rows):
    """Replace a file of compact predictions where none of them has a digest, as in those of earlier versions."""

    def change(folder):
        edit_manifest(digests={})(folder)
        np.save(folder / "step_1_preds" / name, np.asarray(rows), allow_pickle=True)

    return change


def flip(name, byte):
    def change(folder):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[byte] ^= 1
        path.write_bytes(data)

    return change


def header(name, text):
    """A .npy file whose header is `text`."""

    def change(folder):
        edit_manifest(digests={})(folder)
        text_bytes = text.encode("latin-1").ljust(118) + b"\n"
        path = folder / "step_1_preds" / name
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(text_bytes).to_bytes(2, "little") + text_bytes + bytes(1000))

    return change


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
MANIFEST, ANSWERS = "step_1_preds/manifest.json", np.zeros((12, SEQ_LEN), np.uint8)
NPY = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }"
COMPACT_DAMAGE = {
    "no manifest": (drop(MANIFEST), "no manifest.json, it is not complete, and no .*_all_preds.0"),
    "half a manifest": (write(MANIFEST, '{"form'), "manifest.json is not JSON"),
    "nested": (write(MANIFEST, "[" * 100_000), "manifest.json is nested too deeply"),
    "a list": (write(MANIFEST, "[1]"), r"manifest.json is damaged \(Input should be"),
    "an LFS pointer": (write(MANIFEST, LFS), "git lfs pull"),
    "a later format": (edit_manifest(format=2), "has format 2, this version reads 1"),
    "a word for a number": (edit_manifest(examples="21"), r"damaged \(examples: Input should be a valid integer\)"),
    "a number below zero": (edit_manifest(world_size=-1), "world_size: Input should be greater than or equal to 1"),
    "no ranks": (edit_manifest(world_size=0), "world_size: Input should be greater"),
    "a billion ranks": (edit_manifest(world_size=10**9), "examples.2.npy is missing"),
    "a key": (edit_manifest(["split"]), r"damaged \(split: Field required\)"),
    "a field": (edit_manifest(fields=["examples", "answers"]), "its fields hold no q_halt_logits"),
    "a path as field": (
        edit_manifest(fields=["examples", "answers", "q_halt_logits", "q_continue_logits", "../x"]),
        r"its fields hold '\.\./x', which no version writes",
    ),
    "another width": (edit_manifest(seq_len=81), "holds predictions for .*, not for"),
    "another vocabulary": (edit_manifest(vocab_size=12), "holds predictions for .*, not for"),
    "a rank's file": (drop("step_1_preds/steps.1.npy"), "steps.1.npy is missing; .*not complete: run evalu"),
    "a rank": (edit_manifest(world_size=3), "examples.2.npy is missing"),
    "rows": (edit_manifest(examples=25), "has 21 of 25 examples"),
    "half a file": (truncate("step_1_preds/answers.0.npy"), "answers.0.npy: it is truncated"),
    "a file of nothing": (write("step_1_preds/answers.0.npy", ""), "answers.0.npy: it is truncated"),
    "a pointer for a file": (write("step_1_preds/answers.0.npy", LFS), "it is a pointer of Git LFS.*git lfs pull"),
    "a flipped bit": (flip("step_1_preds/answers.1.npy", -3), "answers.1.npy is damaged: .*its digest differs"),
    "a flipped bit of a q": (flip("step_1_preds/q_halt_logits.0.npy", 128), "its digest differs"),
    "unequal files": (undigested("steps.0.npy", np.zeros(2, np.uint16)), "rank 0 has unequal files"),
    "one axis": (undigested("answers.0.npy", ANSWERS[:, 0]), r"holds uint8 of shape \(12,\), not uint8 of"),
    "no axis": (undigested("answers.0.npy", np.uint8(1)), r"holds uint8 of shape \(\), not uint8"),
    "three axes": (undigested("q_halt_logits.0.npy", np.zeros((12, 1), "f4")), r"not float32 of shape \(n,\)"),
    "64 bits": (undigested("answers.0.npy", ANSWERS.astype(int)), "holds int64 of shape .*, not uint8"),
    "complex": (undigested("q_halt_logits.0.npy", np.zeros(12, "c8")), "holds complex64, not numbers"),
    "time": (undigested("examples.0.npy", np.zeros(12, "m8[s]")), r"holds timedelta64\[s\], not numbers"),
    "unsigned": (undigested("examples.0.npy", np.arange(12, dtype="u8")), "holds uint64 .*, not int64"),
    "objects": (undigested("answers.0.npy", np.array([{}] * 12)), "answers.0.npy: it holds object, not numbers"),
    "fields of fields": (undigested("answers.0.npy", np.zeros(12, "u1,u1")), "not numbers"),
    "an archive": (lambda folder: np.savez(open(folder / "step_1_preds/answers.0.npy", "wb"), a=1), "an archive"),
    "a header of a large file": (header("answers.0.npy", NPY % "10**12, 16"), "answers.0.npy: it is truncated"),
    "10^12 rows": (header("answers.0.npy", NPY % f"{10**12}, 16"), "answers.0.npy: it is truncated"),
    "10^30 rows": (header("answers.0.npy", NPY % f"{10**30}, 16"), "answers.0.npy: it is truncated"),
    "fewer than no rows": (header("answers.0.npy", NPY % "-1, 16"), "answers.0.npy: it is truncated"),
    "a nested header": (header("answers.0.npy", "(" * 9000), "answers.0.npy: it is truncated"),
    "no header": (header("answers.0.npy", "'"), "answers.0.npy: it is truncated"),
    "beyond the split": (undigested("examples.1.npy", [*range(4, 12), 21]), "does not ascend within 0..20"),
    "an example twice": (undigested("examples.1.npy", [*range(4, 12), 11]), "does not ascend"),
    "an example of two ranks": (undigested("examples.1.npy", [0, *range(12, 20)]), "two ranks for the same example"),
    "below zero": (undigested("examples.1.npy", range(-1, 8)), "does not ascend"),
    "no token": (undigested("answers.0.npy", ANSWERS + 6), r"answers.0.npy is damaged: answers holds 6, outside 0..5"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPACT_DAMAGE)
def test_damaged_compact_predictions_are_refused(compact_predictions, tmp_path, name):
    damage, message = COMPACT_DAMAGE[name]
    shutil.copytree(compact_predictions, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message) as refused:
        list(read_predictions(tmp_path / "run" / "step_1", DATA))
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def compact_predictions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact")
    save_compact(folder / "step_1", ranks=2)
    return folder


def rebuilt(folder):
    """The same puzzles in another order, as another seed gives them: only the content differs."""
    shutil.copytree(DATA, folder)
    for field in ("inputs", "labels"):
        path = folder / f"test/all__{field}.npy"
        np.save(path, np.load(path)[::-1])
    return folder


def test_a_dataset_that_was_built_anew_is_refused_by_name(compact_predictions, tmp_path):
    prefix, data = compact_predictions / "step_1", rebuilt(tmp_path / "data")
    with pytest.raises(UserError, match=r"built anew or is another; .*or give other_data=true") as refused:
        read_predictions(prefix, data)
    for named in (f"{DATA}/test of content {content_digest(DATA / 'test')}", f"{data}/test has content"):
        assert named in str(refused.value)
    assert len(read(prefix, data, other_data=True)["answers"]) == EXAMPLES


def test_predictions_of_earlier_versions_are_read(compact_predictions, tmp_path):
    """They recorded no content and no digests."""
    shutil.copytree(compact_predictions, tmp_path / "run")
    edit_manifest(["data", "digests"])(tmp_path / "run")
    found, now = read(tmp_path / "run/step_1", rebuilt(tmp_path / "data")), read(compact_predictions / "step_1")
    np.testing.assert_array_equal(found["answers"], now["answers"])


@pytest.mark.parametrize("field", ["q_halt_logits", "q_continue_logits", "logits"])
@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_passed_over(compact_predictions, torch_predictions, tmp_path, caplog, form, field, value):
    if field == "logits" and (form == "compact" or not np.isnan(value)):
        return  # a compact folder has none, and a model may forbid a token
    shutil.copytree({"compact": compact_predictions, "torch": torch_predictions}[form], tmp_path / "run")
    expected = read(tmp_path / "run/step_1")
    if form == "compact":
        name = f"{field}.0.npy"
        rows = np.load(tmp_path / "run/step_1_preds" / name)
        rows[[2, 5]] = value
        undigested(name, rows)(tmp_path / "run")
    else:
        rewrite(**{field: lambda tensor: tensor.index_fill(0, torch.tensor([2, 5]), value)})(tmp_path / "run")
    found = read(tmp_path / "run/step_1", rows=4)
    for key, rows in expected.items():
        np.testing.assert_array_equal(found[key], np.delete(rows, [2, 5], axis=0))
    (warning,) = caplog.messages
    name = {"compact": "step_1_preds/answers.0.npy", "torch": "step_1_all_preds.0"}[form]
    assert warning.startswith("passing over 2 of 12 predictions that are no numbers")
    assert warning.endswith(name)


def test_a_dataset_that_was_built_anew_where_it_was_is_called_so(tmp_path):
    data = shutil.copytree(DATA, tmp_path / "data")
    save_compact(tmp_path / "step_1", path=data)
    edit_manifest(dataset=str(data))(tmp_path)
    text = (data / "test/dataset.json").read_text()
    (data / "test/dataset.json").write_text(text.replace('"total_groups": ', '"total_groups": 1'))
    with pytest.raises(
        UserError, match=rf"predictions for {data}/test, as it was before it was built anew; evaluate aga"
    ):
        read_predictions(tmp_path / "step_1", data)


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
    """Change fields of rank 0's dictionary, or call what is given with one; None takes one out."""

    def change(folder):
        path = folder / "step_1_all_preds.0"
        part = torch.load(path, weights_only=True)
        new = {key: value(part[key]) if callable(value) else value for key, value in changes.items()}
        torch.save({key: value for key, value in (part | new).items() if value is not None}, path)

    return change


def fill(value):
    return lambda tensor: torch.full_like(tensor, value)


def stretched(tensor):
    """A million million rows of one stored number."""
    return torch.zeros(1, dtype=tensor.dtype).expand(10**12)


N, TORCH = 12, "step_1_all_preds.0"
IDS = torch.zeros(N, dtype=torch.int32)
TORCH_DAMAGE = {
    "a rank": (drop(TORCH), "step_1_all_preds.1 is there, but not that of rank 0"),
    "a distant rank": (
        lambda folder: (folder / TORCH).rename(folder / "step_1_all_preds.999999"),
        "step_1_all_preds.999999 is there, but not that of rank 0",
    ),
    "the file of another rank": (
        lambda folder: shutil.copy(folder / "step_1_all_preds.1", folder / TORCH),
        "step_1_all_preds.0 and .*step_1_all_preds.1 hold the same predictions",
    ),
    "half a file": (truncate(TORCH), "does not hold saved predictions"),
    "nothing": (write(TORCH, ""), "does not hold saved predictions"),
    "an LFS pointer": (write(TORCH, LFS), "git lfs pull"),
    "a flipped bit": (flip(TORCH, 6000), "is damaged: the checksum of its part .* differs"),
    "the format before 1.6": (
        lambda folder: torch.save({"inputs": IDS}, folder / TORCH, _use_new_zipfile_serialization=False),
        "does not hold saved predictions",
    ),
    "a list": (lambda folder: torch.save([1], folder / TORCH), "names -> tensors"),
    "a number": (lambda folder: torch.save({"inputs": 1}, folder / TORCH), "names -> tensors"),
    "no name": (lambda folder: torch.save({1: IDS}, folder / TORCH), "names -> tensors"),
    "an object": (lambda folder: torch.save({"inputs": Ranks(0, 1, 0)}, folder / TORCH), "does not hold saved pred"),
    "fields": (rewrite(logits=None, inputs=None), "holds no inputs, logits; evaluate again and save them"),
    "rows": (rewrite(inputs=torch.zeros(3, SEQ_LEN, dtype=torch.int32)), "not equally long"),
    "length": (rewrite(inputs=torch.zeros(N, 81, dtype=torch.int32)), r"its sequences have \[16, 81\] cells"),
    "another length": (
        rewrite(inputs=torch.zeros(N, 81, dtype=torch.uint8), labels=None, logits=torch.zeros(N, 81, VOCAB)),
        "predictions for another dataset",
    ),
    "another vocabulary": (rewrite(logits=torch.zeros(N, SEQ_LEN, VOCAB + 1)), "predictions for another dataset"),
    "identifiers": (rewrite(puzzle_identifiers=fill(7)), "predictions for another dataset"),
    "identifiers below zero": (rewrite(puzzle_identifiers=fill(-1)), "puzzle_identifiers holds -1"),
    "no axis": (rewrite(q_halt_logits=torch.tensor(1.0)), "q_halt_logits is a tensor of float32 with 0 axes, not"),
    "an axis more": (rewrite(inputs=lambda tensor: tensor[:, None]), "inputs is a tensor of int32 with 3 axes"),
    "float inputs": (rewrite(inputs=torch.zeros(N, SEQ_LEN)), "inputs is a tensor of float32 with 2 axes, not"),
    "booleans": (rewrite(inputs=torch.ones(N, SEQ_LEN, dtype=torch.bool)), "inputs is a tensor of bool"),
    "complex": (rewrite(q_halt_logits=torch.zeros(N, dtype=torch.complex64)), "q_halt_logits is a tensor of complex64"),
    "sparse": (rewrite(inputs=lambda tensor: tensor.to_sparse()), "inputs is a tensor of torch.sparse_coo"),
    "sparse rows": (rewrite(logits=lambda tensor: tensor[:, :, 0].to_sparse_csr()), "is a tensor of torch.sparse_csr"),
    "quantised": (
        rewrite(q_halt_logits=lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)),
        "q_halt_logits is a tensor of qint8|does not hold saved predictions",  # 2.4 cannot map one
    ),
    "8 bits": (rewrite(q_halt_logits=lambda tensor: tensor.to(torch.float8_e5m2)), "is a tensor of float8_e5m2"),
    "no data": (rewrite(q_halt_logits=torch.empty(N, device="meta")), "on meta|does not hold saved predictions"),
    "10^12 rows": (rewrite(q_halt_logits=stretched), "q_halt_logits of shape .1000000000000,. is larger than its data"),
    "no token": (rewrite(inputs=fill(6)), "inputs holds 6, outside 0..5"),
    "a token that wraps": (rewrite(inputs=fill(256)), "inputs holds 256, outside 0..5"),
    "a negative token": (rewrite(inputs=fill(-1)), "inputs holds -1, outside 0..5"),
    "no label": (rewrite(labels=fill(-101)), "labels holds -101"),
    "no answer": (rewrite(predictions=torch.full((N, SEQ_LEN), 9)), "predictions holds 9, outside 0..5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def torch_predictions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    save_dictionaries(folder / "step_1", ranks=2)
    return folder


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse CSR")
@pytest.mark.parametrize("name", TORCH_DAMAGE)
def test_damaged_torch_predictions_are_refused(torch_predictions, tmp_path, name):
    damage, message = TORCH_DAMAGE[name]
    shutil.copytree(torch_predictions, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message) as refused:
        list(read_predictions(tmp_path / "run" / "step_1", DATA))
    assert "\n" not in str(refused.value)


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
