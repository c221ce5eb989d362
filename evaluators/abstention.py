"""How well a score tells right answers from wrong ones: what a model that may say "I do not know" would be worth.

Puzzles with equal scores are not told apart: where only some of them are answered, their mean accuracy counts, so that
no number depends on their order. Shapes: n puzzles, score (n,) float64 (-inf: least sure), right (n,) bool.
"""

import numpy as np

COVERAGES = (0.25, 0.5, 0.75, 1.0)


def auroc(score: np.ndarray, right: np.ndarray) -> float | None:
    """The probability that a right answer has a higher score than a wrong one, ties counted half; None without both."""
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    _, group = np.unique(score, return_inverse=True)
    count, good = np.bincount(group), np.bincount(group, weights=right)
    bad = count - good
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / (positives * negatives))


def covered(score: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> (how many puzzles are answered, how many of them right), from 0 to all, wherever the score changes."""
    _, group = np.unique(-score, return_inverse=True)  # the surest first
    answered, good = np.bincount(group), np.bincount(group, weights=right)
    return np.concatenate([[0], np.cumsum(answered)]), np.concatenate([[0], np.cumsum(good)])


def accuracy_at(
    score: np.ndarray, right: np.ndarray, coverages: tuple[float, ...] = COVERAGES
) -> list[float] | list[None]:
    """The accuracy if only the surest share of the puzzles, rounded up, is answered; None without puzzles."""
    if not len(score):
        return [None] * len(coverages)
    wanted = [int(np.ceil(share * len(score))) for share in coverages]
    answered, good = covered(score, right)
    return (np.interp(wanted, answered, good) / wanted).tolist()


def risk_coverage(score: np.ndarray, right: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """-> (coverage, share of wrong answers there), at `points` coverages or at every one if there are fewer puzzles."""
    n = len(score)
    if not n:
        return np.zeros(0), np.zeros(0)
    wanted = np.unique(np.linspace(1, n, min(n, points)).round())
    answered, good = covered(score, right)
    return wanted / n, 1 - np.interp(wanted, answered, good) / wanted
