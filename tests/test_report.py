"""The report of a run: python -m pytest tests/test_report.py"""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from errors import UserError
from puzzle_dataset import PuzzleDataset
from tests.launch import ROOT
from tests.runs import PIPELINE, here, pretrain
from tests.sample_datasets import build_arc
from training.curves import read_run, shown_panels, smooth
from training.distributed import Ranks
from training.prediction_examples import look_at
from training.predictions import PredictionWriter
from training.report import how_to_predict, report
from training.report_page import left_out
from training.run_facts import Facts, cost_in_words


@pytest.fixture
def folder(tmp_path):
    lines = []
    for step in range(1, 401):
        count = step % 2
        lines.append(
            {"step": step, "train/lm_loss": 2 / step, "train/exact_accuracy": count * step / 400, "train/count": count}
            | {"train/steps": 3.0 * count, "train/lr": 1e-3}
        )
        if step % 100 == 0:
            values = {"lm_loss": 2 / step, "exact_accuracy": step / 400, "accuracy": 0.9, "steps": 4.0}
            values |= {"halt_q/exact_accuracy": step / 800, "halt_q/steps": 2.5}
            lines.append({"step": step} | {f"eval/{key}": value for key, value in values.items()})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_steps_in_which_nothing_halted_have_no_accuracy(folder):
    steps, values = map(np.asarray, read_run(folder).curves["train/exact_accuracy"])
    np.testing.assert_array_equal(steps, np.arange(1, 401, 2))
    np.testing.assert_allclose(values, steps / 400)
    steps, values = smooth(steps, values)
    assert len(steps) == 100
    np.testing.assert_allclose(values, steps / 400)


