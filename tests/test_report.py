"""Learning curves: python -m pytest tests/test_report.py"""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from errors import UserError
from tests.launch import ROOT
from training.report import read_run, report, smooth


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
    path = report([folder])
    with Image.open(path) as image:
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
    "half a line": (STEP + b'{"step": 2, "tr', "damaged in line 2: Unterminated string"),
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
    assert not list(tmp_path.glob("*.png"))


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
    with Image.open(report([tmp_path])) as image:
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
        ("curves.xyz", r"curves.xyz must end in \.png, \.pdf, \.svg"),
        ("curves", r"curves must end in"),
        ("", "is a folder; name a file"),
        ("nowhere/curves.png", "cannot write .*nowhere/curves.png: No such file or directory"),
    ],
)
def test_where_no_picture_can_go_is_said_before_the_work(folder, monkeypatch, out, message):
    monkeypatch.setattr("training.report.read_run", lambda folder: pytest.fail("it was read"))
    with pytest.raises(UserError, match=message):
        report([folder], folder / out)
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_is_named_twice_is_refused(folder):
    with pytest.raises(UserError, match="named twice"):
        report([folder, folder])


def test_help_loads_no_pytorch():
    """Which takes two seconds."""
    program = "import sys, training.report; print(*sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


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
