"""Learning curves of one or more runs: python -m training.report <run>… [out=curves.png]

Reads `metrics.jsonl` in each run folder, writes a picture (default: learning_curves.png in the first run) and prints a
table of the evaluations.
"""

import json
import sys
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from errors import UserError, one_line_errors
from files import check_is_file, check_writable, file_digest, read_json, write_atomically
from training.options import StrictModel, from_cli

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """What is drawn together: metrics of training, and of evaluation under both rules of halting."""

    train: str
    all_steps: str | None = None
    at_halt: str | None = None  # where the model halts


PANELS = {
    "loss per token": Panel("train/lm_loss", "eval/lm_loss"),
    "exact accuracy": Panel("train/exact_accuracy", "eval/exact_accuracy", "eval/halt_q/exact_accuracy"),
    "reasoning steps until halting": Panel("train/steps", at_halt="eval/halt_q/steps"),
    "learning rate": Panel("train/lr"),
}
DRAWN = tuple(metric for panel in PANELS.values() for metric in panel if metric is not None)
COLUMNS = {
    "eval/lm_loss": "{:.4f}",
    "eval/accuracy": "{:.1%}",
    "eval/halt_q/steps": "{:.1f}",
    "eval/halt_q/exact_accuracy": "{:.1%}",
    "eval/exact_accuracy": "{:.1%}",
}
FORMATS = ("png", "pdf", "svg")
SMOOTHING_WINDOWS = 100  # a training curve is averaged over 1/100 of its length
LONGEST_LINE = 1 << 20  # bytes
OFF_THE_CHART = 1e30  # matplotlib cannot lay out axes for much larger numbers


@dataclass
class Run:
    """What metrics.jsonl says, in arrays: a million lines take some 100 MB."""

    curves: dict[str, tuple[array, array]] = field(default_factory=lambda: {m: (array("d"), array("d")) for m in DRAWN})
    evaluations: list[dict[str, float]] = field(default_factory=list)  # step, and the metrics of `COLUMNS` that it has

    def add(self, line: dict[str, Any]) -> None:
        # Steps in which no sequence halted have no accuracy.
        halted = bool(line.get("train/count", 1))
        for metric, (steps, values) in self.curves.items():
            per_sequence = metric.startswith("train/") and not metric.endswith(("loss", "lr"))
            if metric in line and (halted or not per_sequence):
                steps.append(line["step"])
                values.append(number(line[metric]))
        if "eval/exact_accuracy" in line:
            self.evaluations.append({key: number(line[key]) for key in ("step", *COLUMNS) if key in line})


def number(value: Any) -> float:
    """The value as a float; NaN for what is none, and NaN or infinity stay what they are."""
    try:
        return float(value) if isinstance(value, int | float) else nan
    except OverflowError:  # an integer of more than 308 digits
        return nan


def read_run(folder: Path) -> Run:
    """Raises `UserError` for a file that is missing or holds no steps, or names the line that is no metrics."""
    path, run, found = metrics_file(folder), Run(), False
    for line in read_lines(path):
        run.add(line)
        found = True
    if not found:
        raise UserError(f"{path} is empty: the run has not made a step yet")
    return run


