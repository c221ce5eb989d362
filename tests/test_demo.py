"""The demo, cut short: python -m pytest tests/test_demo.py"""

import json
import re

import pytest
import torch
from PIL import Image

from evaluators.figures import FIGURES, FigureConfig, make_figure
from tests.launch import ROOT, run
from tests.runs import read_metrics


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_pictures(tmp_path, monkeypatch):
    done = run(
        ROOT / "scripts/demo.py",
        "epochs=1",
        "eval_interval=1",
        "global_batch_size=256",
        "lr_warmup_steps=1",
        "arch.num_layers=1",
        cwd=tmp_path,
    )
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [line.split()[2].split("/")[-1] for line in commands] == [
        "build_sudoku_dataset.py", "pretrain.py", "evaluate.py", "-m", "solve.py",
    ]  # fmt: skip
    ending = done.stdout.split("solve.py", 1)[1]
    assert re.search(r"^(not )?valid: ", ending, re.MULTILINE)
    run_folder = tmp_path / "checkpoints/sudoku-4x4-demo"
    steps = int(re.search(r"(\d+) reasoning steps? of", ending)[1])
    assert Image.open(run_folder / "solved.gif").n_frames == 1 + steps  # until the model halts
    assert (run_folder / "learning_curves.png").stat().st_size > 10_000
    assert "When does it halt?" in (run_folder / "report.html").read_text()
    assert "Open checkpoints/sudoku-4x4-demo/report.html" in done.stdout
    lines = read_metrics(run_folder)
    assert lines[-1]["eval/lm_loss"] < 0.8 * lines[0]["train/lm_loss"]
    # The paper's figures, of the demo's checkpoint
    monkeypatch.chdir(tmp_path)
    checkpoint = str(run_folder / f"step_{lines[-1]['step']}_ema")
    for name in FIGURES:
        config = FigureConfig(figure=name, checkpoint=checkpoint, examples=8)
        picture = make_figure(config, torch.device("cpu"))
        assert Image.open(picture).width > 1000
        assert json.loads(picture.with_suffix(".json").read_text())["examples"] == 8
