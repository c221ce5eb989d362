"""Ending a run before its epochs are used up.

`early_stop.patience=N`: after N evaluations in a row without a better `eval/exact_accuracy`.
`early_stop.train_exact_accuracy=X`: once the sequences that halted in the last `WINDOW` steps are right in a share of
at least X. The original advises it for Sudoku-Extreme, where the model over-fits and becomes unstable after that.
"""

from training.config import EarlyStop
from training.state import Progress

WINDOW = 100  # steps; a single one counts only the few sequences that halt in it


def note_accuracy(progress: Progress, count: float, exact: float) -> None:
    """Take in a step in which `count` sequences halted, `exact` of them right."""
    progress.recent.append([count, exact])
    del progress.recent[:-WINDOW]


def reason_to_stop(config: EarlyStop, progress: Progress) -> str | None:
    """Which rule says so; a run that goes on from a state asks again, so that a rule may be changed or lifted."""
    if config.patience is not None and progress.since_best >= config.patience:
        return f"no better eval/exact_accuracy in {progress.since_best} evaluations"
    if config.train_exact_accuracy is not None and len(progress.recent) == WINDOW:
        count, exact = map(sum, zip(*progress.recent, strict=True))
        if count and exact / count >= config.train_exact_accuracy:
            return f"{exact / count:.1%} of the training sequences of the last {WINDOW} steps were exactly right"
    return None