def test_the_picture_and_the_table(folder, capsys):
    assert report([folder]) == folder / "report.html"
    with Image.open(folder / "learning_curves.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20  # lines were drawn
    rows = capsys.readouterr().out.splitlines()
    assert len([row for row in rows if "%" in row]) == 4
    assert rows[4].split()[:6] == ["200", "0.0100", "90.0%", "2.5", "25.0%", "50.0%"]
    assert rows[4].count("█") == 15


def test_several_runs_share_a_picture_and_keep_their_names_apart(folder, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("other") / folder.name  # as seeds of one experiment are: the same last name
    other.mkdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    better = [line | {"eval/exact_accuracy": 0.8} if "eval/accuracy" in line else line for line in lines]
    (other / "metrics.jsonl").write_text("\n".join(map(json.dumps, better)))
    alone = Image.open(report([folder], folder / "alone.png")).convert("RGB")
    both = Image.open(report([folder, other], folder / "both.png")).convert("RGB")
    orange = (255, 127, 14)  # the second of matplotlib's colours
    assert orange not in {colour for _, colour in alone.getcolors(1 << 20)}
    assert orange in {colour for _, colour in both.getcolors(1 << 20)}
    rows = capsys.readouterr().out.splitlines()
    assert rows.count(str(folder)) == rows.count(str(other)) == 1
    assert len([row for row in rows if "80.0%" in row]) == 4


STEP = b'{"step": 1, "train/lm_loss": 1.5}\n'
NO_METRICS = {
    "no file": (None, "metrics.jsonl is missing; name a run folder"),
    "nothing": (b"", "empty: the run has not made a step yet"),
    "blank lines": (b"\n \n", "empty"),
    "half a line": (STEP + b'{"step": 2, "tr\n' + STEP, "damaged in line 2"),
    "half a line, ended": (STEP + b'{"step": 2, "tr\n', "damaged in line 2"),
    "nothing but half a line": (b'{"step": 2, "tr', "damaged in line 1: Unterminated string"),
    "NUL bytes": (STEP + bytes(100) + STEP, "damaged in line 2"),
    "a list": (STEP + b"[1, 2]\n", "line 2: it is no JSON object"),
    "a number": (b"1\n", "line 1: it is no JSON object"),
    "null": (b"null", "line 1: it is no JSON object"),
    "no step": (b'{"train/lm_loss": 1}', "line 1: it has no step"),
    "a word as step": (b'{"step": "1"}', "line 1: its step is no number"),
    "true as step": (b'{"step": true}', "line 1: its step is no number"),
    "an infinite step": (b'{"step": Infinity}', "line 1: its step is no number"),
    "NaN as step": (b'{"step": NaN}', "line 1: its step is no number"),
    "a step of 400 digits": (b'{"step": 1' + b"0" * 400 + b"}", "line 1: its step is no number"),
    "a step of 5000 digits": (b'{"step": 1' + b"0" * 5000 + b"}", "line 1: Exceeds the limit"),
    "nested": (STEP + b"[" * 100_000 + b"\n", "line 2: it is nested too deeply"),
    "Latin-1": ('{"step": 1, "é": 1}'.encode("latin-1"), "line 1: 'utf-8' codec can't decode"),
    "UTF-16": ('{"step": 1}'.encode("utf-16"), "line 1: 'utf-8' codec can't decode"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", NO_METRICS)
def test_what_is_no_metrics_is_refused_by_its_line(tmp_path, name):
    content, message = NO_METRICS[name]
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        report([tmp_path])
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob("*.html"))


ODD_METRICS = {
    "no evaluation yet": (STEP, ["    no evaluation yet"]),
    "evaluations alone": (
        b'{"step": 5, "eval/exact_accuracy": 0.5}',
        ["       5        -       -      -        -   50.0% " + 15 * "█"],
    ),
    "a byte order mark": (b"\xef\xbb\xbf" + STEP + b"\n", ["    no evaluation yet"]),
    "nothing known": (b'{"step": 1, "other": {"a": [1]}}', ["    no evaluation yet"]),
    "no finite values": (
        b'{"step": 1, "train/lm_loss": NaN, "train/lr": 1e400, "train/exact_accuracy": -1e308}\n'
        b'{"step": 2, "train/lm_loss": 1e308, "train/lr": -Infinity, "train/count": 1}\n'
        b'{"step": 3, "eval/exact_accuracy": NaN, "eval/lm_loss": Infinity}\n'
        b'{"step": 4, "eval/exact_accuracy": 1e9, "eval/lm_loss": "?", "eval/steps": null}\n'
        b'{"step": 5, "eval/exact_accuracy": -2, "eval/lm_loss": 1e308}\n',
        ["       3      inf       -      -        -    nan%", "100000000000.0% " + 30 * "█"],
    ),
}  # fmt: skip


def warnings_in(recwarn) -> list:
    """Warnings of matplotlib, and not of files of other tests that are collected meanwhile."""
    return [warning for warning in recwarn if not issubclass(warning.category, ResourceWarning)]


@pytest.mark.parametrize("name", ODD_METRICS)
def test_odd_metrics_are_drawn_all_the_same(tmp_path, capsys, recwarn, name):
    content, expected = ODD_METRICS[name]
    (tmp_path / "metrics.jsonl").write_bytes(content)
    report([tmp_path])
    with Image.open(tmp_path / "learning_curves.png") as image:
        assert image.size[0] > 1000
    captured = capsys.readouterr()
    for line in expected:
        assert line in captured.out
    assert not captured.err and not warnings_in(recwarn)


@pytest.mark.parametrize(
    "name", ["a$b$c", r"$\frac$", r"\alpha$", "$", "_hidden", "ünï", "実験", "%s", "a\nb", "\udcff"]
)
def test_a_run_may_have_any_name(folder, tmp_path, recwarn, name):
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    report([run, folder], tmp_path / "out.svg")
    assert b"<svg" in (tmp_path / "out.svg").read_bytes()
    assert not warnings_in(recwarn)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("taken.png", "taken.png is there and holds something else"),
        ("taken.PDF", "taken.PDF is there and holds something else"),
        ("taken.svg", "taken.svg is there and holds something else"),
        ("new.html", "new.png is there and holds something else"),
        ("curves.xyz", r"curves.xyz must be a folder, or end in \.html, \.png, \.pdf, \.svg"),
        ("curves", r"curves must be a folder"),
        ("taken.html", "taken.html is there and holds something else"),
        ("folder.html/x.html", "cannot write .*x.html: No such file or directory"),
        ("nowhere/curves.png", "cannot write .*nowhere/curves.png: No such file or directory"),
    ],
)
def test_where_no_picture_can_go_is_said_before_the_work(folder, monkeypatch, out, message):
    monkeypatch.setattr("training.report.read_run", lambda folder: pytest.fail("it was read"))
    mine = ["new.png", "taken.PDF", "taken.html", "taken.png", "taken.svg"]
    for name in mine:
        (folder / name).write_text("<p>mine</p>")
    with pytest.raises(UserError, match=message):
        report([folder], folder / out)
    assert {path.name: path.read_text() for path in folder.iterdir() if path.name in mine} == dict.fromkeys(
        mine, "<p>mine</p>"
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(["metrics.jsonl", *mine])


def test_a_run_that_is_named_twice_is_refused(folder):
    with pytest.raises(UserError, match="named twice"):
        report([folder, folder])


def test_help_loads_no_pytorch():
    """Which takes two seconds."""
    program = "import sys, training.report; print(*sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.usefixtures("undrawn")
def test_lines_that_changed_since_a_state_was_saved_are_named(folder, capsys):
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_bytes()
    for name, size in (("state_300", 20_000), ("state_400.aside", 10), ("state_350", 15_000)):
        (folder / name).mkdir()
        digest = hashlib.sha256(lines[:size] if name != "state_400.aside" else b"another run's").hexdigest()
        saved = {"metrics_bytes": size, "metrics_sha256": digest, "progress": {"step": int(name[6:9])}}
        (folder / name / "manifest.json").write_text(json.dumps(saved))
    report([folder])
    assert capsys.readouterr().err == ""
    metrics.write_bytes(lines.replace(b'"step": 50', b'"step": 51'))
    report([folder])
    assert capsys.readouterr().err.startswith(f"warning: {metrics} is not what the run had written at step 300: lines")


@pytest.mark.usefixtures("undrawn")
def test_a_last_line_that_is_not_whole_is_left_out(folder, capsys):
    """As while a run writes it, or after it was killed."""
    whole = (folder / "metrics.jsonl").read_bytes() + b"\n"
    (folder / "metrics.jsonl").write_bytes(whole + b'{"step": 401, "train/lm_l')
    report([folder])
    assert "the last line of" in capsys.readouterr().err
    assert "step 400; the last line of metrics.jsonl is not whole" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_steps_that_never_change_are_said_and_not_drawn(tmp_path, folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {key: 8.0 for key in ("train/steps", "eval/halt_q/steps") if key in line and line.get("train/count", 1)}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(shown_panels([read_run(tmp_path)])) == ["loss per token", "exact accuracy"]
    (tmp_path / "all_config.yaml").write_text("seed: 1\n")
    report([tmp_path])
    assert "it takes 8 reasoning steps at every evaluation" in (tmp_path / "report.html").read_text()


# The page


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps on 4×4 Sudokus, with two evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    pretrain(folder, epochs=4, eval_interval=2, **{"arch.halt_exploration_prob": 0.5})
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "<b>run & co"))


def text_of(page: Path) -> str:
    """What is read on a page, without tags, pictures and styles."""
    text = re.sub(r"<(style|svg).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"</?(code|span)[^>]*>", "", text)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_page_says_what_was_trained_on_what(run):
    text = text_of(report([run]))
    for part in (
        "<b>run & co", "HierarchicalReasoningModel_ACTV1, 57,794 parameters, at most 4 reasoning steps: hidden size 32",
        "4×4 Sudoku; train: 200 examples of 40 puzzles; test: 21 examples", "4 epochs in batches of 8; learning rate",
        "step 20 ", "% exactly right after all reasoning steps", "% where the model halts (after ", "steps a second",
        "MFLOP a training step as counted", "cpu (", "PyTorch 2", "The command", "pretrain.py", "Learning curves",
        f"python evaluate.py checkpoint={shlex.quote(str(run))} halt=q save_steps=true",
    ):  # fmt: skip
        assert part in text, part
    source = (run / "report.html").read_text()
    assert "<b>run" not in source and "src=" not in source.replace('src="data:', "")
    assert not re.search(r"(href|url\()=?[\"'(]?https?:", source)


def evaluated(run: Path, *options: str) -> str:
    here(evaluate.main, f"checkpoint={run / 'step_20'}", "device=cpu", "compile=off", *options)
    return text_of(report([run]))


def test_predictions_give_reliability_halting_and_examples(run):
    text = evaluated(run, "halt=q", "save_steps=true")
    assert re.search(r"Answers of step_20 to 21 puzzles of the split\s+test, where each halts: \d+ right: ", text)
    for part in ("Does it know when it is right?", "When does it halt?", "Expected calibration error", "surest first"):
        assert part in text, part
    assert "evaluate.py" not in text.split("What its answers show")[1]
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', (run / "report.html").read_text())
    assert len(pictures) >= 9
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as image:
        assert min(image.size) > 300
    text = evaluated(run)
    assert "More to see with evaluate.py: save_steps=true saves" in text and "halt=q lets" in text
    assert "When does it halt?" not in text and "cells revised" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], ""),
        ([1, 1, 1], ""),
        ([1, 0, 0], "; 2 steps without a change left out"),
        ([0], "; 1 step without a change left out"),
        ([1] * 9, "; 4 steps left out"),
    ],
)
def test_it_says_which_steps_are_left_out(changes, words):
    answers = np.cumsum([0, *changes])[:, None] * np.ones((1, 16), int)
    assert left_out(answers) == words


