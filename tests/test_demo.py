"""The demo, cut short: python -m pytest tests/test_demo.py"""

import json
import re

import pytest
import torch
from PIL import Image

from errors import UserError
from evaluators.figures import FIGURES, FigureConfig, make_figure
from scripts import demo
from tests.launch import ROOT, run
from tests.runs import read_metrics


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_its_help_deletes_nothing(tmp_path, monkeypatch, capsys, asked):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "command", lambda *args: pytest.fail(f"it runs {args}"))
    trained = tmp_path / demo.RUN / "step_1"
    trained.parent.mkdir(parents=True)
    trained.touch()
    demo.main("epochs=1", asked)
    assert trained.exists()
    assert "make demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", ["epoch=1", "epochs=none", "arch=trn", "arch.num_layer=1", "--resume", "checkpoint_path=mine"]
)
def test_an_option_that_is_refused_does_not_cost_the_last_run(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "command", lambda *args: pytest.fail(f"it runs {args}"))
    trained = tmp_path / demo.RUN / "step_1"
    trained.parent.mkdir(parents=True)
    trained.touch()
    with pytest.raises(UserError):
        demo.main("seed=1", wrong)
    assert trained.exists()


@pytest.mark.parametrize(
    ("saved", "taken"),
    [(["step_9", "step_10", "step_10_ema"], "step_10_ema"), (["step_9", "step_10"], "step_10"), ([], None)],
)
def test_it_goes_on_with_the_last_checkpoint(tmp_path, monkeypatch, saved, taken):
    """Whatever the options to pretrain.py make of the run: no averaged weights, or none at all."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def command(*args):
        seen.append(args)
        if args[0] == "pretrain.py" and saved:
            (tmp_path / demo.RUN).mkdir(parents=True)
            for name in saved:
                (tmp_path / demo.RUN / name).touch()

    monkeypatch.setattr(demo, "command", command)
    monkeypatch.setattr(demo, "report", lambda runs: None)
    monkeypatch.setattr(demo, "most_revised", lambda checkpoint: "1234")
    if taken is None:
        with pytest.raises(UserError, match=r"no checkpoint in checkpoints/sudoku-4x4-demo"):
            demo.main()
    else:
        demo.main()
        assert [args[1] for args in seen[-2:]] == [f"checkpoint={demo.RUN}/{taken}"] * 2


@pytest.mark.apart
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
