"""Batches against the original's, sampling, and broken datasets: python -m pytest tests/test_puzzle_dataset.py"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.format import PuzzleSet, SplitWriter, write_identifiers
from errors import UserError
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig, sample_batches
from tests.sample_datasets import describe_anew

PIPELINE = Path(__file__).parent / "reference" / "pipeline"


def dataset(path, split="train", rank=0, ranks=1, **changes):
    options = dict(seed=12, global_batch_size=12, epochs_per_iter=3, test_set_mode=split != "train")
    return PuzzleDataset(
        PuzzleDatasetConfig(dataset_path=str(path), rank=rank, num_replicas=ranks, **options | changes), split
    )


@pytest.mark.parametrize(("split", "passes"), [("train", 2), ("test", 1)])
def test_batches_equal_the_original_bit_for_bit(split, passes):
    expected = np.load(PIPELINE / "batches.npz")
    streams = sorted(key.removesuffix("/num_batches") for key in expected if key.endswith("num_batches"))
    streams = [stream for stream in streams if stream.startswith(split)]
    assert len(streams) >= 3  # one rank, and two ranks
    for stream in streams:
        ranks, rank = (int(part[-1]) for part in stream.split("/")[1:3])
        loader = dataset(PIPELINE / "dataset", split, rank, ranks)
        batches = [item for _ in range(passes) for item in loader]
        assert len(batches) == expected[f"{stream}/num_batches"]
        for n, (name, batch, size) in enumerate(batches):
            assert name == "all"
            assert size == expected[f"{stream}/{n}/global_batch_size"]
            for field, tensor in batch.items():
                assert str(tensor.dtype) == "torch.int32"
                np.testing.assert_array_equal(tensor, expected[f"{stream}/{n}/{field}"])


def scalar_batches(rng, group_indices, order, batch_size):
    """The original's loop over groups, for puzzles of one example."""
    batch = []
    for group in order:
        batch.append(int(rng.integers(group_indices[group], group_indices[group + 1])))
        if len(batch) == batch_size:
            yield batch
            batch = []


def test_vectorised_sampling_equals_a_scalar_loop():
    groups, copies, size = 300, 1001, 768
    group_indices = np.arange(0, groups * copies + 1, copies, dtype=np.int32)
    puzzles = PuzzleSet(None, None, None, np.arange(groups * copies + 1, dtype=np.int32), group_indices)
    ours = sample_batches(np.random.Generator(np.random.Philox(3)), puzzles, 400, size)
    rng = np.random.Generator(np.random.Philox(3))
    order = np.concatenate([rng.permutation(groups) for _ in range(400)])
    expected = list(scalar_batches(rng, group_indices, order, size))
    assert len(expected) == 400 * groups // size  # more than one draw of groups, and an incomplete end
    got = list(ours)
    np.testing.assert_array_equal([examples for examples, _ in got], expected)
    np.testing.assert_array_equal([puzzle for _, puzzle in got], expected)


