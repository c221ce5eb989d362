"""metrics.jsonl of a run -> its learning curves, as arrays and as pictures. Nothing here loads PyTorch."""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from errors import UserError
from files import check_is_file, file_digest, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """What is drawn together: metrics of training, and of evaluation under both rules of halting."""

    train: str
    all_steps: str | None = None
    at_halt: str | None = None  # where the model halts


STEPS = "reasoning steps until halting"
PANELS = {
    "loss per token": Panel("train/lm_loss", "eval/lm_loss"),
    "exact accuracy": Panel("train/exact_accuracy", "eval/exact_accuracy", "eval/halt_q/exact_accuracy"),
    STEPS: Panel("train/steps", at_halt="eval/halt_q/steps"),
}
DRAWN = tuple(metric for panel in PANELS.values() for metric in panel if metric is not None)
COLUMNS = {
    "eval/lm_loss": "{:.4f}",
    "eval/accuracy": "{:.1%}",
    "eval/halt_q/steps": "{:.1f}",
    "eval/halt_q/exact_accuracy": "{:.1%}",
    "eval/exact_accuracy": "{:.1%}",
}
SMOOTHING_WINDOWS = 100  # a training curve is averaged over 1/100 of its length
LONGEST_LINE = 1 << 20  # bytes
OFF_THE_CHART = 1e30  # matplotlib cannot lay out axes for much larger numbers


@dataclass
class Run:
    """What metrics.jsonl says, in arrays: a million lines take some 100 MB."""

    curves: dict[str, tuple[array, array]] = field(default_factory=lambda: {m: (array("d"), array("d")) for m in DRAWN})
    evaluations: list[dict[str, float]] = field(default_factory=list)  # step, and those of COLUMNS that it has
    test: dict[str, float] = field(default_factory=dict)  # the same of the whole test split at the end, if it differs
    last_step: float = 0
    torn: bool = False  # the last line is not whole: it is being written, or the run was killed meanwhile

    def add(self, line: dict[str, Any]) -> None:
        self.last_step = line["step"]
        # Steps in which no sequence halted have no accuracy.
        halted = bool(line.get("train/count", 1))
        for metric, (steps, values) in self.curves.items():
            per_sequence = metric.startswith("train/") and not metric.endswith(("loss", "lr"))
            if metric in line and (halted or not per_sequence):
                steps.append(line["step"])
                values.append(number(line[metric]))
        if "eval/exact_accuracy" in line:
            kept = ("step", *COLUMNS)
            self.evaluations.append({key: number(line[key]) for key in kept if key in line})
        if "test/exact_accuracy" in line:
            tested = {key: key.replace("eval/", "test/", 1) for key in COLUMNS}
            self.test = {key: number(line[name]) for key, name in tested.items() if name in line}


def number(value: Any) -> float:
    """The value as a float; NaN for what is none, and NaN or infinity stay what they are."""
    try:
        return float(value) if isinstance(value, int | float) else nan
    except OverflowError:  # an integer of more than 308 digits
        return nan


def read_run(folder: Path) -> Run:
    """Raises `UserError` for a file that is missing or holds no steps, or names the line that is no metrics.

    A last line that is not whole is passed over.
    """
    path, run, found = metrics_file(folder), Run(), False
    for line in read_lines(path, torn=run):
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


def read_lines(path: Path, torn: Run | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects in the lines of a metrics.jsonl; each has a number as its `step`.

    With `torn`, a last line without an end that is no JSON is noted there; else it is refused like any other.
    """
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
                if torn is not None and count > 1 and not line.endswith(b"\n") and not file.peek(1):
                    torn.torn = True
                    return
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


def shown_panels(runs: Iterable[Run]) -> dict[str, Panel]:
    """Those in which something can be seen: a model that always takes the same steps needs no curve for that."""
    steps = [np.asarray(run.curves[metric][1]) for run in runs for metric in PANELS[STEPS] if metric is not None]
    values = [part[np.isfinite(part)] for part in steps]
    varies = any(len(part) and part.max() - part.min() > 0.05 for part in values)
    return {title: panel for title, panel in PANELS.items() if title != STEPS or varies}


def draw(runs: dict[str, Run]) -> "Figure":
    """All panels in one picture."""
    from matplotlib.figure import Figure  # takes a while, which `--help` need not wait for

    panels = shown_panels(runs.values())
    figure = Figure(figsize=(5.4 * len(panels), 4.2), layout="constrained")
    for axis, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        draw_panel(axis, title, panel, runs)
        axis.set_title(title)
        if title == "exact accuracy" and len(runs) > 1:
            legend = axis.legend(fontsize="small")
            for text in legend.get_texts():
                text.set_parse_math(False)  # a `$` in a run's name is a dollar
    figure.supxlabel(
        "dots: evaluation after all reasoning steps · squares: where the model halts · faint: training", fontsize=9
    )
    return figure


def draw_panel(axis: "Axes", title: str, panel: Panel, runs: dict[str, Run]) -> None:
    for number, (name, run) in enumerate(runs.items()):
        colour = f"C{number % 10}"
        curves = {metric: tuple(map(np.asarray, curve)) for metric, curve in run.curves.items()}
        with np.errstate(all="ignore"):
            steps, values = smooth(*curves[panel.train])
        axis.plot(steps, drawable(values), color=colour, alpha=0.5, lw=1.5)
        if panel.all_steps:
            steps, values = curves[panel.all_steps]
            axis.plot(steps, drawable(values), color=colour, marker="o", ms=4, lw=1.5, label=label(name))
        if panel.at_halt:
            steps, values = curves[panel.at_halt]
            axis.plot(steps, drawable(values), color=colour, marker="s", mfc="none", ms=4, lw=1.2, ls="--")
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.set_xlabel("training step")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    plain(axis)
    if title == "exact accuracy":
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        axis.set_ylim(bottom=0 if axis.get_ylim()[0] > 0 else None)


def plain(axis: "Axes", lines: str = "both") -> None:
    """The look of all charts: faint lines, of x, y or both, behind what is drawn; no frame above and at the right."""
    axis.grid(axis=lines, alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def label(name: str) -> str:
    """A run's name for the legend, which leaves out what begins with `_` and draws only what is UTF-8."""
    return f"{' ' * name.startswith('_')}{name.encode('utf-8', 'replace').decode()}"
