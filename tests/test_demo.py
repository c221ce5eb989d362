"""The demo, cut short: python -m pytest tests/test_demo.py"""

import re

import pytest
from PIL import Image

from tests.launch import ROOT, run
from tests.runs import read_metrics


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_pictures(tmp_path):
    done = run(
        ROOT / "scripts/demo.py",
        "epochs=1",
        "eval_interval=1",
        "global_batch_size=128",
        "arch.H_layers=1",
        "arch.L_layers=1",
        cwd=tmp_path,
    )
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [line.split()[2].split("/")[-1] for line in commands] == [
        "build_sudoku_dataset.py", "pretrain.py", "evaluate.py", "-m", "solve.py",
    ]  # fmt: skip
    ending = done.stdout.split("solve.py", 1)[1]
    assert re.search(r"step(s \d–| )8\b", ending)
    assert re.search(r"^(not )?valid: ", ending, re.MULTILINE)
    run_folder = tmp_path / "checkpoints/sudoku-4x4-demo"
    assert Image.open(run_folder / "solved.gif").n_frames == 1 + 8
    assert (run_folder / "learning_curves.png").stat().st_size > 10_000
    lines = read_metrics(run_folder)
    assert lines[-1]["eval/lm_loss"] < 0.8 * lines[0]["train/lm_loss"]
