"""A kind of puzzle of your own, from CSV files to pictures: python -m pytest tests/test_new_kind.py

All that Latin squares need is a folder on PYTHONPATH with `puzzles/latin.py`.
"""

import json
import os
import re
from math import factorial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from errors import UserError
from puzzles.kind import find_kind
from tests.latin_squares import EXAMPLES, latin_dropped_in, write_source
from tests.launch import ROOT, error_line
from tests.warm import run

MODEL = dict(hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=1, L_cycles=1, halt_max_steps=2)
WITH_LATIN = os.pathsep.join(map(str, (ROOT, EXAMPLES)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With CSV files, the dataset `data` and the run `run`."""
    folder = tmp_path_factory.mktemp("latin")
    write_source(folder, train=200, test=30)
    command(
        "dataset/build_grid_dataset.py", "--kind", "latin", "--train-file", folder / "train.csv", "--test-file",
        folder / "test.csv", "--output-dir", folder / "data", "--num-aug", 2,
    )  # fmt: skip
    settings = {f"arch.{key}": value for key, value in MODEL.items()} | dict(
        data_path=folder / "data", checkpoint_path=folder / "run", global_batch_size=32, epochs=4, lr=1e-3,
        lr_warmup_steps=2, eval_interval=2, device="cpu",
    )  # fmt: skip
    command("pretrain.py", *(f"{key}={value}" for key, value in settings.items()))
    return folder


@pytest.fixture
def checkpoint(folder) -> Path:
    steps = [int(path.name[5:]) for path in (folder / "run").glob("step_*") if path.name[5:].isdecimal()]
    return folder / f"run/step_{max(steps)}"


def command(*arguments: object) -> str:
    """-> what it prints."""
    return run(*arguments, PYTHONPATH=WITH_LATIN).stdout


def refusal(*arguments: object, path: str = WITH_LATIN) -> str:
    return error_line(*arguments, run=run, PYTHONPATH=path)


def obeys(question: str, answer: str) -> bool:
    lines = [answer[start : start + 4] for start in range(0, 16, 4)] + [answer[column::4] for column in range(4)]
    clues_kept = all(clue in (".", letter) for clue, letter in zip(question, answer, strict=True))
    return clues_kept and all(set(line) == set("ABCD") for line in lines)


def test_its_symmetries_are_different_and_all_that_there_are(tmp_path):
    with latin_dropped_in(tmp_path):
        latin = find_kind("latin")
        for size, count in ((2, 8), (3, 216), (4, 1001)):
            kind = latin(size, size)
            found = kind.symmetries(count, 0)
            assert len({one.cells.tobytes() + one.tokens.tobytes() for one in found}) == count
            assert (found[0].cells == np.arange(size**2)).all()
            most = factorial(size) ** 3
            with pytest.raises(
                UserError, match=f"{most + 1} copies: a {size}×{size} Latin square has {most} different"
            ):
                kind.symmetries(most + 1, 0)


def test_it_is_evaluated(checkpoint):
    assert re.search(r"eval/exact_accuracy\s+\d", command("evaluate.py", f"checkpoint={checkpoint}"))


def test_it_is_searched_by_its_rules_and_symmetries(checkpoint):
    report = json.loads(command("-m", "evaluators.search", f"checkpoint={checkpoint}", "views=8", "json=true"))
    assert (report["puzzles"], report["views"], report["choose"]) == (30, 8, "majority_valid")
    assert report["valid"]["majority_valid"] >= report["valid"]["majority"]


def test_it_is_solved_as_a_person_types_it(checkpoint, tmp_path):
    question, gif = "AB..C..." + "." * 8, tmp_path / "steps.gif"
    typed = "\n".join(question[start : start + 4] for start in range(0, 16, 4))
    arguments = ("solve.py", f"checkpoint={checkpoint}", f"puzzle={typed}")
    found = json.loads(command(*arguments, "--json", "--gif", gif))
    assert (found["kind"], found["size"], found["puzzle"], len(found["steps"])) == ("latin", 4, question, 2)
    assert found["valid"] == obeys(question, found["answer"])
    assert Image.open(gif).n_frames == 3
    lines = command(*arguments).splitlines()
    assert re.match(r"4×4 Latin square, 2 reasoning steps of .*/step_\d+ \(\* changed since", lines[0])
    assert [line.split("   ")[0].replace(" ", "") for line in lines[3:7]] == typed.split("\n")
    assert lines[-1] == found["verdict"]


def test_what_is_wrong_with_it_is_said_in_its_words(checkpoint):
    arguments = ("solve.py", f"checkpoint={checkpoint}")
    line = refusal(*arguments, "puzzle=ABCD......x.....")
    assert line.startswith("error: puzzle: character 11 is 'x'; a 4×4 Latin square is written in . A B C D")
    line = refusal(*arguments, "puzzle=1..4.4...1..4..1")
    assert "was trained on 4×4 Latin squares, but the puzzle is a 4×4 Sudoku" in line
    line = refusal(*arguments, "puzzle=ABCD............", path=str(ROOT))
    assert "there is no kind of puzzle called 'latin'" in line
    assert "PYTHONPATH" in line


def test_its_steps_are_drawn(checkpoint, tmp_path):
    command("-m", "evaluators.figures", "steps", f"checkpoint={checkpoint}", "examples=2", f"out={tmp_path}")
    picture = tmp_path / f"{checkpoint.name}_steps.png"
    report = json.loads(picture.with_suffix(".json").read_text())
    assert report["kind"] == "latin"
    assert set("".join(puzzle["solution"] for puzzle in report["puzzles"])) == set("ABCD")
    assert Image.open(picture).width > 500