@pytest.fixture
def many_examples(tmp_path):
    """20 groups of 3 puzzles of 1..4 examples; a label names its example, the identifier its puzzle."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, 60)
    total = int(sizes.sum())
    rows = np.stack([np.arange(total) // 100, np.arange(total) % 100], 1) + 1
    for split in ("train", "test"):
        writer = SplitWriter(tmp_path, split, seq_len=2)
        writer.append(rows, rows, puzzle_identifiers=np.arange(60) + 1, puzzle_sizes=sizes, group_sizes=np.full(20, 3))
        writer.finish(vocab_size=128, num_puzzle_identifiers=61)
    write_identifiers(tmp_path, [f"p{i}" for i in range(60)])
    return tmp_path, sizes


def example_numbers(batch):
    return (batch["labels"][:, 0] - 1) * 100 + batch["labels"][:, 1] - 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_one_draw(many_examples, ranks):
    path, sizes = many_examples
    owner = np.repeat(np.arange(60), sizes)
    whole = [batch for _, batch, _ in dataset(path, global_batch_size=16)]
    parts = [[batch for _, batch, _ in dataset(path, rank=r, ranks=ranks, global_batch_size=16)] for r in range(ranks)]
    assert len(whole) > 5
    assert {len(part) for part in parts} == {len(whole)}
    for n, batch in enumerate(whole):
        for field in batch:
            np.testing.assert_array_equal(batch[field], np.concatenate([part[n][field] for part in parts]))
        numbers = example_numbers(batch)
        np.testing.assert_array_equal(batch["puzzle_identifiers"], owner[numbers] + 1)
        # The puzzles of a batch stand one after another, whole but for the last, no example twice in a puzzle.
        cuts = np.flatnonzero(np.diff(batch["puzzle_identifiers"])) + 1
        for part in np.split(numbers, cuts)[:-1]:
            assert len(part) % sizes[owner[part[0]]] == 0
        last = np.split(numbers, cuts)[-1]
        assert len(np.unique(last)) == min(len(last), sizes[owner[last[0]]])


def test_passes_differ_and_repeat_with_the_seed(many_examples):
    path, _ = many_examples
    first = dataset(path, global_batch_size=16)
    one, two = ([example_numbers(batch).tolist() for _, batch, _ in first] for _ in range(2))
    assert one != two
    again = dataset(path, global_batch_size=16)
    assert [example_numbers(batch).tolist() for _, batch, _ in again] == one
    assert [example_numbers(b).tolist() for _, b, _ in dataset(path, global_batch_size=16, seed=13)] == two


def test_every_example_of_a_puzzle_is_drawn_equally(many_examples):
    path, sizes = many_examples
    counts = np.zeros(sizes.sum())
    for _, batch, _ in dataset(path, global_batch_size=16, epochs_per_iter=1500):
        np.add.at(counts, example_numbers(batch), 1)
    expected = 500  # 1,500 epochs, one of 3 puzzles each; a batch's end cuts some examples
    assert np.all((counts > 0.8 * expected) & (counts < 1.2 * expected))


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_reads_everything_once_and_pads(many_examples, ranks):
    path, sizes = many_examples
    size, total, owner = 48, int(sizes.sum()), np.repeat(np.arange(60), sizes)
    seen, real = [], 0
    for rank in range(ranks):
        for _, batch, count in dataset(path, "test", rank, ranks, global_batch_size=size):
            assert len(batch["inputs"]) == size // ranks
            labelled = batch["labels"][:, 0] != -100
            numbers = example_numbers(batch)[labelled]
            seen.extend(numbers.tolist())
            np.testing.assert_array_equal(batch["puzzle_identifiers"][labelled], owner[numbers] + 1)
            assert (batch["puzzle_identifiers"][~labelled] == 0).all()
            assert (batch["inputs"][~labelled] == 0).all()
            real += count if rank == 0 else 0
    assert sorted(seen) == list(range(total))
    assert real == total


def test_padding_is_what_the_description_says(many_examples):
    path, sizes = many_examples
    describe_anew(path / "test", pad_id=3, blank_identifier_id=5, ignore_label_id=None)
    *_, (_, batch, _) = dataset(path, "test", global_batch_size=48)
    padding = {field: rows[sizes.sum() % 48 :] for field, rows in batch.items()}
    assert {field: rows.unique().tolist() for field, rows in padding.items()} == {
        "inputs": [3], "labels": [-100], "puzzle_identifiers": [5],
    }  # fmt: skip


def test_every_set_of_every_pass_has_a_random_stream_of_its_own(tmp_path):
    """Philox(seed + n) for the n-th of them, as in the original."""
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        writer = SplitWriter(folder, "train", seq_len=1, set_name=name)
        rows, ones = np.arange(1, 51)[:, None], np.ones(50, int)
        writer.append(rows, rows, puzzle_identifiers=0 * ones, puzzle_sizes=ones, group_sizes=ones)
        writer.finish(vocab_size=64, num_puzzle_identifiers=1)
    shutil.copytree(tmp_path / "a/train", tmp_path / "b/train", dirs_exist_ok=True)
    describe_anew(tmp_path / "b/train", sets=["a", "b"], total_groups=100)
    found = dataset(tmp_path / "b", epochs_per_iter=1)
    for number in (13, 15):  # the seed is 12: sets a and b of the first pass, then of the second
        expected = [
            (name, examples.tolist())
            for name, seed in (("a", number), ("b", number + 1))
            for examples, _ in sample_batches(np.random.Generator(np.random.Philox(seed)), found.sets[name], 1, 12)
        ]
        assert [(name, (batch["inputs"][:, 0] - 1).tolist()) for name, batch, _ in found] == expected


def test_max_examples_is_a_seeded_subset_in_order(many_examples):
    path, _ = many_examples
    subset = dataset(path, "test", max_examples=25)
    numbers = np.concatenate([example_numbers(b)[b["labels"][:, 0] != -100] for _, b, _ in subset])
    assert len(numbers) == subset.num_examples() == 25
    assert subset.num_test_batches() == 3
    assert (np.diff(numbers) > 0).all()


@pytest.mark.parametrize("ignored", [0, None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_batches_are_widened_to_what_the_model_takes(tmp_path, split, ignored):
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    path = tmp_path / "d" / split / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ignore_label_id": ignored}))
    source = dataset(tmp_path / "d", split)
    inputs, labels = (np.load(path.with_name(f"all__{field}.npy")).astype(np.int64) for field in ("inputs", "labels"))
    labels = np.where(labels == ignored, -100, labels)
    known = {tuple(row): tuple(label) for row, label in zip(inputs, labels, strict=True)}
    for _, batch, size in dataset(tmp_path / "d", split):
        assert {field.dtype for field in batch.values()} == {torch.int32}
        for row, label in zip(batch["inputs"][:size].tolist(), batch["labels"][:size].tolist(), strict=True):
            assert tuple(label) == known[tuple(row)]
        assert (batch["labels"][size:] == -100).all() and (batch["inputs"][size:] == 0).all()
    if split == "train":  # bytes on their way
        narrow = [rows for _, rows in source.train_batches(0)]
        wide = [batch for _, batch, _ in source]
        assert len(narrow) == len(wide) > 1
        for rows, batch in zip(narrow, wide, strict=True):
            assert {rows["inputs"].dtype, rows["labels"].dtype} == {torch.uint8}
            assert torch.equal(rows["inputs"].int(), batch["inputs"])


def test_any_pass_can_be_had_from_any_batch_on(many_examples):
    path, _ = many_examples
    passes = [[batch for _, batch, _ in one] for one in [dataset(path, "train")] * 2]
    for number, expected in enumerate(passes):
        found = [rows for _, rows in dataset(path, "train").train_batches(number, skip=3)]
        assert len(found) == len(expected) - 3
        for rows, batch in zip(found, expected[3:], strict=True):
            assert torch.equal(rows["inputs"].int(), batch["inputs"])


def test_test_batches_say_which_examples_they_hold(many_examples):
    path, _ = many_examples
    found = [[], []]
    for rank in range(2):
        split = dataset(path, "test", rank=rank, ranks=2)
        for _, batch, examples in split.test_batches():
            found[rank] += examples.tolist()
            inputs = np.load(path / "test/all__inputs.npy")[examples]
            np.testing.assert_array_equal(batch["inputs"][: len(examples)].numpy(), inputs)
        assert split.num_own_examples() == len(found[rank])
    assert sorted(found[0] + found[1]) == list(range(split.num_examples()))


def test_int64_datasets_read_the_same(tmp_path):
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    for path in tmp_path.glob("d/*/*.npy"):
        np.save(path, np.load(path).astype(np.int64))
    for split in ("train", "test"):
        old, new = (list(dataset(p, split)) for p in (PIPELINE / "dataset", tmp_path / "d"))
        assert len(old) == len(new) > 0
        for (_, a, _), (_, b, _) in zip(old, new, strict=True):
            for field in a:
                np.testing.assert_array_equal(a[field], b[field])


def edit(path, change):
    array = np.load(path)
    np.save(path, change(array))


def edit_json(folder, **changes):
    path = folder / "train/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def descend(indices):
    indices[2], indices[3] = indices[3], indices[2]
    return indices


def from_the_second(indices):
    indices[0] = 1
    return np.delete(indices, 1)


def negative(tokens):
    tokens = tokens.astype(np.int64)
    tokens[-1, -1] = -1
    return tokens


def ignored_by(value):
    def change(labels):
        labels = labels.astype(np.int16)
        labels[:, 0] = value
        return labels

    return change


BROKEN = {
    "missing split": (lambda d: shutil.rmtree(d / "train"), "splits test"),
    "missing array": (lambda d: (d / "train/all__labels.npy").unlink(), "labels.npy is missing"),
    "truncated": (
        lambda d: (d / "train/all__inputs.npy").write_bytes((d / "train/all__inputs.npy").read_bytes()[:300]),
        "truncated",
    ),
    "empty file": (lambda d: (d / "train/all__inputs.npy").write_bytes(b""), "truncated"),
    "not ascending": (lambda d: edit(d / "train/all__puzzle_indices.npy", descend), "does not ascend"),
    "not from the first": (lambda d: edit(d / "train/all__puzzle_indices.npy", from_the_second), "ascend from 0"),
    "groups not ascending": (lambda d: edit(d / "train/all__group_indices.npy", descend), "does not ascend"),
    "wrong end": (lambda d: edit(d / "train/all__puzzle_indices.npy", lambda a: a[:-1]), "ends at"),
    "wrong length": (lambda d: edit(d / "train/all__inputs.npy", lambda a: a[:, :-1]), "seq_len 16"),
    "fewer labels": (lambda d: edit(d / "train/all__labels.npy", lambda a: a[:-1]), "rows"),
    "vocabulary": (lambda d: edit(d / "train/all__inputs.npy", lambda a: a + 4), "outside the vocabulary"),
    "below the vocabulary": (
        lambda d: edit(d / "train/all__labels.npy", negative),
        r"token -1 is outside the vocabulary 0\.\.5",
    ),
    "label vocabulary": (lambda d: edit(d / "train/all__labels.npy", lambda a: a + 4), "outside the vocabulary"),
    "identifiers": (lambda d: edit(d / "train/all__puzzle_identifiers.npy", lambda a: a + 1), "goes outside 0..0"),
    "floats": (lambda d: edit(d / "train/all__inputs.npy", lambda a: a * 1.0), "not integers"),
    "binary json": (lambda d: (d / "train/dataset.json").write_bytes(b"\xff\xfe\x00"), "dataset.json is UTF-16"),
    "no sets": (lambda d: edit_json(d, sets=[]), "not a valid dataset description"),
    "other groups": (lambda d: edit_json(d, total_groups=999), "total_groups is 999, the arrays say 40"),
    "other mean": (lambda d: edit_json(d, mean_puzzle_examples=2.5), "mean_puzzle_examples is 2.5"),
    "not a number": (lambda d: edit_json(d, mean_puzzle_examples=float("nan")), "not a valid dataset description"),
    "archive": (lambda d: np.savez(open(d / "train/all__inputs.npy", "wb"), a=1), "is an archive"),
    "two axes": (lambda d: edit(d / "train/all__puzzle_identifiers.npy", lambda a: a[:, None]), "not one axis"),
    "bad json": (lambda d: (d / "train/dataset.json").write_text("{"), "dataset.json is not JSON"),
    "missing key": (lambda d: (d / "train/dataset.json").write_text('{"pad_id": 0}'), "not a valid dataset"),
    "no object": (lambda d: (d / "train/dataset.json").write_text("[1]"), "not a valid dataset description"),
    "nested json": (lambda d: (d / "train/dataset.json").write_text("[" * 100_000), "nested too deeply"),
    "json in a folder": (lambda d: a_folder(d / "train/dataset.json"), r"dataset.json is a folder, not a file"),
    "pointer": (lambda d: lfs_pointer(d / "train/dataset.json"), "pointer of Git LFS"),
    "array in a folder": (lambda d: a_folder(d / "train/all__labels.npy"), "cannot read .*labels.npy: Is a directory"),
    "array's pointer": (lambda d: lfs_pointer(d / "train/all__inputs.npy"), "git lfs pull"),
    # unsigned differences wrap around, and are never negative
    "unsigned": (lambda d: edit(d / "train/all__puzzle_indices.npy", lambda a: descend(a.astype("u4"))), "ascend"),
    "durations": (lambda d: edit(d / "train/all__labels.npy", lambda a: a.astype("m8[s]")), "not integers"),
    "same set twice": (lambda d: edit_json(d, sets=["all", "all"]), "the set 'all' is named twice"),
    "set in two lines": (lambda d: edit_json(d, sets=["a\nb"]), "cannot be the name of a set"),
    "set elsewhere": (lambda d: edit_json(d, sets=["../test/all"]), "cannot be the name of a set"),
    "huge vocabulary": (lambda d: edit_json(d, vocab_size=10**12), "vocab_size: Input should be less than"),
    "huge embedding": (lambda d: edit_json(d, num_puzzle_identifiers=10**12), "num_puzzle_identifiers: Input should"),
    "huge number": (lambda d: edit_json(d, total_groups=10**4000), "total_groups: Input should be"),
    "padding": (lambda d: edit_json(d, pad_id=6), r"pad_id is outside 0\.\.5"),
    "negative padding": (lambda d: edit_json(d, pad_id=-1), r"pad_id is outside 0\.\.5"),
    "ignored": (
        lambda d: edit_json(d, ignore_label_id=-1),
        r"ignore_label_id is outside 0\.\.5 and none of null, -100, 255",
    ),
    "ignored by others": (lambda d: edit(d / "train/all__labels.npy", ignored_by(255)), "token 255 is outside"),
    "ignored inputs": (lambda d: edit(d / "train/all__inputs.npy", ignored_by(-100)), "token -100 is outside"),
    "other than ignored": (
        lambda d: edit(d / "train/all__labels.npy", lambda a: ignored_by(-100)(negative(a))),
        "labels.npy: token -1 is outside",
    ),
    "blank": (lambda d: edit_json(d, blank_identifier_id=1), r"blank_identifier_id is outside 0\.\.0"),
    "negative rows": (lambda d: edit_json(d, kind="sudoku", rows=-4, columns=-4), "dataset.json .*rows: Input should"),
    "no text": (lambda d: edit_json(d, kind=5), "dataset.json .*kind: Input should be a valid string"),
    "no list": (lambda d: edit_json(d, symbols={}), "dataset.json .*symbols: Input should be a valid list"),
    "no look": (lambda d: edit_json(d, look=[]), "dataset.json .*look: Input should be a valid dict"),
    "no digests": (lambda d: edit_json(d, digests={"all__inputs.npy": ["1"]}), "dataset.json .*digests"),
}


def a_folder(path):
    path.unlink()
    path.mkdir()


def lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def write_npy(path, header, data=bytes(640)):
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data)


HEADERS = {
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 16)}": r"1.6e\+04 GB, and 6.4e-07",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-40, 16)}": "truncated",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 10000000000000000000000)}": "inputs.npy: ",
    "{'descr': '|O', 'fortran_order': False, 'shape': (40, 16)}": "holds object, not integers",
    "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (10,)}": "not integers",
    "{'descr': ('<i4', (4,)), 'fortran_order': False, 'shape': (40,)}": "not integers",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}": "not a .npy file",
    "{'descr': " + "-" * 9000 + "1}": "not a .npy file",
    "(" * 9000: "not a .npy file",
    "1" + "+1" * 4000: "not a .npy file",
    "  1\n 2\n3": "not a .npy file",
    " " * 20_000: "not a .npy file",
}


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_what_a_header_says_is_not_trusted(tmp_path, header):
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    write_npy(tmp_path / "d/train/all__inputs.npy", header)
    with pytest.raises(UserError, match=HEADERS[header]):
        dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("stated", "written", "dtype"),
    [(None, -100, "i1"), (0, -100, "i2"), (-100, -100, "i8"), (255, 255, "u1"), (255, -100, "i4"), (-100, 0, "u1")],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_ignored_labels_of_other_tools(tmp_path, stated, written, dtype, split):
    """Batches are those of our own dataset, in which 0 is ignored. The last case has nothing that is ignored."""
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    for folder in (tmp_path / "d/train", tmp_path / "d/test"):
        labels = np.load(folder / "all__labels.npy").astype(np.int64)
        assert (labels > 0).all()  # so some are made so
        labels[:, ::3] = 0
        np.save(folder / "all__labels.npy", labels.astype(np.uint8))
    own = list(dataset(tmp_path / "d", split))
    for folder in (tmp_path / "d/train", tmp_path / "d/test"):
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ignore_label_id": stated}))
        edit(folder / "all__labels.npy", lambda labels: np.where(labels, labels.astype("i8"), written).astype(dtype))
    found = list(dataset(tmp_path / "d", split))
    assert len(found) == len(own) > 0
    for (_, a, size), (_, b, _) in zip(own, found, strict=True):
        if written == 0:
            a["labels"][:size][a["labels"][:size] == -100] = 0
        for field in a:
            assert torch.equal(a[field], b[field]), field
            assert b[field].dtype == torch.int32


def test_unknown_keys_of_other_tools_are_warned_of_once(tmp_path, caplog):
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    for split in ("train", "test"):
        path = tmp_path / "d" / split / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"total_puzzles": 40, "made_by": "x"}))
    for split in ("train", "test", "train"):
        assert list(dataset(tmp_path / "d", split))
    assert caplog.messages == [
        f"{tmp_path / 'd'}: dataset.json has keys that are not known here and not used: total_puzzles, made_by"
    ]


@pytest.mark.parametrize("dtype", ["u1", "u8", ">i4", "<i2"])
def test_any_integers_will_do(tmp_path, dtype):
    """Also for the arithmetic of the sampling."""
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    for path in tmp_path.glob("d/*/*.npy"):
        edit(path, lambda array: array.astype(dtype))
    for split in ("train", "test"):
        (puzzles,) = dataset(tmp_path / "d", split).sets.values()
        assert {puzzles.puzzle_indices.dtype, puzzles.group_indices.dtype} == {np.dtype(np.int64)}
        assert puzzles.puzzle_identifiers.dtype == np.int32
        for (_, a, _), (_, b, _) in zip(
            dataset(PIPELINE / "dataset", split), dataset(tmp_path / "d", split), strict=True
        ):
            for field in a:
                np.testing.assert_array_equal(a[field], b[field])


@pytest.mark.parametrize("case", BROKEN)
def test_broken_datasets_are_refused_with_a_reason(tmp_path, case):
    shutil.copytree(PIPELINE / "dataset", tmp_path / "d")
    breakage, message = BROKEN[case]
    breakage(tmp_path / "d")
    with pytest.raises(UserError, match=message):
        dataset(tmp_path / "d")


def test_missing_dataset_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="build one"):
        dataset(tmp_path / "nowhere")
