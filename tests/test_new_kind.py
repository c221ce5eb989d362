"""A kind of puzzle of one's own, from CSV files to pictures: python -m pytest tests/test_new_kind.py

tests/latin.py in a folder `puzzles` that is on PYTHONPATH, and no other file, is all that Latin squares need.
"""

import csv
import json
import os
import re
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.launch import ROOT, error_line
from tests.warm import run

MODEL = dict(hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=1, L_cycles=1, halt_max_steps=2)


def latin_squares() -> list[str]:
    """All 576 of 4×4, by trying."""
    rows = ["".join(order) for order in permutations("ABCD")]

    def extended(square: tuple[str, ...]):
        if len(square) == 4:
            return ["".join(square)]
        fitting = [row for row in rows if all(a != b for above in square for a, b in zip(above, row, strict=True))]
        return [whole for row in fitting for whole in extended((*square, row))]

    return extended(())


def obeys(question: str, answer: str) -> bool:
    lines = [answer[start : start + 4] for start in range(0, 16, 4)] + [answer[column::4] for column in range(4)]
    return all(set(line) == set("ABCD") for line in lines) and all(q in (".", a) for q, a in zip(question, answer))


class Workshop:
    """A folder with the kind, a dataset of it, and a run; and the commands as somebody there types them."""

    def __init__(self, folder: Path):
        self.folder, self.data, self.run_folder = folder, folder / "data", folder / "run"
        self.path = os.pathsep.join([str(ROOT), str(folder)])
        (folder / "puzzles").mkdir()
        shutil.copy(ROOT / "tests/latin.py", folder / "puzzles")
        rng = np.random.default_rng(0)
        squares = latin_squares()
        assert len(squares) == 576
        solutions = rng.permutation(squares)
        self.questions = ["".join(np.where(rng.random(16) < 0.4, ".", list(whole))) for whole in solutions]
        for split, here in (("train", slice(0, 200)), ("test", slice(200, 230))):
            with open(folder / f"{split}.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("source", "question", "answer", "rating"))
                writer.writerows(("mine", *row, 0) for row in zip(self.questions[here], solutions[here], strict=True))

    def type(self, *arguments: object):
        return run(*arguments, PYTHONPATH=self.path)

    @property
    def checkpoint(self) -> Path:
        steps = [int(path.name[5:]) for path in self.run_folder.glob("step_*") if path.name[5:].isdecimal()]
        return self.run_folder / f"step_{max(steps)}"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp("latin"))
    made.type(
        "dataset/build_grid_dataset.py", "--kind", "latin", "--train-file", made.folder / "train.csv", "--test-file",
        made.folder / "test.csv", "--output-dir", made.data, "--num-aug", 2,
    )  # fmt: skip
    settings = {f"arch.{key}": value for key, value in MODEL.items()} | dict(
        data_path=made.data, checkpoint_path=made.run_folder, global_batch_size=32, epochs=4, lr=1e-3,
        lr_warmup_steps=2, eval_interval=2, device="cpu",
    )  # fmt: skip
    made.type("pretrain.py", *(f"{key}={value}" for key, value in settings.items()))
    return made


def test_it_is_built_trained_and_evaluated(workshop):
    described = json.loads((workshop.data / "train/dataset.json").read_text())
    assert (described["kind"], described["rows"], described["symbols"]) == ("latin", 4, ["?", ".", *"ABCD"])
    assert "eval/exact_accuracy" in workshop.type("evaluate.py", f"checkpoint={workshop.checkpoint}").stdout


def test_its_symmetries_and_rules_vote(workshop):
    command = ("-m", "evaluators.ensemble", f"checkpoint={workshop.checkpoint}", "json=true")
    report = json.loads(workshop.type(*command).stdout)
    assert (report["puzzles"], report["copies"]) == (30, 6)
    assert report["valid"]["majority_valid"] >= report["valid"]["majority"]


def test_it_is_solved_as_a_person_types_it(workshop):
    question, gif = workshop.questions[-1], workshop.folder / "steps.gif"
    typed = "\n".join(question[start : start + 4] for start in range(0, 16, 4))
    command = ("solve.py", f"checkpoint={workshop.checkpoint}", f"puzzle={typed}")
    found = json.loads(workshop.type(*command, "--json", "--gif", gif).stdout)
    assert (found["kind"], found["size"], found["puzzle"], len(found["steps"])) == ("latin", 4, question, 2)
    assert found["valid"] == obeys(question, found["answer"])
    assert Image.open(gif).n_frames == 3
    lines = workshop.type(*command).stdout.splitlines()
    assert re.match(r"4×4 Latin square, 2 reasoning steps of .*/step_\d+ \(\* changed since", lines[0])
    assert [line.split("   ")[0].replace(" ", "") for line in lines[3:7]] == typed.split("\n")
    assert lines[-1] == found["verdict"]


def test_what_is_wrong_with_it_is_said_in_its_words(workshop):
    command = ("solve.py", f"checkpoint={workshop.checkpoint}")
    line = error_line(*command, "puzzle=ABCD......x.....", PYTHONPATH=workshop.path, run=run)
    assert line.startswith("error: puzzle: character 11 is 'x'; a 4×4 Latin square is written in . A B C D")
    line = error_line(*command, "puzzle=1..4.4...1..4..1", PYTHONPATH=workshop.path, run=run)
    assert "was trained on 4×4 Latin squares, but what it shall solve is a 4×4 Sudoku" in line
    line = error_line(*command, "puzzle=ABCD............", PYTHONPATH=str(ROOT), run=run)
    assert "there is no kind of puzzle called 'latin'" in line
    assert "PYTHONPATH" in line


def test_its_steps_are_drawn(workshop):
    workshop.type("-m", "evaluators.figures", "steps", f"checkpoint={workshop.checkpoint}", "examples=2")
    picture = workshop.checkpoint.with_name(f"{workshop.checkpoint.name}_steps.png")
    report = json.loads(picture.with_suffix(".json").read_text())
    assert report["kind"] == "latin"
    assert set("".join(puzzle["solution"] for puzzle in report["puzzles"])) == set("ABCD")
    assert Image.open(picture).width > 500
