"""Learning curves: python -m pytest tests/test_report.py"""

import json

import numpy as np
import pytest
from PIL import Image

from errors import UserError
from training.report import read_run, report, series, smooth


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
            lines.append({"step": step} | {f"eval/{key}": value for key, value in values.items()})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_steps_in_which_nothing_halted_have_no_accuracy(folder):
    steps, values = series(read_run(folder), "train/exact_accuracy")
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
    assert rows[3].split()[0] == "200"
    assert "50.0%" in rows[3]
    assert rows[3].count("█") == 15


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


@pytest.mark.parametrize(("content", "message"), [(None, "missing"), ("{", "damaged"), ("", "empty")])
def test_unusable_runs(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)