@pytest.mark.usefixtures("undrawn")
def test_what_predictions_show_is_what_they_hold(run):
    """Counted anew, one puzzle at a time, from the arrays on disk."""
    evaluated(run, "save_steps=true")
    seen = look_at(run / "step_20", PIPELINE / "dataset")
    load = {field: np.load(run / f"step_20_preds/{field}.0.npy") for field in ("answers_by_step", "q_halt_logits")}
    labels = np.load(PIPELINE / "dataset/test/all__labels.npy")
    by_step, sure = load["answers_by_step"], 1 / (1 + np.exp(-load["q_halt_logits"].astype(float)))
    right = [bool((answers[-1] == label).all()) for answers, label in zip(by_step, labels, strict=True)]
    revised = [sum(int((b != a).sum()) for a, b in pairwise(answers)) for answers in by_step]
    assert (seen.puzzles, seen.right) == (21, sum(right))
    assert [example.revised for example in seen.most_revised] == [
        revised[row] for row in sorted(range(21), key=lambda row: (not right[row], -revised[row]))[:3]
    ]
    wrong = sorted((row for row in range(21) if not right[row]), key=lambda row: -sure[row])[:3]
    assert [example.confidence for example in seen.sure_and_wrong] == pytest.approx([sure[row] for row in wrong])
    for example, row in zip(seen.sure_and_wrong, wrong, strict=True):
        np.testing.assert_array_equal(example.answers, by_step[row])
        np.testing.assert_array_equal(example.solution, labels[row])
    assert seen.bins[0].sum() == 21 and seen.bins[1].sum().item() == pytest.approx(sure.sum())


