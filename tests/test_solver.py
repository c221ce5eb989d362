"""Puzzles solved from Python, and which checkpoint a name means: python -m pytest tests/test_solver.py"""

import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
import solve
from dataset.build_grid_dataset import GridConfig, build
from errors import UserError
from evaluators import figures, pretrained, search
from puzzles.kind import find_kind, read_puzzle
from solve import Solver
from tests.launch import ROOT
from tests.runs import PIPELINE, here, load, pretrain, printed_metrics
from tests.test_hub import REPO, fake  # noqa: F401 - a fixture
from tests.test_solve import dictate, maze_tokens, run_folder, untrained
from tests.tiny_model import build_model
from training import hub
from training.checkpoints import checkpoints_in, find_checkpoint, read_weights

PUZZLES = ("1..4.4...1..4..1", ".2.43...2.4....2", "4321....2.......")


@pytest.fixture
def run(tmp_path):
    """A run on 4×4 Sudokus with two checkpoints, of which the first is the best."""
    folder = run_folder(tmp_path / "run", PIPELINE / "dataset").parent
    shutil.copy(PIPELINE / "final_checkpoint.pt", folder / "step_9")
    shutil.copy(PIPELINE / "init_checkpoint.pt", folder / "step_60")
    lines = [{"step": 9, "train/lm_loss": 1.0}, {"step": 9, "eval/exact_accuracy": 0.5, "train/lr": 0.1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "best.json").write_text(json.dumps({"checkpoint": "step_9", "step": 9}))
    start = {"command": ["/usr/bin/python3", "/home/me/pretrain.py", "+experiment=x", "run_name=a b"]}
    (folder / "environment.json").write_text(json.dumps([start, start | {"command": ["other"]}]))
    return folder


# Which file a name means


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["step_9", "step_60"], "step_60"),
        (["step_9", "step_60", "step_60_ema"], "step_60_ema"),
        (["step_100", "step_60_ema", "step_100_preds/x", "state_200/x"], "step_100"),
        (["model.safetensors"], "model.safetensors"),
        (["checkpoint", "all_config.yaml"], "checkpoint"),
        (["step_9", "step_60", {"checkpoint": "step_9"}], "step_9"),
        (["step_9", "step_60", {"checkpoint": "step_9", "value": 0.4}], "step_9"),
        (["step_9", "step_60", {"checkpoint": "step_9", "value": 0.0}], "step_60"),  # all as bad: the first is no best
        (["all_config.yaml"], UserError("holds no checkpoint step_<n>; name a run folder, or a checkpoint in one")),
        (["step_9", {"checkpoint": "step_8"}], UserError("best.json names 'step_8', which is not there; name a step_")),
        (["step_9", "x", {"checkpoint": "../step_9"}], UserError("best.json names '../step_9', which is not there")),
        (["step_9", ["step_9"]], UserError("best.json is damaged")),
    ],
)
def test_what_a_run_folder_stands_for(tmp_path, files, expected):
    for name in files:
        path = tmp_path / (name if isinstance(name, str) else "best.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if isinstance(name, str) else json.dumps(name))
    if isinstance(expected, str):
        assert find_checkpoint(tmp_path) == tmp_path / expected
        return
    with pytest.raises(UserError, match=re.escape(str(expected))):
        find_checkpoint(tmp_path)


def test_a_file_is_itself_even_where_it_is_not(tmp_path):
    with pytest.raises(UserError, match=r"step_1 does not exist; name a checkpoint step_<n>"):
        find_checkpoint(tmp_path / "step_1")
    (tmp_path / "all_config.yaml").touch()  # a run, whose file may be gone
    assert find_checkpoint(tmp_path / "step_1") == tmp_path / "step_1"
    (tmp_path / "step_10_ema").touch()
    (tmp_path / "step_9").touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step_9", "step_10_ema"]


# A packed checkpoint in every command


def test_a_packed_folder(run, tmp_path):
    packed = hub.pack(run, tmp_path / "packed" / "small", dtype="bfloat16")
    assert packed == tmp_path / "packed" / "small" / "model.safetensors"
    assert {path.name for path in packed.parent.iterdir()} == {
        "model.safetensors", "all_config.yaml", "dataset.json", "metrics.jsonl", "README.md",
    }  # fmt: skip
    for name, tensor in load(run / "step_9").items():
        assert torch.equal(load_file(packed)[name], tensor.bfloat16())
    assert [json.loads(line) for line in (packed.parent / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 9, "eval/exact_accuracy": 0.5}
    ]
    card = (packed.parent / "README.md").read_text()
    assert (
        "\npython pretrain.py +experiment=x 'run_name=a b'\n" in card and "| `eval/exact_accuracy` | 0.5000 |" in card
    )
    assert packed.stat().st_mode == (packed.parent / "README.md").stat().st_mode
    assert hub.read_checkpoint(packed)[0] == "step_9"
    with pytest.raises(UserError, match="small exists already; name a new folder"):
        hub.pack(run, packed.parent)
    with pytest.raises(UserError, match="no checkpoint step_61"):
        hub.pack(run, tmp_path / "other", "step_61")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("undrawn")
def test_every_command_takes_a_folder_and_safetensors(run, tmp_path):
    packed = hub.pack(run, tmp_path / "packed", checkpoint="step_60").parent
    (run / "best.json").write_text(json.dumps({"checkpoint": "step_60"}))
    names = {"plain": run / "step_60", "folder": run, "packed": packed, "file": packed / "model.safetensors"}
    told = {}
    for name, checkpoint in names.items():
        evaluated = here(evaluate.main, f"checkpoint={checkpoint}", "device=cpu", "save_steps=true")
        out = tmp_path / f"{name}.png"
        here(figures.main, "reliability", f"checkpoint={checkpoint}", "device=cpu", f"out={out}")
        searched = here(search.main, f"checkpoint={checkpoint}", "device=cpu", "max_examples=5", "json=true")
        solved = here(solve.main, f"checkpoint={checkpoint}", f"puzzle={PUZZLES[0]}", "device=cpu", "json=true")
        drawn = json.loads(out.with_suffix(".json").read_text())
        told[name] = (
            printed_metrics(evaluated),
            {key: json.loads(searched)[key] for key in ("right", "oracle_right", "mean_steps")},
            json.loads(solved),
            {key: value for key, value in drawn.items() if key != "checkpoint"},
        )
        assert drawn["checkpoint"] == str(
            packed / "model.safetensors" if name in ("packed", "file") else run / "step_60"
        )
    assert told["plain"] == told["folder"] == told["packed"] == told["file"]
    assert (run / "step_60_preds").is_dir() and (run / "step_60_search").is_dir()
    assert (packed / "model_preds").is_dir() and (packed / "model_search").is_dir()


def test_what_a_model_was_trained_on_is_missing(tmp_path, capsys):
    """Then no reader of puzzles is the right one, and which of them failed is no help alone."""
    gone = tmp_path / "gone"
    grids = untrained(tmp_path / "grid", gone, vocab_size=3, identifiers=1, seq_len=4)
    packed = hub.pack(grids.parent, tmp_path / "packed").parent
    assert f"warning: no dataset at {gone}: dataset.json, which says what" in capsys.readouterr().err
    assert "dataset.json" not in (packed / "README.md").read_text()
    for checkpoint in (grids, packed):
        for puzzle in ('["#.", ".."]', "#.\n..", np.array([[1, 0], [0, 0]])):
            with pytest.raises(UserError, match=rf"\(no dataset at {gone}, which says what puzzles .*: set data_path"):
                Solver.load(checkpoint).solve(puzzle)


def test_an_unknown_device_is_refused(run):
    with pytest.raises(UserError, match="device='cuda:0' is unknown; it is one of auto, cuda, mps, cpu"):
        Solver.load(run, device="cuda:0")


def test_a_run_starts_from_a_packed_folder(run, tmp_path):
    packed = hub.pack(run, tmp_path / "packed")
    lines = {
        name: pretrain(tmp_path / name, load_checkpoint=path, epochs=1, eval_interval=1, compile="off")
        for name, path in (("a", run / "step_9"), ("b", packed.parent))
    }
    assert lines["a"] == lines["b"] and len(lines["a"]) > 1


def test_a_damaged_packed_checkpoint_is_refused(run, tmp_path):
    packed = hub.pack(run, tmp_path / "packed")
    content = bytearray(packed.read_bytes())
    content[-100] ^= 1
    packed.write_bytes(content)
    with pytest.raises(UserError, match="does not hold the tensors that were written"):
        Solver.load(packed.parent).solve(PUZZLES[0])
    packed.write_bytes(b"not safe")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_weights(packed)


# The answers


def test_the_answers_are_those_of_the_command(run):
    solver = Solver.load(run, device="cpu")
    for halt in ("max", "q"):
        for puzzle in PUZZLES:
            words = (f"checkpoint={run}", f"puzzle={puzzle}", f"halt={halt}", "device=cpu", "json=true")
            stated, found = json.loads(here(solve.main, *words)), solver.solve(puzzle, halt=halt)
            assert found.answer == stated["answer"] and found.steps == [step["answer"] for step in stated["steps"]]
            assert (found.halted_at, found.valid) == (stated["halts_at"], stated["valid"])
            assert found.confidence == pytest.approx(stated["steps"][-1]["confidence"], abs=1e-6)
            assert "".join(map(str, found.grid.ravel())) == stated["answer"] and found.grid.shape == (4, 4)
            assert found.right is None and found.notes == tuple(stated["notes"])
    assert repr(found).startswith("<4×4 Sudoku: ") and "4 steps" in repr(solver.solve(PUZZLES[0]))


@pytest.mark.parametrize("halt", ["max", "q"])
def test_many_puzzles_in_one_call(run, monkeypatch, halt):
    """Split into batches of two; another size goes by itself, in the order in which they were given."""
    torch.save(build_model(halting=True).state_dict(), run / "step_9")
    monkeypatch.setattr("evaluators.solver.TOKENS", 2 * 17)
    inputs = np.load(PIPELINE / "dataset/test/all__inputs.npy")
    puzzles = ["".join(".1234"[token - 1] for token in row) for row in inputs[:7]]
    alone, together = Solver.load(run, device="cpu"), Solver.load(run, device="cpu")
    found = together.solve(puzzles, halt=halt, max_steps=6)
    assert len({len(one.steps) for one in found}) > 1 or halt == "max"
    for puzzle, one in zip(puzzles, found, strict=True):
        by_itself = alone.solve(puzzle, halt=halt, max_steps=6)
        assert (one.steps, one.halted_at) == (by_itself.steps, by_itself.halted_at)
        assert one.confidence == pytest.approx(by_itself.confidence, abs=1e-5)
    assert together.solve([]) == []
    with pytest.raises(UserError, match="puzzle 2: character 3 is 'x'"):
        together.solve([puzzles[0], "12x"])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (np.zeros((4, 4)), "puzzle is 2 axes of float64; write a text, or an array"),
        (np.zeros((1, 4, 4), int), "puzzle is 3 axes of int64"),
        (16, "puzzle is a int; write a text"),
        (np.full((4, 4), 5), "the digits of a 4×4 Sudoku are 1 to 4"),
        (np.zeros((4, 5), int), "puzzle has 20 cells"),
        (np.zeros((2, 8), int), "puzzle has 2×8 cells, which is not the shape of a 4×4 Sudoku"),
        (np.full((4, 4), -1), "puzzle has a cell -1; 0 is a blank, and no cell is negative"),
        ([[1, 0, 0, 4]] * 4, "puzzle 1 is a list; write a text, or an array"),
        (None, "puzzle is a NoneType; write a text"),
    ],
)
@pytest.mark.parametrize("of", ["a run", "pretrained"])
def test_what_is_no_puzzle(run, models, of, cells, message):
    if of == "pretrained" and getattr(cells, "shape", (4, 4)) != (4, 4) and np.ndim(cells) == 2:
        message = "no model in pretrained/ was trained on boards of"
    with pytest.raises(UserError, match=message):
        Solver.load(run if of == "a run" else None).solve(cells)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps=0 is no whole number from 1 to 65,535"),
        ({"max_steps": "3"}, "max_steps='3' is no whole number"),
        ({"max_steps": 1.5}, "max_steps=1.5 is no whole number"),
        ({"max_steps": 10**9}, "max_steps=1000000000 is no whole number"),
        ({"halt": "Q"}, "halt='Q' is unknown; it is max or q"),
    ],
)
def test_options_that_mean_nothing(run, options, message):
    with pytest.raises(UserError, match=message):
        Solver.load(run).solve(PUZZLES[0], **options)


