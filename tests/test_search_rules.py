"""The rules of a search by hand and by brute force: python -m pytest tests/test_search_rules.py"""

import numpy as np
import pytest

from evaluators import abstention, search_rules
from evaluators.search_rules import Candidates, choose
from evaluators.trajectories import Segment
from training.prediction_rows import exactly_right

NAN = float("nan")


def candidates(letters: str, q_halt, residual=None, halts: str = "", halt_q=None) -> Candidates:
    """One puzzle of 3 cells: a letter is the answer of a trajectory, equal letters are equal answers. `halts` says in
    which segment each wanted to halt (0: never), where its answer was the same letter in lower case."""
    k = len(letters)
    tokens = np.array([[ord(letter)] * 3 for letter in letters], np.uint8)[None]
    halt_segment = np.array([[int(number) for number in halts or "0" * k]])
    recent = np.repeat(np.array([residual or [1.0] * k])[..., None], search_rules.SMOOTHED, axis=-1)
    return Candidates(
        answers=tokens,
        q_halt=np.array([q_halt], float),
        segments=np.full((1, k), 9),
        recent=recent,
        halt_segment=halt_segment,
        halt_answers=tokens + 32,
        halt_q=np.array([halt_q or [NAN] * k]),
    )


# Answers, their Q(halt) and validity -> what single_pass, q, majority and majority_valid choose, worked out by hand
VOTES = {
    "the majority is wrong, one valid answer": ("ABBBC", (-2, -1, -1, -1, 2), "00001", "ACBC"),
    "a tie goes to the higher mean": ("AABBC", (1, -2, 0, 0, -1), "11111", "AABB"),
    "not to the highest": ("ABABC", (3, 0.5, -9, 0.5, -1), "11111", "AABB"),
    "equal means go to the first": ("CABBA", (0, 0, 0, 0, 0), "11111", "CCAA"),
    "none valid: the majority of all": ("ABBCC", (2, -1, -1, -2, -2), "00000", "AABB"),
    "a tie among the valid ones": ("AAABC", (-3, -3, -3, -2, -1), "00011", "ACAC"),
    "more valid copies win": ("AAABBC", (-3, -3, -3, -2, -2, 2), "000111", "ACAB"),
    "no number has no vote": ("AABBC", (NAN, NAN, -1, -2, NAN), "11111", "ABBB"),
    "nor the highest Q": ("ABC", (-2, NAN, -1), "111", "ACCC"),
    "nor a valid one": ("ABBC", (1, NAN, NAN, -1), "0110", "AAAA"),
    "none is a number": ("ABBC", (NAN, NAN, NAN, NAN), "0110", "AAAA"),
    "a Q that a sigmoid cannot tell from 1": ("AB", (800, 900), "11", "ABAA"),
}


@pytest.mark.parametrize("case", VOTES)
def test_votes_by_hand(case):
    letters, q_halt, valid, expected = VOTES[case]
    obeys = np.array([[flag == "1" for flag in valid]])
    found = candidates(letters, q_halt)
    methods = ("single_pass", "q", "majority", "majority_valid")
    chosen = [choose(method, found, obeys) for method in methods]
    assert "".join(letters[one.trajectory[0]] for one in chosen) == expected
    assert all(one.answers[0].tolist() == [ord(letter)] * 3 for one, letter in zip(chosen, expected, strict=True))
    assert choose("majority_valid", found, None).trajectory == choose("majority", found, None).trajectory


# What first_halt chooses: in lower case where it halted, in upper case after the last segment
HALTS = {
    "the fewest segments": ("ABC", (0, 0, 0), "423", (1, 2, 9), "b", 2),
    "a tie: the higher Q there": ("ABC", (9, 0, 0), "222", (1, 2, 3), "c", 3),
    "a tie of Q: the first": ("ABC", (0, 0, 0), "022", (NAN, 2, 2), "b", 2),
    "those that never halted do not count": ("ABC", (9, 9, 0), "003", (NAN, NAN, -1), "c", -1),
    "none: the highest Q": ("ABC", (1, 2, 0), "000", None, "B", 2),
    "none, and no number": ("AB", (NAN, NAN), "00", None, "A", -np.inf),
    "halted, and no number later": ("AB", (NAN, 3), "10", (1, NAN), "a", 1),
}


@pytest.mark.parametrize("case", HALTS)
def test_the_first_to_halt_by_hand(case):
    letters, q_halt, halts, halt_q, expected, score = HALTS[case]
    one = choose("first_halt", candidates(letters, q_halt, None, halts, halt_q), None)
    assert (chr(one.answers[0, 0]), one.score[0]) == (expected, score)


