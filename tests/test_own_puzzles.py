"""Datasets of one's own pairs: python -m pytest tests/test_own_puzzles.py"""

import csv
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.build_grid_dataset import GridConfig, build
from dataset.format import load_metadata, read_identifiers
from errors import UserError
from puzzles.grid import Grid
from puzzles.kind import kind_of
from puzzles.rule import find_rule
from tests.sample_datasets import Arrays

DOTS = "#."


def jsonl(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def pair(question, answer, **labels) -> dict:
    return {"input": question, "output": answer, **labels}


def random_pairs(count: int, rows: int = 3, columns: int = 3, symbols: str = "abc.", seed: int = 0) -> list[dict]:
    """Different grids, each with itself turned upside down as its output."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        grid = ["".join(rng.choice(symbols) for _ in range(columns)) for _ in range(rows)]
        found["".join(grid)] = pair(grid, grid[::-1])
    return list(found.values())


def built(source: Path, **options) -> Path:
    out = source.parent / f"{source.stem}-built"
    build(GridConfig(input_file=source, output_dir=out, **options))
    return out


def kind_at(dataset: Path, split: str = "train") -> Grid:
    return kind_of(load_metadata(dataset / split).model_dump(), [], str(dataset))


def pairs_of(dataset: Path, split: str = "train") -> list[tuple]:
    """The inputs and labels of a split as their kind writes them."""
    arrays, kind = Arrays(dataset, split), kind_at(dataset, split)
    return [tuple(kind.plain(board) for board in pair) for pair in zip(arrays.inputs, arrays.labels, strict=True)]


VALUES = [  # how a value is written, more options, how it is read back
    (["ab", "c."], {}, ["ab", "c."]),
    ("ab\nc.\n", {}, ["ab", "c."]),
    ("ab\r\nc.", {}, ["ab", "c."]),
    ([["a", "b"], ["c", "."]], {}, ["ab", "c."]),
    ([[1, 0], [10, -2]], {}, [[1, 0], [10, -2]]),
    ([3, 1, 12], {}, [[3, 1, 12]]),
    ("abca", {}, ["abca"]),
    ("red green\nblue red", {"words": True}, [["red", "green"], ["blue", "red"]]),
    ([["red", "dark blue"]], {}, [["red", "dark blue"]]),
    ([" #", "# "], {}, [" #", "# "]),
    (["♛·", "·👨‍👩‍👧"], {}, ["♛·", "·👨‍👩‍👧"]),
    (["e\u0301x"], {}, ["éx"]),
    ([[1, None], [2, 3]], {}, [[1, None], [2, 3]]),
    ([["a", None], ["b", "c"]], {}, [["a", None], ["b", "c"]]),
    (["a_", "bc"], {"hole": "_"}, [["a", None], ["b", "c"]]),
    (["abc", "a"], {"ragged": True}, [["a", "b", "c"], ["a", None, None]]),
]


@pytest.mark.parametrize(("value", "options", "read"), VALUES)
def test_values_of_every_form_come_back_as_they_were(value, options, read, tmp_path):
    source = jsonl(tmp_path / "pairs.jsonl", pair(value, value))
    assert pairs_of(built(source, test_fraction=0, **options)) == [(read, read)]


def test_jsonl_csv_and_folders_say_the_same(tmp_path):
    records = random_pairs(6)
    for number, record in enumerate(records):
        record |= {"id": f"p{number}", "split": ("train", "test", "val")[number % 3]}
    source = jsonl(tmp_path / "lines.jsonl", *records)
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "output", "id", "input"])
        for one in records:
            writer.writerow([one["split"], "\n".join(one["output"]), one["id"], json.dumps(one["input"])])
    for one in records:
        place = tmp_path / "texts" / one["split"]
        place.mkdir(parents=True, exist_ok=True)
        for side in ("input", "output"):
            (place / f"{one['id']}.{side}.txt").write_text("\n".join(one[side]) + "\n")
    found = [built(path, identifiers=True) for path in (source, tmp_path / "table.csv", tmp_path / "texts")]
    for split in ("train", "test", "val"):
        expected = [(one["input"], one["output"]) for one in records if one["split"] == split]
        assert all(pairs_of(dataset, split) == expected for dataset in found)
    assert all(sorted(read_identifiers(dataset)) == ["<blank>", *(f"p{i}" for i in range(6))] for dataset in found)


def test_a_folder_is_read_without_what_systems_leave_in_it(tmp_path, capsys):
    """Hidden files, such as those that macOS writes beside every file; other things are counted."""
    for name, text in (("x", "ab"), ("y", "ba"), (".x", "??"), ("._y", "\0\5\x16")):
        for side in ("input", "output"):
            (tmp_path / f"{name}.{side}.txt").write_text(text)
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    dataset = tmp_path / "out"
    build(GridConfig(input_file=tmp_path, output_dir=dataset, test_fraction=0))
    assert pairs_of(dataset) == [(["ab"], ["ab"]), (["ba"], ["ba"])]
    assert "are not read" not in capsys.readouterr().err
    (tmp_path / "z.input.txt").symlink_to("gone")
    (tmp_path / "z.output.txt").symlink_to("gone")
    build(GridConfig(input_file=tmp_path, output_dir=tmp_path / "again", test_fraction=0))
    assert f"warning: {tmp_path}: 3 other files and folders are not read" in capsys.readouterr().err  # and `out`


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """And not the output, which can be written."""
    (tmp_path / "pairs/train").mkdir(parents=True)
    listed = Path.iterdir

    def iterdir(folder: Path):
        if folder.name == "train":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=r"^cannot read .*pairs/train: Permission denied"):
        build(GridConfig(input_file=tmp_path / "pairs", output_dir=tmp_path / "out"))


def test_columns_that_a_spreadsheet_leaves_empty_are_none(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("input,output,,\nab,ba,,\nbb,aa,,\n")
    assert pairs_of(built(tmp_path / "p.csv", test_fraction=0)) == [(["ab"], ["ba"]), (["bb"], ["aa"])]
    assert "are not read" not in capsys.readouterr().err


def test_files_of_their_own_for_every_split(tmp_path):
    records = random_pairs(9)
    files = {
        f"{split}_file": jsonl(tmp_path / f"{split}.jsonl", *records[start : start + 3])
        for start, split in ((0, "train"), (3, "test"), (6, "val"))
    }
    build(GridConfig(output_dir=tmp_path / "out", **files))
    for start, split in ((0, "train"), (3, "test"), (6, "val")):
        assert pairs_of(tmp_path / "out", split) == [(r["input"], r["output"]) for r in records[start : start + 3]]


def test_a_missing_test_split_is_explained(tmp_path, capsys):
    source = jsonl(tmp_path / "p.jsonl", pair("ab", "ba", split="train"))
    built(source)
    assert "there is no test split: every pair says that it is in another one" in capsys.readouterr().err
    built(jsonl(source, pair("ab", "ba")), test_fraction=0)
    assert "there is no test split: no pair says so, and --test-fraction is 0" in capsys.readouterr().err
    empty = jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match=r"empty\.jsonl holds no pair"):
        build(GridConfig(train_file=source, test_file=empty, output_dir=tmp_path / "out"))


def test_outputs_of_another_size_get_end_marks(tmp_path):
    """As ARC has them: below and to the right, where there is room."""
    source = jsonl(tmp_path / "p.jsonl", pair(["aab"], ["a", "b"]), pair(["abab", "bbbb"], ["ab"]))
    dataset = built(source, test_fraction=0)
    arrays, kind = Arrays(dataset), kind_at(dataset)
    assert (kind.rows, kind.columns, kind.symbols) == (2, 4, ("", "", "a", "b"))
    assert arrays.inputs.tolist() == [[2, 2, 3, 0, 0, 0, 0, 0], [2, 3, 2, 3, 3, 3, 3, 3]]
    assert arrays.labels.tolist() == [[2, 1, 0, 0, 3, 1, 0, 0], [2, 3, 1, 0, 1, 1, 0, 0]]
    assert pairs_of(dataset) == [(["aab"], ["a", "b"]), (["abab", "bbbb"], ["ab"])]


def test_where_outputs_have_their_inputs_shape_there_are_none(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pair(["aab"], ["aaa"]), pair(["ab", "bb"], ["ab", "ba"]))
    dataset = built(source, test_fraction=0, canvas="3x3")
    assert Arrays(dataset).labels.tolist() == [[1, 1, 1] + 6 * [0], [1, 2, 0, 2, 1, 0, 0, 0, 0]]


def test_holes_at_other_places_in_the_output_are_a_symbol(tmp_path):
    dataset = built(jsonl(tmp_path / "p.jsonl", pair([["a", None]], [[None, "a"]])), test_fraction=0)
    assert Arrays(dataset).labels.tolist() == [[2, 1]]
    assert pairs_of(dataset) == [([["a", None]], [[None, "a"]])]


def test_cells_that_do_not_count(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pair("ab?", "a??"), pair("bbb", "???"))
    with pytest.raises(UserError, match=r"p.jsonl:2: no cell of the output counts \(--ignore\)"):
        built(source, ignore="?")
    source = jsonl(tmp_path / "p.jsonl", pair("ab?", "a??"))
    assert Arrays(built(source, ignore="?", test_fraction=0)).labels.tolist() == [[2, 0, 0]]


def test_the_vocabulary_is_sorted_or_given(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pair([10, 9, 2], [2, 9, 10]))
    assert kind_at(built(source, test_fraction=0)).symbols == ("", "2", "9", "10")
    assert kind_at(built(source, test_fraction=0, vocabulary="10 9 2 0")).symbols == ("", "10", "9", "2", "0")
    with pytest.raises(UserError, match=r"p.jsonl:1: '9' is not in --vocabulary"):
        built(source, vocabulary="10 2")


def test_a_vocabulary_of_words_or_numbers_is_given_with_blanks_between(tmp_path):
    """Also where the pairs have no symbol of several characters."""
    for name, value, options in (("n", [[1, 2]], {}), ("w", "1 2", {"words": True})):
        source = jsonl(tmp_path / f"{name}.jsonl", pair(value, value))
        dataset = built(source, test_fraction=0, vocabulary="1 2 10", permute="1 10", num_aug=1, **options)
        assert kind_at(dataset).symbols == ("", "1", "2", "10")
        assert Arrays(dataset).inputs.tolist() == [[1, 2], [3, 2]]
    source = jsonl(tmp_path / "c.jsonl", pair("12", "21"))
    assert kind_at(built(source, test_fraction=0, vocabulary="1 2 30")).symbols == ("", "1", "2", "3", "0")


@pytest.mark.parametrize(
    ("first", "numbers"),
    [([[None, 1]], True), ([["-", 3], [1, 2]], True), ([[None, "1"]], False), ("1", False)],
)
def test_a_hole_says_nothing_of_whether_cells_are_numbers(tmp_path, first, numbers):
    source = jsonl(tmp_path / "p.jsonl", pair(first, [[2, 2]]), pair([[1, 2, 3]], [[3, 2, 1]]))
    assert kind_at(built(source, test_fraction=0, hole="-")).numbers == numbers


def test_options_name_a_letter_with_its_accent_however_it_is_encoded(tmp_path):
    """As in files: a letter and its accent may be one code point or two."""
    (tmp_path / "symbols.yaml").write_text('"e\u0301": red\n', encoding="utf-8")
    source = jsonl(tmp_path / "p.jsonl", pair("é o ä", "o ä ä"))
    options = dict(words=True, symbols=tmp_path / "symbols.yaml", permute="o e\u0301", ignore="a\u0308", num_aug=1)
    kind = kind_at(built(source, test_fraction=0, vocabulary="o e\u0301 a\u0308 n\u0303", **options))
    assert (kind.symbols, kind.permuted, kind.ignored) == (("", "o", "é", "ä", "ñ"), (1, 2), (3,))
    assert kind.look.fills == (None, None, "#ff0000", None, None)
    source = jsonl(tmp_path / "h.jsonl", pair(["aé", "aa"], ["aé", "aa"]), pair([["a", "e\u0301"]], [["a", "é"]]))
    assert pairs_of(built(source, test_fraction=0, hole="e\u0301")) == [
        ([["a", None], ["a", "a"]],) * 2,
        (["a"], ["a"]),
    ]


def test_copies_are_the_symmetries_that_were_allowed(tmp_path):
    """Against all of them, written down independently."""
    records = [pair(["ab.", "aa.", "..b"], ["bb.", "a..", "..a"])]
    dataset = built(jsonl(tmp_path / "p.jsonl", *records), test_fraction=0, num_aug=99, dihedral=True, permute="ab")
    expected = set()
    for names in ("ab", "ba"):
        grids = [np.array([list(row) for row in records[0][side]]) for side in ("input", "output")]
        grids = [np.where(grid == "a", names[0], np.where(grid == "b", names[1], grid)) for grid in grids]
        for turns in range(4):
            for flipped in (False, True):
                copy = [np.rot90(grid, turns) for grid in grids]
                copy = [grid[:, ::-1] if flipped else grid for grid in copy]
                expected.add(tuple("/".join("".join(row) for row in grid) for grid in copy))
    found = [tuple("/".join(side) for side in one) for one in pairs_of(dataset)]
    assert len(found) == len(expected) == 16 and set(found) == expected
    assert found[0] == ("ab./aa./..b", "bb./a../..a")
    assert Arrays(dataset).group_indices.tolist() == [0, 16]


def test_copies_of_a_rectangle_and_of_symbols_alone(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pair(["abc", "..."], ["...", "abc"]))
    assert len(pairs_of(built(source, test_fraction=0, num_aug=99, dihedral=True))) == 4
    found = pairs_of(built(source, test_fraction=0, num_aug=3, permute="abc"))
    assert len(found) == len({one[0][0] for one in found}) == 4
    assert all(question[0] == answer[1] and sorted(question[0]) == ["a", "b", "c"] for question, answer in found)


def zip_rows(grid: list[str]) -> list[str]:
    """The transpose."""
    return ["".join(column) for column in zip(*grid, strict=True)]


def orbit(grid: list[str]) -> str:
    """The same for all rotations, reflections and exchanges of a, b and c."""
    found, board = [], np.array([list(row) for row in grid])
    for names in ("abc", "acb", "bac", "bca", "cab", "cba"):
        renamed = np.vectorize(dict(zip("abc.", names + ".", strict=True)).get)(board)
        for turns in range(4):
            turned = np.rot90(renamed, turns)
            found += ["".join(map("".join, turned)), "".join(map("".join, turned[:, ::-1]))]
    return min(found)


def test_copies_and_groups_never_straddle(tmp_path):
    """Half of the grids have a copy in the file, a quarter a group with another one."""
    records = random_pairs(100)
    names = str.maketrans("abc", "cab")
    records += [
        pair(*([row.translate(names) for row in zip_rows(one[side])] for side in ("input", "output")))
        for one in records[:50]
    ]
    for number, record in enumerate(records[50:100]):
        record["group"] = number % 25
    dataset = built(
        jsonl(tmp_path / "p.jsonl", *records), dihedral=True, permute="abc", test_fraction=0.3, val_fraction=0.3
    )
    splits = {split: pairs_of(dataset, split) for split in ("train", "test", "val")}
    assert sum(map(len, splits.values())) == 150
    assert all(len(found) >= 30 for found in splits.values())
    orbits = {split: {orbit(question) for question, _ in found} for split, found in splits.items()}
    groups = {
        split: {r["group"] for r in records[50:100] if (r["input"], r["output"]) in found}
        for split, found in splits.items()
    }
    for one, other in (("train", "test"), ("train", "val"), ("test", "val")):
        assert not orbits[one] & orbits[other]
        assert not groups[one] & groups[other]


def test_a_group_of_the_file_is_a_group_on_disk(tmp_path):
    records = random_pairs(5)
    for record, group in zip(records, "xyxzx", strict=True):
        record["group"] = group
    dataset = built(jsonl(tmp_path / "p.jsonl", *records), test_fraction=0)
    assert pairs_of(dataset) == [(records[i]["input"], records[i]["output"]) for i in (0, 2, 4, 1, 3)]
    assert Arrays(dataset).group_indices.tolist() == [0, 3, 4, 5]


def test_repeated_and_contradicting_pairs_are_counted(tmp_path, capsys):
    lines = [pair("ab", "ba"), pair("bb", "ab"), pair("ab", "ba"), pair("ab", "bb"), pair("aa", "aa")]
    dataset = built(jsonl(tmp_path / "p.jsonl", *lines), test_fraction=0)
    assert len(pairs_of(dataset)) == 4
    said = capsys.readouterr().err
    assert "1 pairs are in their split already (the first: " in said and "p.jsonl:3): left out" in said
    assert "1 inputs have several outputs, such as " in said
    assert "p.jsonl:1 and " in said and "p.jsonl:4: kept" in said


def test_copies_of_a_grid_smaller_than_the_canvas_are_found(tmp_path, capsys):
    lines = [pair(["ab.", "..."], "a"), pair(["..", ".b", ".a"], "a", split="test"), pair(["abab"], "b")]
    dataset = built(jsonl(tmp_path / "p.jsonl", *lines), dihedral=True, canvas="4x4")
    assert "1 of the 1 test pairs are also in train" in capsys.readouterr().err
    assert len(pairs_of(dataset)) == 2
    built(tmp_path / "p.jsonl", dihedral=True, canvas="3x4", num_aug=1)
    assert "3×4 is no square: grids are reflected and turned by 180°, but not by 90°; --canvas 4x4" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("drop", [False, True])
def test_leaks_between_stated_splits_are_counted_and_dropped_on_demand(drop, tmp_path, capsys):
    lines = [pair("abc", "cba"), pair("cba", "abc", split="test"), pair("aaa", "aaa"), pair("abb", "bba", split="test")]
    dataset = built(jsonl(tmp_path / "p.jsonl", *lines), dihedral=True, drop_leaked=drop)
    assert [question for question, _ in pairs_of(dataset)] == ([["aaa"]] if drop else [["abc"], ["aaa"]])
    assert "1 of the 2 test pairs are also in train" in capsys.readouterr().err


def test_the_seed_and_the_hash_of_nothing_else_decide(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", *random_pairs(30))
    options = dict(num_aug=5, dihedral=True, permute="abc", val_fraction=0.2)
    first = Arrays(built(source, **options, seed=1)).inputs.tolist()
    assert first == Arrays(built(source, **options, seed=1)).inputs.tolist()
    assert first != Arrays(built(source, **options, seed=2)).inputs.tolist()


def test_every_id_has_an_embedding_on_demand(tmp_path, capsys):
    lines = [pair("ab", "ba", id="x"), pair("ab", "ab", id="y"), pair("bb", "bb", id="x"), pair("aa", "aa", id=7)]
    lines[2]["split"] = lines[3]["split"] = "test"
    dataset = built(jsonl(tmp_path / "p.jsonl", *lines), identifiers=True)
    assert read_identifiers(dataset) == ["<blank>", "x", "y", "7"]
    assert Arrays(dataset).puzzle_identifiers.tolist() == [1, 2]
    assert Arrays(dataset, "test").puzzle_identifiers.tolist() == [1, 3]
    said = capsys.readouterr().err
    assert "1 ids have no pair in train, such as 7" in said
    assert "several outputs" not in said


def test_no_id_is_the_one_of_no_puzzle(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", pair("ab", "ba", id="x"), pair("bb", "ba", id="<blank>"))
    with pytest.raises(UserError, match=r"p\.jsonl:2: the id is '<blank>', which stands for no puzzle; rename it"):
        built(source, identifiers=True)


def test_glyphs_and_colours_of_a_file(tmp_path):
    (tmp_path / "symbols.yaml").write_text(
        '"#": {glyph: "█", colour: "#102030"}\n.: {glyph: ""}\no: {colour: path}\n3: red\n', encoding="utf-8"
    )
    source = jsonl(tmp_path / "p.jsonl", pair("#.o3x", "#oo3x"))
    kind = kind_at(built(source, test_fraction=0, symbols=tmp_path / "symbols.yaml"))
    assert kind.symbols == ("", "3", "#", ".", "o", "x")
    assert kind.look.fills == (None, "#ff0000", "#102030", None, "path", None)
    assert kind.look.glyphs == ("", "3", "█", "", "o", "x")
    assert kind.written == (" ", "3", "█", ".", "o", "x")


RULE = "def valid(puzzle, answer):\n    return answer == puzzle[::-1]\n"


SAME_MARKS = """
def valid(puzzle, answer):
    return sum(row.count("?") for row in answer) == sum(row.count("?") for row in puzzle)
"""


@pytest.mark.parametrize("ignored", ["?", "?b"])
@pytest.mark.parametrize(
    ("question", "answer"), [(["ab?"], ["?ba"]), (["ab", "??"], ["ab", "??"]), (["ba", "a?", "bb"], ["?b", "ba"])]
)
def test_a_rule_sees_cells_that_do_not_count(tmp_path, monkeypatch, question, answer, ignored):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/own_rule_c.py").write_text(SAME_MARKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "rules"))
    monkeypatch.syspath_prepend(str(tmp_path / "rules"))
    source = jsonl(tmp_path / "p.jsonl", pair(question, answer))
    dataset = built(source, valid="own_rule_c:valid", ignore=ignored, test_fraction=0)
    labels = Arrays(dataset).labels[0]
    counted = sum(cell not in ignored for row in answer for cell in row)
    assert (labels >= kind_at(dataset).first_symbol).sum() == counted


def test_signs_for_holes_can_run_out(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", {"input": [["__", None]], "output": [["_", "∅"], ["⌀", None]]})
    with pytest.raises(UserError, match=r"every sign for a hole is a symbol .*; name one with --hole"):
        built(source)


def test_a_rule_checks_the_pairs(tmp_path, monkeypatch):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/own_rule_a.py").write_text(RULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "rules"))
    monkeypatch.syspath_prepend(str(tmp_path / "rules"))
    records = random_pairs(4)
    dataset = built(jsonl(tmp_path / "p.jsonl", *records), valid="own_rule_a:valid")
    kind, arrays = kind_at(dataset), Arrays(dataset)
    assert kind.has_rules
    assert kind.valid(arrays.inputs, arrays.labels).all()
    assert not kind.valid(arrays.inputs, np.roll(arrays.labels, 1, axis=0)).any()
    assert kind.violations(arrays.inputs[0], arrays.labels[1]) == ["it does not obey the rule"]
    jsonl(tmp_path / "p.jsonl", *records, pair(["ab", "bb"], ["ab", "bb"]))
    with pytest.raises(UserError, match=r"p.jsonl:5: the output does not pass --valid own_rule_a:valid: it does not"):
        built(tmp_path / "p.jsonl", valid="own_rule_a:valid")
    for name, problem in (
        ("own_rule_a", "is not of the form module:function"),
        ("own_rule_a:other", "has no function other"),
        ("subprocess:getoutput", "there is no module subprocess in a folder on PYTHONPATH"),
        ("this:s", "there is no module this in a folder on PYTHONPATH"),
    ):
        with pytest.raises(UserError, match=problem):
            built(tmp_path / "p.jsonl", valid=name)
    assert "this" not in sys.modules  # nothing else was even imported


SAME_SIZE = """
def valid(puzzle, answer):
    return all(puzzle[r][c] == answer[r][c] for r in range(len(puzzle)) for c in range(len(puzzle[r])))


def compared(puzzle, answer):
    return all(one == other for rows in zip(puzzle, answer) for one, other in zip(*rows))


def turned(puzzle, answer):
    return all(puzzle[r][c] == answer[c][r] for r in range(len(puzzle)) for c in range(len(puzzle[r])))
"""


@pytest.fixture
def same_size(tmp_path, monkeypatch):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/own_rule_d.py").write_text(SAME_SIZE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "rules"))
    monkeypatch.syspath_prepend(str(tmp_path / "rules"))
    monkeypatch.delitem(sys.modules, "own_rule_d", raising=False)
    find_rule.cache_clear()


@pytest.mark.parametrize("rule", ["valid", "compared"])
def test_an_answer_with_an_empty_cell_obeys_no_rule(tmp_path, same_size, rule):
    """Where the puzzle says how large the answer is: a rule must not be asked about a smaller one."""
    pairs = [pair(rows, rows) for rows in (["aab", "bbb"], ["ab"])]
    dataset = built(jsonl(tmp_path / "p.jsonl", *pairs), valid=f"own_rule_d:{rule}", test_fraction=0)
    kind, question = kind_at(dataset), Arrays(dataset).inputs[0]
    assert kind.violations(question, question) == []
    for empty, where in ((slice(3, 6), [4, 5, 6]), (slice(2, 6, 3), [3, 6]), (slice(1, 2), [2])):
        answer = question.copy()
        answer[empty] = 0
        places = [f"row {(n - 1) // 3 + 1}, column {(n - 1) % 3 + 1} is empty" for n in where]
        assert kind.violations(question, answer) == places
        assert not kind.valid(question, answer)
    assert kind.violations(question, 0 * question) == ["there is no grid"]


def test_a_rule_that_fails_on_an_answer_finds_fault_with_it(tmp_path, same_size):
    """Where the model says how large its answer is, it may be of a size that the rule is not made for."""
    source = jsonl(tmp_path / "p.jsonl", pair(["aab", "bbb"], ["ab", "ab", "bb"]), pair(["aa"], ["a", "a"]))
    dataset = built(source, valid="own_rule_d:turned", test_fraction=0)
    kind, inputs, (right, smaller) = kind_at(dataset), Arrays(dataset).inputs, Arrays(dataset).labels
    assert kind.ends and kind.valid(inputs, Arrays(dataset).labels).all()
    failure = "the rule own_rule_d:turned failed: IndexError: list index out of range"
    assert kind.violations(inputs[0], smaller) == [failure]
    assert kind.valid(inputs[0], np.stack([right, smaller])).tolist() == [True, False]


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "raise SystemExit('enough')", "return 1 / 0"])
def test_a_rule_that_fails_or_ends_the_program_is_named(body, tmp_path, monkeypatch):
    (tmp_path / "own_rule_b.py").write_text(f"def valid(puzzle, answer):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rule_b", raising=False)
    find_rule.cache_clear()
    with pytest.raises(UserError, match=r"p.jsonl:1: the rule own_rule_b:valid failed: .*; correct it"):
        built(jsonl(tmp_path / "p.jsonl", *random_pairs(4)), valid="own_rule_b:valid")


GOOD = '{"input": "ab", "output": "ba"}\n'
WRONG_LINES = [
    ('{"input": "ab"}', "p.jsonl:2: there is no output"),
    ("[1]", "p.jsonl:2: is not an object"),
    ('{"input": "ab", ', "p.jsonl:2: is not JSON"),
    ("[" * 100_000, "p.jsonl:2: is nested too deeply"),
    ('{"input": 3, "output": "a"}', "p.jsonl:2: the input is 3; a grid is a text, a list"),
    ('{"input": "", "output": "a"}', "p.jsonl:2: the input has no cells"),
    ('{"input": [], "output": "a"}', "p.jsonl:2: the input has no cells"),
    ('{"input": ["ab", "a"], "output": "a"}', "the input has 1 cells in row 2 and 2 in row 1; --ragged fills"),
    ('{"input": "a", "output": [[1.5]]}', "p.jsonl:2: the output has the cell 1.5"),
    ('{"input": "a", "output": [[true]]}', "p.jsonl:2: the output has the cell True"),
    ('{"input": "a", "output": [["a"], "b"]}', "p.jsonl:2: the output mixes rows and single cells"),
    ('{"input": "a", "output": [["a", ["b"]]]}', "p.jsonl:2: the output has the cell ['b']"),
    (json.dumps(pair("a\ud800b", "a")), "p.jsonl:2: the input has the character '\\ud800', which no symbol may have"),
    (json.dumps(pair("a", [["b", "x\x1b"]])), "p.jsonl:2: the output has the character '\\x1b', which no symbol may"),
    (json.dumps(pair("1\t2", "a")), "the input has the character '\\t', which no symbol may have; --words reads words"),
    ('{"input": "a", "output": "b", "split": "dev"}', "p.jsonl:2: the split is 'dev'; it is one of train, test, val"),
    ('{"input": "a", "output": "b", "id": [1]}', "p.jsonl:2: the id is [1]; it is a text or a whole number"),
    (json.dumps(pair(list(range(300)), [1])), "p.jsonl:2: '248' is symbol 251"),
    (json.dumps(pair(["a" * 1100], "a")), "p.jsonl:2: a grid of 1×1100; sides go up to 1024"),
    (json.dumps(pair(["a" * 200] * 100, "a")), "p.jsonl:2: the canvas would have 100×200 cells; 16,384 is the most"),
]


@pytest.mark.parametrize(("line", "problem"), WRONG_LINES)
def test_a_wrong_line_is_named_and_nothing_is_written(line, problem, tmp_path):
    (tmp_path / "p.jsonl").write_text(GOOD + line + "\n")
    with pytest.raises(UserError) as caught:
        built(tmp_path / "p.jsonl")
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl"]


WRONG_FILES = [
    ("p.csv", "question,answer\na,b\n", "p.csv:1: the header must name the columns input and output"),
    ("p.csv", 'input,output\n"a\nb",b\na\n', "p.csv:4: has 1 columns, the header 2"),
    ("p.csv", "input,output\na,[1\n", "p.csv:2: the output begins with [ but is not JSON"),
    ("p.csv", 'input,output\na,"b\n', "p.csv:2: is not valid CSV"),
    ("p.csv", "", "p.csv:1: the header"),
    ("p.csv", "input,output,input\na,b,a\n", "p.csv:1: the header must name the columns input and output, each once"),
    ("p.csv", "input,output\n", "p.csv holds no pair"),
    ("p.jsonl", "\n\n", "p.jsonl holds no pair"),
    ("p.jsonl", b"\xff\xfe\x00", "p.jsonl is not text in UTF-8"),
    ("p.jsonl", GOOD, "nothing is left to train on of 1 pairs"),
    ("folder/x.input.txt", "ab", "x.output.txt is missing; every input has an output"),
    ("folder/notes.md", "ab", "holds no NAME.input.txt with NAME.output.txt"),
]


@pytest.mark.parametrize(("name", "content", "problem"), WRONG_FILES)
def test_a_wrong_file_is_named(name, content, problem, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = path if path.parent == tmp_path else path.parent
    with pytest.raises(UserError) as caught:
        build(GridConfig(input_file=source, output_dir=tmp_path / "out"))
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


WRONG_OPTIONS = [
    ({"permute": "xy"}, "--permute: 'x' is none of the symbols, which are a b"),
    ({"permute": "aa"}, "--permute names a symbol twice"),
    ({"ignore": "?"}, "--ignore: '?' is none of the symbols"),
    ({"vocabulary": "abb"}, "--vocabulary names a symbol twice"),
    ({"canvas": "1x1"}, "a grid of 1×2 does not fit --canvas 1x1; the grids need 1x2"),
    ({"permute": "ab", "ignore": "b"}, "--permute exchanges 'b', which --ignore says does not count, for 'a'"),
    ({"vocabulary": "a_b", "hole": "_"}, "--vocabulary names '_', which --hole says is no cell; leave it out"),
    ({"identifiers": True}, "p.jsonl:1: there is no id, by which --identifiers goes"),
    ({"subsample_size": 100}, "--subsample-size 100: only 3 train pairs are there"),
    ({"valid": "no_such_module_here:valid"}, "there is no module no_such_module_here in a folder on PYTHONPATH"),
]


@pytest.mark.parametrize(("options", "problem"), WRONG_OPTIONS)
def test_options_that_do_not_fit_the_pairs(options, problem, tmp_path):
    source = jsonl(tmp_path / "p.jsonl", *[pair(a + b, b + a) for a in "ab" for b in "ab"])
    with pytest.raises(UserError) as caught:
        built(source, **options)
    assert problem in str(caught.value)
    assert not (tmp_path / "p-built").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "give --input-file, or --train-file with --test-file"),
        ({"train_file": "a"}, "--train-file, --test-file and --val-file go together"),
        ({"input_file": "a", "val_file": "a"}, "--train-file, --test-file and --val-file go together"),
        ({"input_file": "a", "train_file": "a"}, "give --input-file, or --train-file with --test-file"),
        ({"input_file": "a", "canvas": "3"}, "write rows and columns as 12x12"),
        ({"kind": "latin", "train_file": "a"}, "--kind needs --train-file and --test-file"),
        (
            {"kind": "latin", "train_file": "a", "test_file": "b", "dihedral": True},
            "--dihedral is not read with --kind",
        ),
    ],
)
def test_options_that_do_not_go_together(options, problem):
    with pytest.raises(ValueError, match=problem):
        GridConfig(output_dir="out", **options)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("- a", "is not a mapping"),
        ("a: {glyph: [1]}", "the symbol 'a' has the glyph [1]"),
        ("a: {colour: nosuch}", "the symbol 'a' has the colour 'nosuch'"),
        ("a: {colour: [red]}", "the symbol 'a' has the colour ['red']"),
        ("a: {color: red}", "the symbol 'a' has {'color': 'red'}; give it glyph, colour or both"),
        ("z: red", "the symbol 'z' is none of the dataset's, which are a b"),
        ("yes: red", "the symbol True is not text; put it in quotes"),
        ("a: {", "is not YAML"),
    ],
)
def test_a_wrong_symbols_file_is_named(content, problem, tmp_path):
    (tmp_path / "symbols.yaml").write_text(content)
    source = jsonl(tmp_path / "p.jsonl", pair("ab", "ba"))
    with pytest.raises(UserError) as caught:
        built(source, symbols=tmp_path / "symbols.yaml")
    assert "symbols.yaml" in str(caught.value) and problem in str(caught.value)