def metrics_file(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    check_is_file(path, "name a run folder (checkpoint_path of pretrain.py)")
    return path


def check_history(folder: Path, remedy: str) -> None:
    """Raise `UserError` if metrics.jsonl is not what the run's training states say that it had written by then."""
    metrics = folder / "metrics.jsonl"
    for manifest in sorted(folder.glob("state_*/manifest.json")):
        if not manifest.parent.name.removeprefix("state_").isdecimal():  # set aside: the run went on without it
            continue
        try:
            saved = read_json(manifest, "the state is damaged")
            size, digest, step = saved["metrics_bytes"], saved["metrics_sha256"], saved["progress"]["step"]
        except (UserError, TypeError, KeyError):  # damaged, or of an earlier version: it says nothing
            continue
        if not metrics.is_file() or not isinstance(size, int) or size < 0:
            continue
        if file_digest(metrics, first=size).sha256 != digest:
            raise UserError(f"{metrics} is not what the run had written at step {step}: lines are changed; {remedy}")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in the lines of a metrics.jsonl; each has a number as its `step`."""
    with open(path, "rb") as file:
        count = 0
        while line := file.readline(LONGEST_LINE):
            count += 1
            if count == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which some editors write
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
                raise _damaged(path, count, reason) from None
            if not isinstance(values, dict):
                raise _damaged(path, count, "it is no JSON object")
            step = values.get("step")
            if isinstance(step, bool) or not abs(number(step)) < OFF_THE_CHART:
                raise _damaged(path, count, "its step is no number" if "step" in values else "it has no step")
            yield values


def _damaged(path: Path, line: int, reason: str) -> UserError:
    return UserError(f"{path} is damaged in line {line}: {reason}; take that line out, or restore the file")


def smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal stretches of the run."""
    parts = [part for part in np.array_split(np.arange(len(steps)), SMOOTHING_WINDOWS) if len(part)]
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def drawable(values: np.ndarray) -> np.ndarray:
    """The values, with a gap (NaN) where a number cannot be drawn."""
    return np.where(np.abs(values) < OFF_THE_CHART, values, nan)


def draw(runs: dict[str, Run]) -> "Figure":
    from matplotlib import rcParams  # takes a while, which `--help` need not wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    colours = rcParams["axes.prop_cycle"].by_key()["color"]
    for axis, (title, panel) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for (name, run), colour in zip(runs.items(), colours * len(runs), strict=False):
            curves = {metric: tuple(map(np.asarray, curve)) for metric, curve in run.curves.items()}
            with np.errstate(all="ignore"):
                steps, values = smooth(*curves[panel.train])
            faint = panel.all_steps or panel.at_halt
            axis.plot(steps, drawable(values), color=colour, alpha=0.5 if faint else 1, lw=1.5)
            if panel.all_steps:
                steps, values = curves[panel.all_steps]
                axis.plot(steps, drawable(values), color=colour, marker="o", ms=4, lw=1.5, label=label(name))
            if panel.at_halt:
                steps, values = curves[panel.at_halt]
                axis.plot(steps, drawable(values), color=colour, marker="s", mfc="w", ms=4, lw=1.2, ls="--")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if title == "exact accuracy":
            axis.set_ylim(-0.03, 1.03)
            legend = axis.legend(
                title="dots: evaluation, all steps · squares: where the model halts · faint: training", fontsize="small"
            )
            for text in legend.get_texts():
                text.set_parse_math(False)  # a `$` in a run's name is a dollar
    return figure


def label(name: str) -> str:
    """A run's name for the legend, which leaves out what begins with `_` and draws only what is UTF-8."""
    return f"{' ' * name.startswith('_')}{name.encode('utf-8', 'replace').decode()}"


def table(name: str, evaluations: list[dict[str, float]]) -> str:
    """The evaluations of one run, with a bar for the exact accuracy."""
    rows = [
        name,
        f"{'':>26}  {'where it halts':>14}  after all steps",
        f"{'step':>8}  {'loss':>7}  {'cells':>6}  {'steps':>5}  {'exact':>7}  exact accuracy",
    ]
    for line in evaluations:
        loss, cells, steps, halted, exact = (
            form.format(line[key]) if key in line else "-" for key, form in COLUMNS.items()
        )
        share = line["eval/exact_accuracy"]
        bar = "█" * round(30 * min(max(share, 0), 1)) if isfinite(share) else ""
        rows.append(f"{line['step']:>8.0f}  {loss:>7}  {cells:>6}  {steps:>5}  {halted:>7}  {exact:>6} {bar}".rstrip())
    return "\n".join(rows if evaluations else [rows[0], "    no evaluation yet"])


def distinct_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or the whole path if two end alike."""
    names = [folder.name or folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def picture_path(folders: list[Path], out: Path | None) -> Path:
    """Where the picture goes. Raises `UserError`, before the work, if it cannot be written there."""
    path = out or folders[0] / "learning_curves.png"
    if path.is_dir():
        raise UserError(f"out={path} is a folder; name a file")
    if path.suffix[1:].lower() not in FORMATS:
        raise UserError(f"out={path} must end in {', '.join(f'.{name}' for name in FORMATS)}")
    check_writable(path.parent, str(path), "set out=<file>")
    return path


def report(folders: list[Path], out: Path | None = None) -> Path:
    """Draw and print; -> the picture."""
    names = distinct_names(folders)
    if len(set(names)) < len(names):
        raise UserError(f"a run is named twice among {', '.join(names)}; name each once")
    for folder in folders:
        metrics_file(folder)
    path = picture_path(folders, out)  # before the files are read: they may have a million lines
    runs = {name: read_run(folder) for name, folder in zip(names, folders, strict=True)}
    for folder in folders:
        try:
            check_history(folder, "restore it if you did not mean to change it")
        except UserError as changed:
            print(f"warning: {changed}", file=sys.stderr)
    figure = draw(runs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font lacks a character of a name
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower(), dpi=120))
    for name, run in runs.items():
        print(table(name, run.evaluations))
    print(f"learning curves: {path}")
    return path


class ReportConfig(StrictModel):
    runs: list[str] = Field(min_length=1, description="run folders")
    out: str | None = Field(
        default=None, description="a .png, .pdf or .svg file; null: learning_curves.png in the first run"
    )


def main() -> None:
    with one_line_errors():
        config = from_cli(ReportConfig, sys.argv[1:], __doc__, positional=("runs",))
        report([Path(run) for run in config.runs], None if config.out is None else Path(config.out))


if __name__ == "__main__":
    main()
