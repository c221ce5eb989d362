"""docs/ladder.md as it is typed, with less data and training: python -m pytest tests/test_ladder.py"""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.launch import ROOT
from tests.warm import run

PAGE = (ROOT / "docs/ladder.md").read_text()
LESS = {"--num-train": "32", "--num-test": "8", "--subsample-size": "3", "--num-aug": "2"}


def commands(title: str) -> list[list[str]]:
    """What is typed under a heading, in words."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in "".join(blocks).splitlines()]


@pytest.mark.apart
@pytest.mark.parametrize(
    ("title", "experiment", "shape"),
    [("Small mazes", "maze_small", ("maze", 9)), ("A few ARC tasks", "arc_mini", ("arc", 10))],
)
def test_its_commands_lead_to_a_score(tmp_path: Path, title, experiment, shape):
    said = []
    for words in commands(title):
        words = words[words.index("python") :]  # before it: OMP_NUM_THREADS=1
        words = [LESS.get(before, word) for before, word in pairwise(words)]
        words = [re.sub(r"(^|=)(data|checkpoints)/", rf"\1{tmp_path}/\2/", word) for word in words]
        if words[0] == "pretrain.py":
            assert words[1:] == [f"+experiment={experiment}"]
            (data,) = (tmp_path / "data").iterdir()  # the builder's command is the experiment's
            assert f"data_path: data/{data.name}\n" in (ROOT / f"config/experiment/{experiment}.yaml").read_text()
            folder = tmp_path / "checkpoints" / experiment.replace("_", "-")
            less = f"global_batch_size=8 epochs=2 eval_interval=2 compile=off data_path={data} checkpoint_path={folder}"
            words += less.split()
        for checkpoint in (path for path in (tmp_path / "checkpoints").glob("*/step_*_ema") if path.is_file()):
            words = [re.sub(r"\bstep_\d+_ema\b", checkpoint.name, word) for word in words]
        said.append(run(*words).stdout)
    described = json.loads((data / "train/dataset.json").read_text())
    assert (described["kind"], described["rows"]) == shape
    assert "exact_accuracy" in said[2]
    if experiment == "arc_mini":
        assert re.search(r"\d tasks with \d test inputs", said[3]) and " 2  " in said[3]
