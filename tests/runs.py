"""Small runs through the real command line, and reading what they leave behind."""

import json
from pathlib import Path

import torch

from tests.launch import run

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


def pretrain(checkpoint_path: Path, ranks: int | None = None, env: dict | None = None, **changes) -> list[dict]:
    """Run pretrain.py as the reference run with `changes`; -> the lines of its metrics.jsonl."""
    run("pretrain.py", *reference_overrides(checkpoint_path, **changes), ranks=ranks, **(env or {}))
    return read_metrics(checkpoint_path)


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_with(lines: list[dict], prefix: str) -> list[dict]:
    return [line for line in lines if any(key.startswith(prefix) for key in line)]


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)
