"""Small runs through the real command line, and reading what they leave behind."""

import hashlib
import io
import json
import signal
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from pretrain import main
from tests.in_memory import FAMILY
from tests.launch import ONE_THREAD_NO_WANDB
from training.stopping import SIGNALS

PIPELINE = Path(__file__).parent / "reference" / "pipeline"
TRAJECTORY = json.loads((PIPELINE / "trajectory.json").read_text())
FAMILY_SETTINGS = {
    "data_path": PIPELINE / "dataset", "epochs": 4, "eval_interval": 2, "lr": 3e-3, "lr_warmup_steps": 5,
    "weight_decay": 0.1, "device": "cpu", "seed": 3, "checkpoint_every_eval": "true", "ema_decay": 0.9,
    "arch.halt_exploration_prob": 0.5, "arch.halt_extra_steps": 2, "checkpoint_interval": 7, "resume": "true",
}  # fmt: skip
# Half of the work of the reference run's model, for runs whose numbers are compared with those of others like them.
LIGHT = {"arch.H_cycles": 1}


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


def family_overrides(experiment: str, checkpoint_path: Path, **changes) -> list[str]:
    """A short run of one of `FAMILY`, 20 steps with two evaluations, as `key=value` arguments."""
    settings = FAMILY_SETTINGS | {"checkpoint_path": checkpoint_path} | changes
    return [f"+experiment={experiment}", *FAMILY[experiment], *(f"{key}={value}" for key, value in settings.items())]


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


def here(main: Callable[[], None], *words: object) -> str:
    """Run a command in this process; -> what it prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr("sys.argv", ["command", *map(str, words)])
        main()
    return printed.getvalue()


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


def printed_metrics(table: str) -> dict[str, str]:
    """The numbers in a table of evaluate.py, as they are written."""
    return dict(line.split() for line in table.splitlines() if line.startswith("eval/"))


def of_the_original(metrics: dict[str, float]) -> dict[str, float]:
    """Without what the original does not measure: the model's own rule of halting, and its confidence."""
    return {key: value for key, value in metrics.items() if "/halt_q/" not in key and not key.endswith("/ece")}


def assert_lines_close(got: list[dict], expected: list[dict], rtol: float) -> None:
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key] == pytest.approx(value, rel=rtol, abs=1e-9), (mine["step"], key)


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def edit_manifest(state: Path, change, digest: bool = True) -> None:
    """Change what a manifest says, as a run would have saved it; without `digest`, what it says of itself stays."""
    manifest = json.loads((state / "manifest.json").read_text())
    change(manifest)
    if digest and "sha256" in manifest:
        del manifest["sha256"]
        manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (state / "manifest.json").write_text(json.dumps(manifest))


def save_in_state(state: Path, name: str, value: dict) -> None:
    """Put another file into a training state, as a run would have saved it."""
    torch.save(value, state / name)
    data = (state / name).read_bytes()
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(state, lambda manifest: manifest["files"].update({name: record}))