@pytest.mark.usefixtures("undrawn")
def test_halting_is_counted_by_steps(run):
    evaluated(run, "halt=q")
    steps = np.load(run / "step_20_preds/steps.0.npy")
    np.testing.assert_array_equal(
        look_at(run / "step_20", PIPELINE / "dataset").halted, np.bincount(steps, minlength=5)
    )


@pytest.mark.usefixtures("undrawn")
def test_several_runs_are_compared_and_keep_what_is_their_own(run, trained, tmp_path):
    other = Path(shutil.copytree(trained, tmp_path / "other" / run.name))  # the same name
    config = (other / "all_config.yaml").read_text()
    (other / "all_config.yaml").write_text(re.sub(r"(?m)^seed: .*", "seed: 77", config))
    metrics = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(
        re.sub(r'"eval/exact_accuracy": [\d.]+', '"eval/exact_accuracy": 0.5', metrics)
    )
    old = trained.parent / "old"  # of an earlier version: nothing but metrics
    old.mkdir(exist_ok=True)
    (old / "metrics.jsonl").write_bytes(STEP)
    page = report([run])
    before = {path: path.read_bytes() for path in (page, run / "learning_curves.png")}
    compared = report([old, run, other], None)
    assert compared == old / "comparison.html"
    assert {path: path.read_bytes() for path in before} == before
    assert report([run, other]) == run / "comparison.html" and (run / "comparison.png").exists()
    rows = re.findall(r"<tr>(.*?)</tr>", compared.read_text())
    cells = [[unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)] for row in rows]
    assert [row[:2] for row in cells[1:4]] == [
        [str(other), "50.00%"], [str(run), cells[2][1]], [str(old), "–"]
    ]  # fmt: skip
    differing = {row[0]: row[1:] for row in cells[5:]}
    assert differing["seed"] == ["–", "7", "77"]
    assert "checkpoint_path" not in differing
    assert "no evaluation yet" in text_of(compared)


