"""How one answer is chosen among many trajectories of a puzzle, without a label: docs/search.md says where from.

Shapes: n puzzles, K trajectories of each, over all models; trajectory 0 is the single pass. A trajectory whose values
are no numbers has no answer and no vote.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from evaluators.trajectories import Segment

SMOOTHED = 3  # the last segments whose mean residual counts, as in EqR


@dataclass
class Candidates:
    """All that a rule may look at: what the trajectories said so far, and nothing of the solution."""

    answers: np.ndarray  # (n, K, cells) uint8, after the last segment
    q_halt: np.ndarray  # (n, K) float64: logits of Q(halt) there, NaN: no answer
    segments: np.ndarray  # (n, K) int64: how many were run
    recent: np.ndarray  # (n, K, SMOOTHED) float64: residuals of the last segments, in a ring
    halt_segment: np.ndarray  # (n, K) int64: the first in which it wanted to halt, 0: none
    halt_answers: np.ndarray  # (n, K, cells) uint8: its answer there
    halt_q: np.ndarray  # (n, K) float64: and its Q(halt)

    @classmethod
    def empty(cls, n: int, trajectories: int, cells: int) -> "Candidates":
        def grid(dtype: type, *more: int, fill: float = 0) -> np.ndarray:
            return np.full((n, trajectories, *more), fill, dtype)

        return cls(
            answers=grid(np.uint8, cells),
            q_halt=grid(np.float64, fill=np.nan),
            segments=grid(np.int64),
            recent=grid(np.float64, SMOOTHED),
            halt_segment=grid(np.int64),
            halt_answers=grid(np.uint8, cells),
            halt_q=grid(np.float64, fill=np.nan),
        )

    def of(self, puzzles: np.ndarray) -> "Candidates":
        """Those of some puzzles."""
        return Candidates(**{field.name: getattr(self, field.name)[puzzles] for field in fields(self)})

    def add(self, puzzles: np.ndarray, mine: slice, number: int, segment: Segment) -> None:
        """Take in segment `number` of the trajectories `mine`, one model's, of these puzzles."""
        at = (puzzles[:, None], np.arange(mine.start, mine.stop))
        self.answers[at], self.q_halt[at], self.segments[at] = segment.answers, segment.q_halt, number
        self.recent[(*at, (number - 1) % SMOOTHED)] = segment.residual
        new = segment.wants_to_halt & (self.halt_segment[at] == 0)
        row, column = np.nonzero(new)
        first = (puzzles[row], mine.start + column)
        self.halt_segment[first] = number
        self.halt_answers[first], self.halt_q[first] = segment.answers[new], segment.q_halt[new]

    @property
    def has_answer(self) -> np.ndarray:
        """(n, K) bool"""
        return ~np.isnan(self.q_halt)

    @property
    def confidence(self) -> np.ndarray:
        """(n, K): sigmoid of Q(halt), NaN without an answer."""
        return 1 / (1 + np.exp(-self.q_halt.clip(-700, 700)))

    @property
    def residual(self) -> np.ndarray:
        """(n, K): the mean over the last segments; infinite without an answer."""
        mean = self.recent.sum(-1) / np.clip(self.segments, 1, SMOOTHED)
        return np.where(self.has_answer & ~np.isnan(mean), mean, np.inf)


@dataclass
class Choice:
    """What a rule has chosen for n puzzles."""

    trajectory: np.ndarray  # (n,) int64
    answers: np.ndarray  # (n, cells) uint8
    score: np.ndarray  # (n,) float64: the higher the surer; -inf where there is no answer


def choose(rule: str, found: Candidates, valid: np.ndarray | None) -> Choice:
    """Let one of `RULES` choose; `valid` (n, K) says which last answers obey the puzzle's rules, None: it has none."""
    trajectory, score = RULES[rule].choose(found, valid)
    return Choice(trajectory, answers_of(rule, found, trajectory), np.where(np.isnan(score), -np.inf, score))


def answers_of(rule: str, found: Candidates, trajectory: np.ndarray) -> np.ndarray:
    """(n, cells): what the chosen trajectories (n,) answered, where the rule takes it: last, or where they halted."""
    rows = np.arange(len(trajectory))
    answers = found.answers[rows, trajectory]
    if rule == "first_halt":
        halted = found.halt_segment[rows, trajectory] > 0
        answers = np.where(halted[:, None], found.halt_answers[rows, trajectory], answers)
    return answers


def settled(rule: str, found: Candidates, now: Choice, before: Choice | None, unchanged: np.ndarray) -> np.ndarray:
    """(n,): for how many segments the choice has stayed the same; `first_halt` is sure as soon as one has halted.

    `unchanged` (n,) is what this was one segment `before`.
    """
    if rule == "first_halt":
        return np.where((found.halt_segment > 0).any(1), np.iinfo(np.int64).max, 0)
    if before is None:
        return np.zeros_like(unchanged)
    return np.where((now.answers == before.answers).all(1), unchanged + 1, 0)


