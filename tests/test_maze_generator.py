"""Generated mazes against a plain breadth-first search and the naive procedure.

python -m pytest tests/test_maze_generator.py
"""

from collections import deque
from functools import cache

import numpy as np
import pytest

from errors import UserError
from puzzles.maze_generator import Hit, generate_mazes


@cache
def neighbours(cell: int, size: int) -> list[int]:
    row, column = divmod(cell, size)
    around = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [r * size + c for r, c in around if 0 <= r < size and 0 <= c < size]


def distances(question: str, size: int, start: int) -> dict[int, int]:
    """Steps from `start` to every cell that can be reached, by a plain breadth-first search."""
    steps, queue = {start: 0}, deque([start])
    while queue:
        cell = queue.popleft()
        for other in neighbours(cell, size):
            if question[other] != "#" and other not in steps:
                steps[other] = steps[cell] + 1
                queue.append(other)
    return steps


def texts(codes: np.ndarray) -> list[str]:
    return [row.tobytes().decode("ascii") for row in codes]


def test_labels_are_shortest_paths() -> None:
    size, minimum = 12, 20
    questions, answers, steps = generate_mazes(60, size, minimum, np.random.SeedSequence(4))
    assert questions.shape == answers.shape == (60, size * size)
    assert questions.dtype == answers.dtype == np.uint8
    for question, answer, length in zip(texts(questions), texts(answers), steps, strict=True):
        assert set(question) == set("# SG")
        assert question.count("S") == question.count("G") == 1
        assert 0.3 * size * size - 1 <= question.count("#") <= 0.5 * size * size + 1
        assert answer.replace("o", " ") == question
        start, goal = question.index("S"), question.index("G")
        shortest = distances(question, size, start)[goal]
        assert shortest == length
        assert shortest > minimum
        # As many marked cells as a shortest path has between its ends, and they suffice: they are one.
        assert answer.count("o") == shortest - 1
        assert distances(answer.replace(" ", "#"), size, start)[goal] == shortest


def naive_mazes(draws: int, size: int, minimum: int, seed: int) -> list[tuple[str, int]]:
    """The procedure as it is written: every draw has its own map, start and goal. -> (question, steps) of the kept."""
    rng, kept = np.random.default_rng(seed), []
    for _ in range(draws):
        cells = rng.permutation(size * size)
        walls = round(rng.uniform(0.3, 0.5) * size * size)
        start, goal = cells[walls], cells[walls + 1]  # of a permutation: uniform among the free cells, and different
        grid = np.full(size * size, " ")
        grid[cells[:walls]] = "#"
        steps = distances("".join(grid), size, start).get(goal, 0)
        if steps > minimum:
            grid[start], grid[goal] = "S", "G"
            kept.append(("".join(grid), steps))
    return kept


def features(mazes: list[tuple[str, int]], size: int) -> dict[str, np.ndarray]:
    """What a maze's weight in the distribution depends on, in a few classes each."""
    starts = [divmod(question.index("S"), size) for question, _ in mazes]
    goals = [divmod(question.index("G"), size) for question, _ in mazes]
    edge = [[sum(x in (0, size - 1) for x in place) for place in places] for places in (starts, goals)]
    return {
        "steps": np.minimum([steps for _, steps in mazes], 12),
        "walls": np.array([question.count("#") for question, _ in mazes]),
        "edges of start": np.array(edge[0]),
        "edges of goal": np.array(edge[1]),
        # The weight itself: how many goals were far.
        "far goals": np.minimum([sum(d > 6 for d in distances(q, size, q.index("S")).values()) for q, _ in mazes], 10),
    }


@pytest.mark.slow
def test_distribution_is_that_of_the_naive_procedure() -> None:
    size, minimum = 6, 6
    naive = features(naive_mazes(60_000, size, minimum, seed=1), size)
    questions, _, steps = generate_mazes(20_000, size, minimum, np.random.SeedSequence(2))
    fast = features(list(zip(texts(questions), steps.tolist(), strict=True)), size)
    assert len(naive["steps"]) > 1500
    for name, values in naive.items():
        classes = np.union1d(values, fast[name])
        table = np.array([[(sample == c).sum() for c in classes] for sample in (values, fast[name])])
        table = table[:, table.sum(axis=0) >= 20]
        expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
        freedom = table.shape[1] - 1
        assert freedom >= 2
        chi_square = ((table - expected) ** 2 / expected).sum()
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5, f"{name}: {chi_square:.1f} at {freedom} degrees"