@pytest.mark.parametrize(("out", "page", "picture"), [
    ("there.html", "there.html", "there.png"), (".", "report.html", "learning_curves.png"), ("a.svg", None, "a.svg"),
    ("a.PDF", None, "a.PDF"), ("a.png", None, "a.png"),
])  # fmt: skip
def test_where_the_report_goes(folder, tmp_path_factory, out, page, picture):
    place = tmp_path_factory.mktemp("place")
    for _ in range(2):  # its own page is replaced
        assert report([folder], place / out) == place / (page or picture)
    assert sorted(path.name for path in place.iterdir()) == sorted(filter(None, (page, picture)))
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


DAMAGE = {
    "config": ("all_config.yaml", b"arch: [", "Learning curves"),
    "config of words": ("all_config.yaml", b"arch: 3\ndata_path: [1]\nepochs: many\nlr: fast\n", "which is not here"),
    "config of a warm-up in words": ("all_config.yaml", b"lr: 0.1\nlr_warmup_steps: some\n", "learning rate 0.1"),
    "environment": ("environment.json", b"[{]", "57,794 parameters"),  # counted anew
    "environment of words": (
        "environment.json",
        b'[3, {"device": 5, "packages": 1, "started": "x", "command": "y"}]',
        "5",
    ),
    "best": ("best.json", b'{"value": "high", "checkpoint": 3}', "Result"),
    "best of a name too long": ("best.json", b'{"checkpoint": "%s"}' % (b"x" * 5000), "Result"),
    "predictions": ("step_20_preds/manifest.json", b"{}", "The predictions cannot be shown: "),
    "a search": ("step_20_search/report.json", b'{"puzzles": 0, "right": {"q": 1}, "oracle_right": 1}', "Result"),
    "votes": ("votes.json", b'{"scores": {"task": []}}', "Result"),
}