def test_puzzles_as_arrays(run):
    solver = Solver.load(run, device="cpu")
    digits = np.array([[0 if cell == "." else int(cell) for cell in PUZZLES[0]]]).reshape(4, 4)
    for cells in (digits, digits.astype(np.uint8), digits.ravel(), np.array([*PUZZLES[0]])):
        assert solver.solve(cells).steps == solver.solve(PUZZLES[0]).steps


def test_mazes(tmp_path, monkeypatch):
    solver = Solver.load(untrained(tmp_path / "maze", tmp_path / "gone", vocab_size=6))
    dictate(monkeypatch, maze_tokens("Soo", "# o", "Goo"))
    found = solver.solve("S..\n#..\nG..")
    assert (found.answer, found.valid) == ("Soo\n# o\nGoo", True)
    assert found.grid.tolist() == [["S", "o", "o"], ["#", " ", "o"], ["G", "o", "o"]]
    assert read_puzzle(found.answer, "its answer").kind == find_kind("maze")(3, 3)


def test_grids_of_one_s_own(tmp_path, monkeypatch):
    rows = [
        {"input": [[1, 0], [0, 2]], "output": [[2, 0], [0, 1]]},
        {"input": [[1, 1], [0, 2]], "output": [[2, 2], [0, 1]]},
    ]
    mine, data = tmp_path / "mine.jsonl", tmp_path / "data"
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with redirect_stdout(StringIO()):
        build(GridConfig(train_file=mine, test_file=mine, output_dir=data))
    metadata = json.loads((data / "train/dataset.json").read_text())
    shape = {"vocab_size": metadata["vocab_size"], "identifiers": metadata["num_puzzle_identifiers"], "seq_len": 4}
    path = untrained(tmp_path / "grid", data, **shape)
    tokens = {symbol: token for token, symbol in enumerate(metadata["symbols"])}
    answer = np.array([tokens[cell] for cell in "2001"])
    solver = Solver.load(path)
    for puzzle in ("[[1, 0], [0, 2]]", np.array([[1, 0], [0, 2]]), json.dumps(rows[0])):
        dictate(monkeypatch, answer)
        found = solver.solve(puzzle)
        assert found.grid.tolist() == [[2, 0], [0, 1]] and json.loads(found.answer) == found.grid.tolist()
        assert found.valid is None
    assert found.right is True