def test_a_risen_bound_thins_what_was_accepted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def hits(*thresholds: float) -> list[Hit]:
        grids = rng.integers(0, 255, (len(thresholds), 36), np.uint8)
        return [Hit(t, grid, grid, int(100 * t), False) for t, grid in zip(thresholds, grids, strict=True)]

    blocks = [(10, 0.3, hits(0.45, 0.55, 0.7, 2.0)), (10, 0.6, hits(0.5, 0.62)), (10, 0.5, hits(0.55, 0.9, 1.5, 3.0))]
    monkeypatch.setattr("puzzles.maze_generator._search_blocks", lambda *_: (block for block in blocks))
    _, _, steps = generate_mazes(5, 6, 6, np.random.SeedSequence(0))
    assert steps.tolist() == [70, 200, 62, 90, 150]  # those above 0.6, the largest ratio, in order


def shortest_paths(question: np.ndarray, size: int) -> int:
    """How many there are, by powers of the adjacency matrix."""
    free = np.flatnonzero(question != ord("#"))
    rows, columns = free // size, free % size
    adjacent = (abs(rows[:, None] - rows) + abs(columns[:, None] - columns) == 1).astype(np.int64)
    start, goal = (int(np.flatnonzero(question[free] == ord(letter))[0]) for letter in "SG")
    walks = np.eye(len(free), dtype=np.int64)[start]
    while not walks[goal]:
        walks = walks @ adjacent
    return int(walks[goal])


def test_mazes_with_one_shortest_path() -> None:
    """They are those among all that have one, in their order."""
    every, only = (
        generate_mazes(count, 8, 9, np.random.SeedSequence(5), one_path=one)
        for count, one in ((240, False), (30, True))
    )
    assert {shortest_paths(question, 8) for question in only[0]} == {1}
    single = [shortest_paths(question, 8) == 1 for question in every[0]]
    assert 30 < sum(single) < 120  # most have several
    for all_of_them, ones in zip(every, only, strict=True):
        np.testing.assert_array_equal(all_of_them[single][:30], ones)


def test_seed_decides_and_threads_do_not() -> None:
    runs = [
        generate_mazes(40, 10, 15, np.random.SeedSequence(seed), threads=threads)
        for seed, threads in ((1, 1), (1, 3), (2, 1))
    ]
    for one, three, other in zip(*runs, strict=True):
        assert (one == three).all()
        assert (one != other).any()


def test_no_two_mazes_are_alike() -> None:
    """At 4×4 chance repeats mazes often; rotations and reflections count as the same."""
    questions, _, _ = generate_mazes(300, 4, 5, np.random.SeedSequence(3))
    seen: set[bytes] = set()
    for question in questions.reshape(-1, 4, 4):
        turned = [np.rot90(flipped, k).tobytes() for flipped in (question, question[:, ::-1]) for k in range(4)]
        assert not seen & set(turned)
        seen.update(turned)


def test_impossible_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a 6×6 maze has 25 free cells at most; lower it"):
        generate_mazes(1, 6, 24, np.random.SeedSequence(0))
    monkeypatch.setattr("puzzles.maze_generator.GIVE_UP_AFTER", 10_000)
    with pytest.raises(
        UserError, match=r"found 0 of 1 different mazes of 6×6 with a shortest path over 22 steps.*raise --size"
    ):
        generate_mazes(1, 6, 22, np.random.SeedSequence(0))


def test_more_mazes_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw is accepted there, and is a maze that was found before: it was searched on for minutes."""
    monkeypatch.setattr("puzzles.maze_generator.GIVE_UP_AFTER_COPIES", 1_000)
    with pytest.raises(UserError, match=r"100 mazes of 2×2: there are no more than 36; ask for fewer or raise --size"):
        generate_mazes(100, 2, 1, np.random.SeedSequence(0))
    with pytest.raises(UserError, match=r"found 1 of 2 different mazes of 2×2 .* none more in [\d,]+ draws"):
        generate_mazes(2, 2, 1, np.random.SeedSequence(0))
    assert len(generate_mazes(1, 2, 1, np.random.SeedSequence(0))[0]) == 1