def test_steps_that_were_made_again_count_in_the_pace(folder):
    """It went back from step 300 to 100, and on to 400."""
    starts = [
        {
            "started": "2026-11-01T10:00:00+00:00",
            "ended": "2026-11-01T10:01:00+00:00",
            "first_step": 0,
            "last_step": 300,
        },
        {
            "started": "2026-11-01T11:00:00+00:00",
            "ended": "2026-11-01T11:01:00+00:00",
            "first_step": 100,
            "last_step": 400,
        },
    ]
    assert "2.0 min, evaluations included: 5 steps a second" in cost_in_words(
        Facts("", folder, read_run(folder), starts=starts)
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_old_is_one_line_less(run, name):
    file, content, expected = DAMAGE[name]
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_bytes(content)
    assert expected in text_of(report([run]))


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_and_gone_on_with_tells_its_time(run):
    starts = json.loads((run / "environment.json").read_text())
    assert starts[0]["last_step"] == 20 and starts[0]["ended"] >= starts[0]["started"]
    span = {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:01:00+00:00"}
    (run / "environment.json").write_text(json.dumps([starts[0] | span, starts[0] | span | {"first_step": 10}]))
    assert "2.0 min, evaluations included" in text_of(report([run]))
    (run / "environment.json").write_text(json.dumps([starts[0] | span | {"ended": None}, starts[0] | span]))
    assert "evaluations included" not in text_of(report([run]))  # the first was killed: nobody knows when


@pytest.mark.usefixtures("undrawn")
def test_searches_votes_and_figures_in_the_folder_are_shown(run):
    (run / "step_20_search").mkdir()
    search = {"puzzles": 20, "right": {"q": 10, "majority": 11}, "oracle_right": 13, "mean_steps": 3.5, "choose": "q"}
    (run / "step_20_search/report.json").write_text(json.dumps(search | {"trajectories": 8}))
    scores = {"num_tasks": 400, "task": {"1": 0.25, "2": 0.3}, "fractional": {"1": 0.26, "2": 0.31}}
    (run / "votes.json").write_text(json.dumps({"format": 1, "split": "test", "scores": scores, "tasks": {}}))
    (run / "step_20_scaling.json").write_text('{"figure": "scaling"}')
    Image.new("RGB", (9, 9)).save(run / "step_20_scaling.png")
    text = text_of(report([run]))
    for part in (
        "8 trajectories of each of 20 puzzles, 3.5 steps on average", "majority 11 55.00%",
        "any answer right (looks at the labels) 13 65.00%", "400 ARC tasks", "pass@2 30.00% 31.00%", "step_20_scaling",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.usefixtures("undrawn")
def test_an_arc_run_shows_its_tasks(run, tmp_path):
    """Grids of different sizes, whose tasks have names; predictions made up."""
    dataset = build_arc(tmp_path, num_aug=2)
    names = json.loads((dataset / "identifiers.json").read_text())
    data = PuzzleDataset.alone(dataset, "test", 64)
    made = {"checkpoint": "step_1", "halt": "q", "max_steps": 4, "answers_by_step": True}
    with PredictionWriter(run / "step_1", data, Ranks(0, 1, 0), **made) as writer:
        for _, batch, examples in data.test_batches():
            n = len(examples)
            answers = np.where(batch["labels"][:n] < 0, 0, batch["labels"][:n]).astype(np.uint8)
            by_step = np.repeat(answers[:, None], 4, axis=1)
            by_step[:, 0, 31] = 11 - by_step[:, 0, 31]
            ones = np.ones(n, np.float32)
            writer.append(
                {
                    "examples": examples,
                    "answers": answers,
                    "answers_by_step": by_step,
                    "steps": np.full(n, 2, np.uint16),
                }
                | {"q_halt_logits": ones, "q_continue_logits": ones}
            )
    text = text_of(report([run]))
    assert "right: 100.00%" in text and "1 cell revised" in text
    assert any(f"{name}: right" in text for name in names[1:])


def test_the_page_fits_a_telephone_and_a_screen(run, browser):
    evaluated(run, "halt=q", "save_steps=true")
    browser.get_log("browser")
    for width, dark in ((1280, False), (375, True)):
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=scheme))
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600),
        )
        browser.get((run / "report.html").as_uri())
        size = browser.execute_script(
            "const root = document.documentElement, style = getComputedStyle(document.body);"
            "return [root.scrollWidth, style.color, style.backgroundColor,"
            " getComputedStyle(document.querySelector('svg text')).fill]"
        )
        assert size[0] <= width
        assert size[1] == size[3] != size[2]  # charts are written in the page's ink
    assert not browser.get_log("browser")


@pytest.mark.usefixtures("undrawn")
def test_newer_dictionaries_are_not_taken_for_the_compact_predictions(run, tmp_path):
    """Which alone say what they are of, and how many segments each took."""
    copy = shutil.copytree(run, tmp_path / "run")
    before = evaluated(copy, "halt=q")
    evaluated(copy, "save_format=torch")
    later = (copy / "step_20_preds/manifest.json").stat().st_mtime + 1
    os.utime(copy / "step_20_all_preds.0", (later, later))
    assert text_of(report([copy])) == before


@pytest.mark.usefixtures("undrawn")
def test_a_dataset_that_was_built_anew_is_not_what_was_trained_on(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    assert "built anew since" not in text_of(report([copy]))
    records = json.loads((copy / "checkpoints.json").read_text())
    (copy / "checkpoints.json").write_text(json.dumps({n: r | {"data": "0" * 32} for n, r in records.items()}))
    assert re.search(r"Data \S+: 4×4 Sudoku; .* test: 21 examples, built anew since", text_of(report([copy])))


def test_the_command_for_predictions_can_be_pasted(tmp_path):
    """The names that runs have by default hold blanks."""
    folder = tmp_path / "Sudoku ACT-torch" / "R&D"
    shown = f"&#x27;{tmp_path}/Sudoku ACT-torch/R&amp;D&#x27;"
    assert f"python evaluate.py checkpoint={shown} halt=q" in how_to_predict(folder)
