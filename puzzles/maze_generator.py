"""Mazes by the procedure of Searchformer (Lehnert et al. 2024, arXiv:2402.14083), thinned to those with long paths.

One draw of the procedure: a share of walls uniform in 30–50 %, that many cells of the map walled uniformly at random,
start and goal uniform among the free cells; it is kept if the shortest path has more than `min_path_length` steps
(moves; the rating in the published files counts the same). At 30×30 and 110 about one draw in 77,000 is kept.

**Same distribution, fewer draws.** For a map with F free cells and a start, let `far` be the goals more than
`min_path_length` steps away. The procedure keeps a draw of (map, start) with probability `far / (F - 1)`, and its goal
is then uniform among the far ones. So one breadth-first search settles all goals at once, and (map, start) may be
accepted with probability `far / (F - 1) / bound` for any constant bound that no ratio exceeds: every maze then becomes
more frequent by the same factor 1 / bound. The bound that can be proven, 1 - min_path_length / (F - 1), is near 0.8,
but ratios that large are never seen (30×30, 110: the largest of 20 million was 0.31, and 99.9 % of the mazes come from
ratios below 0.3), so the bound starts at 0.4 and rises to the largest ratio met. Every candidate has a uniform number
u of its own and is accepted if `u * bound < ratio` with the *final* bound: when the bound rises, what was accepted
under the lower one is thinned again, as if that bound had been known from the start. (Where there are so few mazes that
one comes twice, its later copies go with the first.) Each map is used for one maze at most.

The label is one of the shortest paths: walking back from the goal, each step is uniform among the neighbours that are
one nearer to the start. Candidate i draws from its own counter-based stream, so a result depends on the seed alone,
not on the number of threads or the machine. All mazes are different, even under rotation and reflection.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache
from math import comb
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from errors import UserError
from puzzles.compiled import compiled
from puzzles.maze import CHARACTERS
from puzzles.symmetry import dihedral_transform

MIN_WALLS, MAX_WALLS = 0.3, 0.5  # share of the cells
START_BOUND = 0.4
FIRST_BLOCK, BLOCK_CELLS = 1 << 10, 1 << 27  # candidates at a time at first; doubled up to this many cells
GIVE_UP_AFTER = 20_000_000  # candidates without a new maze, of 30×30 cells: larger ones take more time each
GIVE_UP_AFTER_COPIES = 20_000  # accepted candidates in a row that are mazes found before: then there are no others
WALL, FREE, START, GOAL, PATH = CHARACTERS.encode()  # as in CSV files


class Hit(NamedTuple):
    """A candidate that is accepted so far."""

    threshold: float  # ratio / u: it is accepted while the bound is below this
    question: np.ndarray  # (size²,) uint8, ASCII
    answer: np.ndarray  # (size²,) uint8, ASCII
    steps: int
    only_path: bool  # no other shortest path


class _Found:
    """The different mazes that are accepted under the largest ratio met so far."""

    def __init__(self, size: int, bound: float):
        self.size, self.bound = size, bound
        self.hits: dict[bytes, Hit] = {}  # by the canonical form of the maze, in the order of the candidates
        self.copies = 0  # accepted candidates in a row that are mazes found before
        self.draws_in_vain = 0  # candidates in the blocks since the last that brought a new maze

    def add(self, block: int, largest: float, hits: list[Hit]) -> None:
        """What came of a block of candidates; where its `largest` ratio raises the bound, earlier mazes are thinned."""
        if largest > self.bound:
            self.bound = largest
            self.hits = {form: hit for form, hit in self.hits.items() if hit.threshold > self.bound}
        before = len(self.hits)
        for hit in hits:
            if hit.threshold > self.bound:
                known = len(self.hits)
                self.hits.setdefault(_canonical(hit.question, self.size), hit)
                self.copies = self.copies + 1 if len(self.hits) == known else 0
        self.draws_in_vain = 0 if len(self.hits) > before else self.draws_in_vain + block


def generate_mazes(
    count: int,
    size: int,
    min_path_length: int,
    seed: np.random.SeedSequence,
    *,
    one_path: bool = False,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` different mazes: questions and answers (count, size²) uint8 ASCII, steps (count,) int64.

    With `one_path` those of the procedure's mazes that have a single shortest path.
    """
    most_free = _check_possible(count, size, min_path_length)
    patience = min(GIVE_UP_AFTER, GIVE_UP_AFTER * 900 // size**2)
    key = seed.generate_state(1, np.uint64)[0]
    found = _Found(size, min(START_BOUND, 1 - min_path_length / (most_free - 1)))
    blocks = _search_blocks(key, size, min_path_length, found.bound, threads or _cores())
    with tqdm(total=count, desc=f"{size}×{size} mazes", unit=" mazes") as bar, closing(blocks):
        while len(found.hits) < count:
            block, largest, hits = next(blocks)
            found.add(block, largest, [hit for hit in hits if hit.only_path or not one_path])
            in_vain = found.draws_in_vain >= patience or found.copies >= GIVE_UP_AFTER_COPIES
            if len(found.hits) < count and in_vain:
                raise UserError(
                    f"found {len(found.hits)} of {count} different mazes of {size}×{size} with a shortest path over "
                    f"{min_path_length} steps, and none more in {found.draws_in_vain or block:,} draws; lower "
                    f"--min-path-length or raise --size"
                )
            bar.update(min(len(found.hits), count) - bar.n)
    kept = list(found.hits.values())[:count]
    return (
        np.stack([hit.question for hit in kept]),
        np.stack([hit.answer for hit in kept]),
        np.array([hit.steps for hit in kept], np.int64),
    )


def _check_possible(count: int, size: int, min_path_length: int) -> int:
    """Raise `UserError` for mazes that do not exist; -> how many cells of one are free at most."""
    most_free = size * size - round(MIN_WALLS * size * size)
    if most_free < min_path_length + 2:
        raise UserError(
            f"--min-path-length {min_path_length}: a {size}×{size} maze has {most_free} free cells at most; lower it"
        )
    if count > (most := _most_mazes(size)):
        raise UserError(
            f"{count:,} mazes of {size}×{size}: there are no more than {most:,}; ask for fewer or raise --size"
        )
    return most_free


def _most_mazes(size: int) -> int:
    """No fewer than exist: the maps with the walls that are drawn, and a start and a goal on free cells."""
    cells = size * size
    walls = range(int(MIN_WALLS * cells), int(MAX_WALLS * cells + 0.5) + 1)
    return sum(comb(cells, n) * (cells - n) * (cells - n - 1) for n in walls)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _canonical(question: np.ndarray, size: int) -> bytes:
    """Bytes that are the same for all rotations and reflections of a maze."""
    return min(copy.tobytes() for copy in question[_cells_of_symmetries(size)])


@cache
def _cells_of_symmetries(size: int) -> np.ndarray:
    """(8, size²): of each rotation and reflection of a maze, which cell of the maze comes where."""
    cells = np.arange(size * size).reshape(size, size)
    return np.stack([dihedral_transform(cells, tid).reshape(-1) for tid in range(8)])


def _search_blocks(
    key: np.uint64, size: int, min_path_length: int, bound: float, threads: int
) -> Iterator[tuple[int, float, list[Hit]]]:
    """Yield candidates, largest ratio and hits of one block after the other; other threads search ahead."""

    def search(first: int, block: int) -> tuple[int, float, list[Hit]]:
        largest, which, thresholds = _search(key, first, block, size, min_path_length, bound)
        return (
            block,
            largest,
            [Hit(t, *_build(key, i, size, min_path_length)) for i, t in zip(which, thresholds, strict=True)],
        )

    pending: deque[Future] = deque()
    first, block = 0, FIRST_BLOCK
    with ThreadPoolExecutor(threads) as pool:  # the compiled search releases the GIL
        try:
            while True:
                while len(pending) < threads:
                    pending.append(pool.submit(search, first, block))
                    first, block = first + block, min(2 * block, max(FIRST_BLOCK, BLOCK_CELLS // size**2))
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


# The compiled part. Random numbers: splitmix64 (Steele et al. 2014), one stream per candidate. Cells are numbered in a
# frame of walls, so that no neighbour lies outside: cell (r, c) is (r + 1) * (size + 2) + c + 1.

GOLDEN, MIX_1, MIX_2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHIFT_11, SHIFT_27, SHIFT_30, SHIFT_31, SHIFT_32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))


@compiled
def _mix(z):
    z = (z ^ (z >> SHIFT_30)) * MIX_1
    z = (z ^ (z >> SHIFT_27)) * MIX_2
    return z ^ (z >> SHIFT_31)


@compiled
def _uniform(state):
    """In (0, 1)."""
    state[0] += GOLDEN
    return (np.float64(_mix(state[0]) >> SHIFT_11) + 0.5) / 9007199254740992.0


@compiled
def _below(state, n):
    """A number in 0..n-1; its distribution is off uniform by less than n / 2^32."""
    state[0] += GOLDEN
    return np.int64(((_mix(state[0]) >> SHIFT_32) * np.uint64(n)) >> SHIFT_32)


@compiled
def _all_cells(size):
    cells = np.empty(size * size, np.int32)
    for i in range(size * size):
        cells[i] = (i // size + 1) * (size + 2) + i % size + 1
    return cells


@compiled
def _draw(key, candidate, size, state, all_cells, cells, steps):
    """Draw a candidate's (u, map, start): `steps` 0 on free cells, else -1; return u, start, number of free cells."""
    state[0] = _mix(key + np.uint64(candidate) * GOLDEN)
    u = _uniform(state)
    total = size * size
    walls = int((MIN_WALLS + (MAX_WALLS - MIN_WALLS) * _uniform(state)) * total + 0.5)
    cells[:] = all_cells
    for i in range(walls):  # the first part of a Fisher-Yates shuffle
        j = i + _below(state, total - i)
        cells[i], cells[j] = cells[j], cells[i]
    steps[:] = -1
    for i in range(walls, total):
        steps[cells[i]] = 0
    return u, cells[walls + _below(state, total - walls)], total - walls


@compiled
def _flood(start, size, steps, queue):
    """Breadth-first search: write 1 + steps from `start` into `steps` (0 where free); return how many were reached."""
    frame = size + 2
    queue[0], steps[start] = start, 1
    head, tail = 0, 1
    while head < tail:
        cell = queue[head]
        head += 1
        for neighbour in (cell - 1, cell + 1, cell - frame, cell + frame):
            if steps[neighbour] == 0:
                steps[neighbour] = steps[cell] + 1
                queue[tail] = neighbour
                tail += 1
    return tail


@compiled
def _count_far(queue, reached, steps, min_path_length):
    """How many reached cells are more than `min_path_length` steps away; they are the end of the queue."""
    far = 0
    while far < reached and steps[queue[reached - 1 - far]] - 1 > min_path_length:
        far += 1
    return far


@compiled
def _search(key, first, count, size, min_path_length, bound):
    """The largest ratio among candidates first..first + count - 1, and those accepted under `bound` with thresholds."""
    state = np.empty(1, np.uint64)
    all_cells, cells, queue = _all_cells(size), np.empty(size * size, np.int32), np.empty(size * size, np.int32)
    steps = np.empty((size + 2) ** 2, np.int32)
    which, thresholds = np.empty(count, np.int64), np.empty(count, np.float64)
    found, largest = 0, 0.0
    for candidate in range(first, first + count):
        u, start, free = _draw(key, candidate, size, state, all_cells, cells, steps)
        reached = _flood(start, size, steps, queue)
        far = _count_far(queue, reached, steps, min_path_length)
        if far > 0:
            ratio = far / (free - 1)
            largest = max(largest, ratio)
            if ratio / u > bound:
                which[found], thresholds[found] = candidate, ratio / u
                found += 1
    return largest, which[:found], thresholds[:found]


@compiled
def _build(key, candidate, size, min_path_length):
    """The maze of an accepted candidate: question, answer (size²,) uint8 ASCII, the steps of its path, and whether no
    other path is as short."""
    state = np.empty(1, np.uint64)
    all_cells, cells, queue = _all_cells(size), np.empty(size * size, np.int32), np.empty(size * size, np.int32)
    steps = np.empty((size + 2) ** 2, np.int32)
    _, start, _ = _draw(key, candidate, size, state, all_cells, cells, steps)
    reached = _flood(start, size, steps, queue)
    far = _count_far(queue, reached, steps, min_path_length)
    goal = queue[reached - 1 - _below(state, far)]

    frame = size + 2
    framed = np.where(steps < 0, np.uint8(WALL), np.uint8(FREE))
    solved = framed.copy()
    cell, only_path = goal, True
    while cell != start:
        solved[cell] = PATH
        nearer = np.empty(4, np.int32)
        choices = 0
        for neighbour in (cell - 1, cell + 1, cell - frame, cell + frame):
            if steps[neighbour] == steps[cell] - 1:
                nearer[choices] = neighbour
                choices += 1
        only_path &= choices == 1
        cell = nearer[_below(state, choices)]
    for grid in (framed, solved):
        grid[start], grid[goal] = START, GOAL
    inner = (framed.reshape(frame, frame)[1:-1, 1:-1], solved.reshape(frame, frame)[1:-1, 1:-1])
    return inner[0].copy().ravel(), inner[1].copy().ravel(), steps[goal] - 1, only_path