def test_a_grid_whose_last_row_is_holes_is_read_as_an_array(tmp_path, monkeypatch):
    """As it is in the file that its dataset was built from."""
    mine, data = tmp_path / "mine.jsonl", tmp_path / "data"
    grids = [[["a", "b"], ["b", "a"]], [["b", "a"], [None, None]]]
    mine.write_text("".join(json.dumps({"input": grid, "output": grid}) + "\n" for grid in grids))
    with redirect_stdout(StringIO()):
        build(GridConfig(train_file=mine, test_file=mine, output_dir=data))
    solver = Solver.load(untrained(tmp_path / "grid", data, vocab_size=3, identifiers=1, seq_len=4))
    dictate(monkeypatch, np.array([2, 1, 0, 0]))
    for puzzle in (np.array(grids[1], object), json.dumps(grids[1])):
        assert solver.solve(puzzle).answer == "ba"


def test_arc_tasks(tmp_path, monkeypatch):
    path = untrained(tmp_path / "arc", tmp_path / "gone", vocab_size=12, seq_len=900)
    (tmp_path / "mine.json").write_text(
        json.dumps(
            {
                "train": [{"input": [[1]], "output": [[1]]}],
                "test": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3]]}],
            }
        )
    )
    solver, arc = Solver.load(path), find_kind("arc")(30, 30)
    dictate(monkeypatch, arc.on_canvas(np.array([[2, 2]], np.uint8)))
    found = solver.solve_task(str(tmp_path / "mine.json"))
    assert (found.grid.tolist(), found.answer, found.valid, found.right) == ([[2, 2]], "[[2, 2]]", None, False)
    dictate(monkeypatch, arc.on_canvas(np.array([[3]], np.uint8)))
    assert solver.solve_task(str(tmp_path / "mine.json"), query=2).right is None
    for number in (-2, -1, 0, 3):
        with pytest.raises(UserError, match=f"query={number}: mine has 2 test inputs$"):
            solver.solve_task(str(tmp_path / "mine.json"), query=number)


