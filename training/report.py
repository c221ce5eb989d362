"""Learning curves of one or more runs: python -m training.report <run>… [out=curves.png]

Reads `metrics.jsonl` in each run folder, writes a PNG (default: learning_curves.png in the first run) and prints a
table of the evaluations.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from pydantic import Field

from errors import UserError, one_line_errors
from files import check_writable
from training.command_line import from_cli
from training.config import StrictModel

# Panel title -> (training metric, evaluation metric)
PANELS = {
    "loss per token": ("train/lm_loss", "eval/lm_loss"),
    "exact accuracy": ("train/exact_accuracy", "eval/exact_accuracy"),
    "reasoning steps until halting": ("train/steps", "eval/steps"),
    "learning rate": ("train/lr", None),
}
SMOOTHING_WINDOWS = 100  # a training curve is averaged over 1/100 of its length


def read_run(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name a run folder (checkpoint_path of pretrain.py)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not lines:
        raise UserError(f"{path} is empty: the run has not made a step yet")
    return lines


def series(lines: list[dict], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """-> (steps, values) from the lines that have the metric; steps in which no sequence halted have no accuracy."""
    per_sequence = metric.startswith("train/") and not metric.endswith(("loss", "lr"))
    points = [(x["step"], x[metric]) for x in lines if metric in x and (x.get("train/count", 1) or not per_sequence)]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal stretches of the run."""
    parts = np.array_split(np.arange(len(steps)), min(len(steps), SMOOTHING_WINDOWS))
    parts = [part for part in parts if len(part)]
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for axis, (title, (train, evaluated)) in zip(axes.flat, PANELS.items(), strict=True):
        for (name, lines), colour in zip(runs.items(), colours * len(runs), strict=False):
            axis.plot(*smooth(*series(lines, train)), color=colour, alpha=0.5 if evaluated else 1, lw=1.5)
            if evaluated:
                axis.plot(*series(lines, evaluated), color=colour, marker="o", ms=4, lw=1.5, label=name)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if title == "exact accuracy":
            axis.set_ylim(-0.03, 1.03)
    axes.flat[1].legend(title="dots: evaluation · faint: training", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(name: str, lines: list[dict]) -> str:
    """The evaluations of one run, with a bar for the exact accuracy."""
    rows = [f"{name}", f"{'step':>8}  {'loss':>7}  {'cells':>6}  {'steps':>5}  exact accuracy"]
    for line in lines:
        if "eval/exact_accuracy" not in line:
            continue
        exact = line["eval/exact_accuracy"]
        rows.append(
            f"{line['step']:>8}  {line['eval/lm_loss']:>7.4f}  {line['eval/accuracy']:>6.1%}  "
            f"{line['eval/steps']:>5.1f}  {exact:>6.1%} {'█' * round(30 * exact)}"
        )
    return "\n".join(rows)


def distinct_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or the whole path if two end alike."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def report(folders: list[Path], out: Path | None = None) -> Path:
    """Draw and print; -> the PNG."""
    runs = {name: read_run(folder) for name, folder in zip(distinct_names(folders), folders, strict=True)}
    path = out or folders[0] / "learning_curves.png"
    check_writable(path.parent, str(path), "set out=<file>")
    draw(runs, path)
    for name, lines in runs.items():
        print(table(name, lines))
    print(f"learning curves: {path}")
    return path


class ReportConfig(StrictModel):
    runs: list[str] = Field(min_length=1, description="run folders")
    out: str | None = Field(default=None, description="the PNG; null: learning_curves.png in the first run")


def main() -> None:
    with one_line_errors():
        config = from_cli(ReportConfig, sys.argv[1:], __doc__, positional=("runs",))
        report([Path(run) for run in config.runs], None if config.out is None else Path(config.out))


if __name__ == "__main__":
    main()