def _single(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(found.q_halt), np.int64), found.q_halt[:, 0]


def _highest_q(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return _best(found.q_halt)


def _smallest_residual(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return _best(-found.residual)


def _majority(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Score: the share of the votes."""
    everyone = found.has_answer
    return _per_puzzle(found, lambda row: vote(found.answers[row], found.confidence[row], everyone[row], everyone[row]))


def _majority_valid(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The majority of the valid answers, or of all where none is; score: its share of all votes, less 1 there."""
    if valid is None:
        return _majority(found, None)
    everyone = found.has_answer

    def choice(row: int) -> tuple[int, float]:
        among = everyone[row] & valid[row]
        any_valid = bool(among.any())
        electors = among if any_valid else everyone[row]
        chosen, share = vote(found.answers[row], found.confidence[row], electors, everyone[row])
        return chosen, share if any_valid else share - 1

    return _per_puzzle(found, choice)


def _first_halt(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The fewest segments, then the higher Q there; where none has halted, the highest Q after the last segment."""
    halted = found.halt_segment > 0
    segments = np.where(halted, found.halt_segment, np.iinfo(np.int64).max)
    first = halted & (segments == segments.min(axis=1, keepdims=True))
    by_halt, score = _best(np.where(first, found.halt_q, np.nan))
    otherwise, q_halt = _best(found.q_halt)
    any_halted = halted.any(axis=1)
    return np.where(any_halted, by_halt, otherwise), np.where(any_halted, score, q_halt)


def _agreement(found: Candidates, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Score: the share of cells, over all pairs with another trajectory, that are equal."""
    everyone = found.has_answer
    return _per_puzzle(found, lambda row: medoid(found.answers[row], found.confidence[row], everyone[row]))


def _best(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, K), NaN: not to be chosen -> the first of the highest and its value, 0 and NaN where there is none."""
    highest = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    score = values[np.arange(len(values)), highest]
    none = np.isnan(score) | (score == -np.inf)
    return np.where(none, 0, highest), np.where(none, np.nan, score)


def _per_puzzle(found: Candidates, choice: Callable[[int], tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """`choice(row)` for every puzzle that has an answer."""
    has_any = found.has_answer.any(axis=1)
    chosen = [choice(row) if has_any[row] else (0, np.nan) for row in range(len(has_any))]
    return np.array([one for one, _ in chosen], np.int64), np.array([score for _, score in chosen], np.float64)


def vote(answers: np.ndarray, confidence: np.ndarray, electors: np.ndarray, everyone: np.ndarray) -> tuple[int, float]:
    """(K, cells), (K,), (K,) bool twice -> the first trajectory that gave the most frequent answer, and its share.

    Only `electors` vote; the share is of `everyone`'s votes. Among equally frequent answers the one with the higher
    mean confidence wins, then the one seen first.
    """
    voters: dict[bytes, list[int]] = {}
    for one in np.flatnonzero(electors).tolist():
        voters.setdefault(answers[one].tobytes(), []).append(one)
    chosen = max(voters.values(), key=lambda group: (len(group), confidence[group].mean()))
    return chosen[0], len(chosen) / int(everyone.sum())


def medoid(answers: np.ndarray, confidence: np.ndarray, everyone: np.ndarray) -> tuple[int, float]:
    """(K, cells), (K,), (K,) bool -> the trajectory whose cells agree most with the others', and their mean agreement.

    Ties go to the higher confidence, then to the first. A single answer agrees with itself.
    """
    who = np.flatnonzero(everyone)
    mine, cells = answers[who], np.arange(answers.shape[1])
    if len(who) == 1:
        return int(who[0]), 1.0
    counts = np.zeros((len(cells), 256), np.int64)  # how often each token was answered in each cell
    np.add.at(counts, (np.broadcast_to(cells, mine.shape), mine), 1)
    equal = (counts[cells, mine] - 1).sum(axis=1)  # cells of the others that are the same
    best = max(range(len(who)), key=lambda k: (equal[k], confidence[who[k]], -k))
    return int(who[best]), float(equal[best]) / ((len(who) - 1) * len(cells))


@dataclass(frozen=True)
class Rule:
    name: str  # in the table
    score: str  # what its score is, on which it could abstain
    choose: Callable[[Candidates, np.ndarray | None], tuple[np.ndarray, np.ndarray]]


RULES = {
    "single_pass": Rule("single pass", "Q(halt)", _single),
    "q": Rule("highest Q(halt)", "Q(halt)", _highest_q),
    "residual": Rule("smallest residual", "-residual", _smallest_residual),
    "majority": Rule("majority", "share of votes", _majority),
    "majority_valid": Rule("majority of valid answers", "share of votes, less 1 if not valid", _majority_valid),
    "first_halt": Rule("first to halt", "Q(halt) where it halted", _first_halt),
    "agreement": Rule("most agreement", "share of equal cells", _agreement),
}
CHOOSE = tuple(name for name in RULES if name != "single_pass")