# Where models come from


def test_a_model_of_the_hub(fake, run):  # noqa: F811 - the fixture
    hub.push(run, REPO)
    (run / "best.json").unlink()
    solver = Solver.load(REPO, device="cpu")
    assert [found.steps for found in solver.solve(list(PUZZLES))] == [
        found.steps for found in Solver.load(run / "step_9", device="cpu").solve(list(PUZZLES))
    ]
    with pytest.raises(UserError, match="there is no checkpoint or run folder someone/nothing here, and on the Hub: "):
        Solver.load("someone/nothing")


def test_a_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("went to the Hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name in ("runs/step_60", "checkpoints/mine", "step_60", "a/b/c"):
        with pytest.raises(UserError, match=f"{name} does not exist; name a checkpoint"):
            Solver.load(name)


@pytest.fixture
def models(run, tmp_path, monkeypatch):
    """pretrained/ with a model of 4×4 Sudokus and an untrained one of 6×6, described by their datasets alone."""
    folder = tmp_path / "pretrained"
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    hub.pack(run, folder / "small")
    six = untrained(tmp_path / "six", tmp_path / "gone", vocab_size=8, seq_len=36)
    hub.pack(six.parent, folder / "a-larger-one")
    described = json.loads((folder / "small/dataset.json").read_text())
    for name, size in (("small", 4), ("a-larger-one", 6)):
        kind = find_kind("sudoku")(size, size)
        about = {key: value for key, value in described.items() if key != "digests"} | kind.describe()
        about |= {"vocab_size": kind.vocab_size, "seq_len": kind.seq_len}
        (folder / name / "dataset.json").write_text(json.dumps(about))
    (folder / "README.md").write_text("not a model")
    (folder / "empty").mkdir()
    return folder


def test_the_pretrained_model_that_fits_is_taken(models, run, capsys):
    solver = Solver.load(device="cpu")
    found = solver.solve([PUZZLES[0], "." * 36, np.zeros((4, 4), int)])
    assert [one.grid.shape for one in found] == [(4, 4), (6, 6), (4, 4)]
    assert found[0].steps == Solver.load(run, device="cpu").solve(PUZZLES[0]).steps
    solve.solve(solve.SolveConfig(puzzle=PUZZLES[1], device="cpu"))
    assert f"4×4 Sudoku, 4 reasoning steps of {models / 'small/model.safetensors'} " in capsys.readouterr().out


def test_where_no_pretrained_model_fits(models):
    there = r"\(it has a-larger-one for 6×6 Sudokus, small for 4×4 Sudokus\); name one with checkpoint=…"
    solver = Solver.load()
    for ask, message in {
        lambda: solver.solve("." * 81): f"no model in pretrained/ was trained on a 9×9 Sudoku {there}",
        lambda: solver.solve("S.#G"): "no model in pretrained/ was trained on a 2×2 maze",
        lambda: solver.solve("[[1]]"): "no model in pretrained/ was trained on an ARC grid",
        lambda: solver.solve(np.zeros((5, 5), int)): "no model in pretrained/ was trained on boards of 5×5",
        lambda: solver.solve("1234x"): "puzzle: character 5 is 'x'; a Sudoku is written in digits",
        lambda: solver.solve_task("007bbfb7"): "no model in pretrained/ was trained on ARC tasks",
        lambda: Solver.load(data_path="data/x"): "data_path=data/x is the dataset of a checkpoint; name one",
    }.items():
        with pytest.raises(UserError, match=message):
            ask()
    shutil.rmtree(models)
    with pytest.raises(UserError, match=r"\(it has none\)"):
        Solver.load().solve("." * 81)


def test_what_the_pretrained_models_solve_is_read_once(models, monkeypatch):
    read = []
    description_in = pretrained.description_in
    monkeypatch.setattr(pretrained, "description_in", lambda folder: read.append(folder.name) or description_in(folder))
    solver = Solver.load(device="cpu")
    solver.solve([PUZZLES[0], "." * 36, PUZZLES[1]])
    assert sorted(read) == ["a-larger-one", "small"]


@pytest.mark.parametrize("content", ['{"vocab_size": ', "[]", '{"vocab_size": 6}', b"\xff", None])
def test_a_damaged_pretrained_model_is_named_and_passed_over(models, capsys, content):
    damaged = models / "a-larger-one/dataset.json"
    if content is None:  # a kind that does not exist
        damaged.write_text(json.dumps(json.loads(damaged.read_text()) | {"kind": "chess"}))
    else:
        damaged.write_bytes(content if isinstance(content, bytes) else content.encode())
    solver = Solver.load(device="cpu")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: passing over pretrained/a-larger-one: ") and warning.count("\n") == 1
    assert "dataset.json" in warning or "chess" in warning
    assert solver.solve(PUZZLES[0]).grid.shape == (4, 4)
    with pytest.raises(UserError, match=r"9×9 Sudoku \(it has small for 4×4 Sudokus\)"):
        solver.solve("." * 81)
    assert capsys.readouterr().err == ""


@pytest.mark.apart
def test_the_code_in_the_docs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    with redirect_stdout(StringIO()) as printed:
        exec(code, {})
    answer, row, steps, halted, confidence, valid = printed.getvalue().splitlines()
    assert f"first row, a numpy array: {row}" in code and f"{steps} of them here" in code and f"# {halted}: " in code
    assert len(answer) == 81 and 0 <= float(confidence) <= 1 and valid == "True"