def test_the_smallest_residual_by_hand():
    found = candidates("ABCD", (1, 1, 1, NAN), residual=[0.3, 0.1, 0.1, 0.0])
    one = choose("residual", found, None)
    assert (one.trajectory[0], one.score[0]) == (1, pytest.approx(-0.1))
    found.recent[0, 0] = (NAN, 0, 0)  # is no reason to be chosen
    assert choose("residual", found, None).trajectory == 1
    assert choose("residual", candidates("AB", (NAN, NAN), [0.0, 0.0]), None).score[0] == -np.inf


def test_residuals_are_the_mean_of_the_last_three():
    found, last = Candidates.empty(2, 2, 1), []
    for number in range(1, 6):
        value = np.array([[number, 10.0 * number]])
        nothing = np.zeros((1, 2), bool)
        found.add(np.array([1]), slice(0, 2), number, Segment(np.ones((1, 2, 1)), value, nothing, value))
        last.append(found.residual[1].tolist())
    assert last == [[1, 10], [1.5, 15], [2, 20], [3, 30], [4, 40]]
    assert np.isinf(found.residual[0]).all()


def test_agreement_is_the_brute_force_medoid():
    rng = np.random.default_rng(0)
    for trial in range(30):
        answers = rng.integers(0, 3, (6, 5), dtype=np.uint8)
        q_halt = rng.choice([-1.0, 0.0, 1.0, NAN], 6) if trial else np.full(6, NAN)
        found = candidates("ABCDEF", q_halt)
        found.answers[0] = answers[:, :3]
        one, who = choose("agreement", found, None), np.flatnonzero(~np.isnan(q_halt)).tolist()
        if not who:
            assert (one.trajectory[0], one.score[0]) == (0, -np.inf)
            continue
        share = {k: np.mean([(answers[k, :3] == answers[j, :3]).mean() for j in who if j != k] or [1]) for k in who}
        best = max(who, key=lambda k: (round(share[k], 9), q_halt[k], -k))
        assert one.trajectory[0] == best
        assert one.score[0] == pytest.approx(share[best])


def test_scores_of_votes():
    found, obeys = candidates("AABC", (0, 0, 1, NAN)), np.array([[False, False, True, True]])
    assert choose("majority", found, obeys).score[0] == pytest.approx(2 / 3)
    assert choose("majority_valid", found, obeys).score[0] == pytest.approx(1 / 3)
    assert choose("majority_valid", found, ~obeys | obeys).score[0] == pytest.approx(2 / 3)
    assert choose("majority_valid", found, obeys & ~obeys).score[0] == pytest.approx(2 / 3 - 1)


def test_what_is_right_by_hand():
    answers = np.array([[[1, 2], [1, 3]], [[1, 2], [3, 2]], [[1, 2], [1, 2]]], np.uint8)
    labels = np.array([[1, 2], [-100, 2], [-100, -100]])  # nothing to be right about in the last
    assert exactly_right(answers, labels[:, None]).tolist() == [[True, False], [True, True], [False, False]]


def test_abstention_is_the_brute_force():
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 40):
        score = np.where(rng.random(n) < 0.1, -np.inf, rng.integers(0, 5, n) / 4)
        right = rng.random(n) < 0.5
        pairs = [(a > b) + (a == b) / 2 for a in score[right] for b in score[~right]]
        assert abstention.auroc(score, right) == (pytest.approx(np.mean(pairs)) if pairs else None)
        orders = [np.lexsort((rng.random(n), -score)) for _ in range(400)]
        for share, found in zip(abstention.COVERAGES, abstention.accuracy_at(score, right), strict=True):
            kept = int(np.ceil(share * n))
            assert found == pytest.approx(np.mean([right[order[:kept]].mean() for order in orders]), abs=0.1)
        coverage, risk = abstention.risk_coverage(score, right)
        assert coverage.tolist() == pytest.approx([(k + 1) / n for k in range(n)])
        assert risk[-1] == pytest.approx(1 - right.mean())
    for n in (400, 401, 5000):
        coverage, _ = abstention.risk_coverage(np.arange(n) / n, np.arange(n) % 2 == 0)
        assert (len(coverage), coverage[0], coverage[-1]) == (400, 1 / n, 1)
    assert abstention.accuracy_at(np.array([3.0, 2, 1, 0]), np.array([1, 0, 1, 0], bool)) == [1, 0.5, 2 / 3, 0.5]
