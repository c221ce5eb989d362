"""Small runs through the real command line, and reading what they leave behind."""

import json
import signal
from pathlib import Path

import pytest
import torch

from pretrain import main
from tests.launch import ONE_THREAD_NO_WANDB
from training.stopping import SIGNALS

PIPELINE = Path(__file__).parent / "reference" / "pipeline"
TRAJECTORY = json.loads((PIPELINE / "trajectory.json").read_text())


def reference_overrides(checkpoint_path: Path, **changes) -> list[str]:
    """The reference run's config as `key=value` arguments."""
    config = {key: value for key, value in TRAJECTORY["config"].items() if key != "arch"}
    arch = TRAJECTORY["config"]["arch"]
    config |= {f"arch.{key}": value for key, value in arch.items() if key != "loss"}
    config |= {f"arch.loss.{key}": value for key, value in arch["loss"].items()}
    config |= {
        "data_path": PIPELINE / "dataset",
        "load_checkpoint": PIPELINE / "init_checkpoint.pt",
        "checkpoint_path": checkpoint_path,
    }
    return [f"{key}={value}" for key, value in (config | changes).items() if value is not None]


def pretrain(checkpoint_path: Path, **changes) -> list[dict]:
    """Run pretrain.py as the reference run with `changes`, in this process; -> the lines of its metrics.jsonl."""
    pretrain_here(reference_overrides(checkpoint_path, **changes))
    return read_metrics(checkpoint_path)


def pretrain_here(overrides: list[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pretrain.py", *overrides])
        for name, value in ONE_THREAD_NO_WANDB.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)
        try:
            main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def refusal(capsys: pytest.CaptureFixture, checkpoint_path: Path, **changes) -> str:
    """The one line with which pretrain.py refuses `changes`, or ends, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        pretrain(checkpoint_path, **changes)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line[line.index("error: ") :]


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_with(lines: list[dict], prefix: str) -> list[dict]:
    return [line for line in lines if any(key.startswith(prefix) for key in line)]


def assert_lines_close(got: list[dict], expected: list[dict], rtol: float) -> None:
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key] == pytest.approx(value, rel=rtol, abs=1e-9), (mine["step"], key)


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)
