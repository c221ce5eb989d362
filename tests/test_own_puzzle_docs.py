"""docs/own-puzzle.md as it is typed, with less training: python -m pytest tests/test_own_puzzle_docs.py"""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.launch import ROOT
from tests.warm import run

PAGE = (ROOT / "docs/own-puzzle.md").read_text()
LESS = "arch.hidden_size=16 arch.num_heads=1 arch.H_cycles=1 arch.L_cycles=1 arch.halt_max_steps=2"


def section(title: str) -> str:
    """What is typed under a heading."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def commands(typed: str) -> list[str]:
    """Its commands; one that reads until END is several lines."""
    return [match[0].rstrip("\n") for match in re.finditer(r".*<<'END'\n(?:.*\n)*?END\n|.+\n", typed)]


def follow(title: str, folder: Path, batch: int = 128) -> dict[str, str]:
    """Do what the section says, below `folder`, but train for one epoch alone; -> what each command printed."""
    said, environment = {}, {}
    for place in ("mine", "data", "checkpoints"):
        (folder / place).mkdir()
    for command in commands(section(title)):
        moved = re.sub(r"(?<![\w/.])(mine|data|checkpoints)/", rf"{folder}/\1/", command)
        moved = moved.replace("enclosed.py 20000", "enclosed.py 2000")
        moved = re.sub(r"\bout=mine\b", f"out={folder}/mine", moved)
        moved = re.sub(r"([^\s=]+/checkpoints/\w+)/step_\d+", lambda match: str(last_step(Path(match[1]))), moved)
        if "<<'END'" in command:
            first, *lines, _ = moved.split("\n")
            Path(first.split()[2]).write_text("\n".join(lines) + "\n")
            continue
        words = shlex.split(moved)
        if words[0] == "export":
            environment["PYTHONPATH"] = f"{ROOT}:{ROOT}/examples"
            assert words[1] == "PYTHONPATH=$PWD/examples"
        elif words[0] == "printf":
            Path(words[3]).write_text(words[1].replace("\\n", "\n"))
        elif words[0] == "python":
            if words[1] == "pretrain.py":
                words += [*LESS.split(), f"global_batch_size={batch}", "epochs=1", "eval_interval=1"]
            elif "evaluators.search" in words:
                words = [*words[:5], "max_examples=20"]
            *words, file = words if words[-2] == ">" else [*words, "", None]
            said[command] = run(*words[1:-1], **environment).stdout
            if file is not None:
                Path(file).write_text(said[command])
        else:
            assert command == "mkdir -p mine"
    return said


def last_step(run_folder: Path) -> Path:
    steps = [int(path.name[5:]) for path in run_folder.glob("step_*") if path.name[5:].isdecimal()]
    return run_folder / f"step_{max(steps)}"


def output_of(said: dict[str, str], word: str) -> str:
    (found,) = (text for command, text in said.items() if word in command)
    return found


@pytest.mark.apart
def test_ten_commands_lead_from_ten_lines_to_a_picture(tmp_path):
    title = "From ten lines to a solved puzzle"
    typed = commands(section(title))
    assert len(typed) == 10
    assert typed[1].count('"input"') == 10
    said = follow(title, tmp_path, batch=8)
    built = output_of(said, "build_grid_dataset")
    assert "canvas of 5×5, 10 symbols: 1 2 3 4 5 6 7 8 9 .; train: 4,509 examples in 9 groups; test: 1 ex" in built
    assert "exact_accuracy" in output_of(said, "evaluate.py")
    solved = output_of(said, "solve.py").splitlines()
    assert solved[0].startswith("5×5 grid, 2 reasoning steps of ")
    assert solved[3].startswith("♥ ♠ . . .")
    assert "majority" in output_of(said, "evaluators.search")
    assert Image.open(tmp_path / "mine/steps.gif").n_frames == 3
    assert len(list((tmp_path / "mine").glob("step_*_steps.png"))) == 1


@pytest.mark.apart
def test_pairs_from_a_script(tmp_path):
    said = follow("A harder one", tmp_path)
    first = json.loads((tmp_path / "mine/enclosed.jsonl").read_text().splitlines()[1])
    assert output_of(said, "build_grid").endswith("8×8, 3 symbols: # . o; train: 14,400 examples in 1,800 groups; "
                                                  "test: 200 examples in 200 groups\n")  # fmt: skip
    for row, (question, answer) in enumerate(zip(first["input"], first["output"], strict=True)):
        assert all(cell == other or (cell, other) == (".", "o") for cell, other in zip(question, answer, strict=True))
        assert row not in (0, 7) or question == answer


@pytest.mark.apart
def test_queens_are_built_trained_and_judged_by_their_rules(tmp_path):
    said = follow("N-Queens: a kind from nothing", tmp_path)
    assert "train: 5,440 examples in 680 groups; test: 240 examples in 240 groups" in output_of(said, "--kind queens")
    assert re.search(r"majority of valid answers +\d+ +[\d.]+% +[\d.]+%", output_of(said, "evaluators.search"))
    verdict = output_of(said, "solve.py").splitlines()[-1]
    assert verdict.startswith(("valid: it obeys", "not valid: "))


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="pip install reasoning-gym")
def test_puzzles_of_reasoning_gym_are_built_trained_and_judged_by_its_scorer(tmp_path):
    said = follow("Puzzles that reasoning-gym makes", tmp_path)
    assert "test: 200 examples in 200 groups" in output_of(said, "--task n_queens")
    assert re.search(r"majority of valid answers +\d+ +[\d.]+% +[\d.]+%", output_of(said, "evaluators.search"))
    verdict = output_of(said, "solve.py").splitlines()[-1]
    assert verdict.startswith(("valid: the rule reasoning-gym:n_queens", "not valid: reasoning-gym's scorer"))
