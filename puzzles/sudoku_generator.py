"""Sudokus with one solution each: 4×4 (boxes of 2×2), 6×6 (boxes of 2 rows by 3 columns), 9×9.

A puzzle is a full grid from which every clue that the solution's uniqueness can spare is removed, in random order; then
the last 0..`extra_clues` (uniform) removals are taken back. With `extra_clues` 0 every clue is needed.
The rating counts guesses: the cells with more than one candidate left, in a complete search that always fills a cell
with the fewest candidates next. (Sudoku-Extreme's ratings come from a stronger solver, so they are lower.)

Train and test share no solution. At 4×4 the 288 grids that exist are split in proportion to the numbers of
puzzles, and each serves for several different puzzles. At 6×6 and 9×9 every puzzle has its own grid, filled by the same
search with the digits in random order: that reaches every grid, though not all with equal probability.
All random numbers come from numpy, so that the compiled code makes the same puzzles on every machine.
"""

from collections.abc import Callable
from itertools import permutations

import numpy as np
from tqdm import tqdm

from errors import UserError
from puzzles.compiled import compiled, interruptible

BATCH = 64  # puzzles tried at a time
GIVE_UP_AFTER = 20_000  # puzzles tried without a new one

Puzzles = tuple[np.ndarray, np.ndarray, np.ndarray]  # questions and answers (n, cells) uint8 ASCII, ratings (n,) int64


def generate_sudokus(
    box: tuple[int, int],
    num_train: int,
    num_test: int,
    seed: np.random.SeedSequence,
    *,
    extra_clues: int = 0,
    min_rating: int = 0,
) -> dict[str, Puzzles]:
    """`train` and `test` puzzles whose boxes have `box` = (rows, columns)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    counts = {"train": num_train, "test": num_test}
    if box == (2, 2):
        grids = rng.permutation(all_4x4_grids())
        share = round(len(grids) * num_test / (num_train + num_test))
        parts = np.split(grids, [len(grids) - min(max(share, 1), len(grids) - 1)])
        draws = {split: _in_turns(part) for split, part in zip(counts, parts, strict=True)}
    else:
        draws = dict.fromkeys(counts, lambda n: random_grids(box, n, rng))
    used: set[bytes] = set()
    puzzles = {}
    for split, count in counts.items():
        title = f"{box[0] * box[1]}×{box[0] * box[1]} Sudokus for {split}"
        with interruptible(), tqdm(total=count, desc=title, unit=" puzzles") as bar:
            puzzles[split] = _collect(box, count, draws[split], rng, used, extra_clues, min_rating, bar)
    return puzzles


def _collect(
    box: tuple[int, int],
    count: int,
    draw: Callable[[int], np.ndarray],
    rng: np.random.Generator,
    used: set[bytes],
    extra_clues: int,
    min_rating: int,
    bar: tqdm,
) -> Puzzles:
    """`count` puzzles on grids from `draw`, different from `used` (to which they are added) and from one another."""
    kept: list[tuple[np.ndarray, np.ndarray, int]] = []
    tries_in_vain = 0
    while len(kept) < count:
        grids = draw(BATCH)
        for question, answer, rating in zip(*carve(box, grids, extra_clues, rng), strict=True):
            # 4×4 grids are few: there the puzzles have to differ, elsewhere their grids.
            identity = (question if box == (2, 2) else answer).tobytes()
            if rating < min_rating or identity in used or len(kept) == count:
                tries_in_vain += 1
                continue
            used.add(identity)
            kept.append((question, answer, rating))
            tries_in_vain = 0
        if tries_in_vain >= GIVE_UP_AFTER:
            size = box[0] * box[1]
            raise UserError(
                f"found {len(kept)} of {count} different {size}×{size} Sudokus (rating >= {min_rating}, extra clues <= "
                f"{extra_clues}), and none more in {GIVE_UP_AFTER} tries; ask for fewer or lower --min-difficulty"
            )
        bar.update(len(kept) - bar.n)
    questions, answers, ratings = zip(*kept, strict=True)
    text = np.stack(questions) + ord("0")
    text[text == ord("0")] = ord(".")
    return text, np.stack(answers) + ord("0"), np.array(ratings, np.int64)


def all_4x4_grids() -> np.ndarray:
    """(288, 16) uint8 digits from 1, in lexicographic order."""
    rows = list(permutations(range(1, 5)))
    bands = [a + b for a in rows for b in rows if not ({*a[:2]} & {*b[:2]} or {*a[2:]} & {*b[2:]})]
    return np.array(
        [top + low for top in bands for low in bands if all(len({*(top + low)[c::4]}) == 4 for c in range(4))], np.uint8
    )


def _in_turns(grids: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function that gives the next n of `grids`, round after round."""
    position = 0

    def draw(n: int) -> np.ndarray:
        nonlocal position
        chosen = grids[np.arange(position, position + n) % len(grids)]
        position += n
        return chosen

    return draw


def random_grids(box: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Full grids: (count, cells) uint8 digits from 1."""
    size = box[0] * box[1]
    orders = rng.permuted(np.tile(np.arange(size), (count, size * size, 1)), axis=2)
    return _fill(_units(box), orders)


def carve(box: tuple[int, int], grids: np.ndarray, extra_clues: int, rng: np.random.Generator) -> Puzzles:
    """One puzzle per full grid: questions (n, cells) uint8 with 0 for blanks, the grids, ratings (n,) int64."""
    orders = rng.permuted(np.tile(np.arange(grids.shape[1]), (len(grids), 1)), axis=1)
    extras = rng.integers(0, extra_clues + 1, len(grids))
    questions, ratings = _carve(_units(box), grids, orders, extras)
    return questions, grids, ratings


def _units(box: tuple[int, int]) -> np.ndarray:
    """(cells, 3) int64: the row, the column and the box of each cell, all numbered together."""
    size = box[0] * box[1]
    row, column = np.divmod(np.arange(size * size), size)
    return np.stack([row, size + column, 2 * size + row // box[0] * box[0] + column // box[1]], axis=1)


# The compiled part. A set of digits is a bit mask, digit d - 1 its bit.

ONE, TWO = np.int64(1), np.int64(2)  # limits; numba would compile the search anew for each literal int
BIT_COUNTS = np.array([bin(mask).count("1") for mask in range(1 << 9)], np.int64)


@compiled
def _put(digit, units, used):
    """Note a digit in the three `units` of its cell."""
    for unit in units:
        used[unit] |= 1 << digit


@compiled
def _take_away(digit, units, used):
    for unit in units:
        used[unit] ^= 1 << digit


@compiled
def _taken(units, used):
    """The digits that a cell of these `units` cannot have."""
    return used[units[0]] | used[units[1]] | used[units[2]]


@compiled
def _fewest_first(blanks, first, units, used):
    """Swap blank number `first` with the one from there on that has the fewest candidates left; -> how many it has."""
    size = len(used) // 3
    best, fewest = first, size + 1
    for i in range(first, len(blanks)):
        candidates = size - BIT_COUNTS[_taken(units[blanks[i]], used)]
        if candidates < fewest:
            best, fewest = i, candidates
            if fewest <= 1:
                break
    blanks[first], blanks[best] = blanks[best], blanks[first]
    return fewest


@compiled
def _next_digit(taken, order, tried):
    """-> how many digits of `order` are tried with the next one that is not taken; one more than all without."""
    while tried < len(order) and taken >> order[tried] & 1:
        tried += 1
    return tried + 1


@compiled
def _search(units, puzzle, limit, digit_orders, solution):
    """Depth-first search for up to `limit` solutions; the first is written to `solution`. Returns (found, guesses)."""
    size = digit_orders.shape[1]
    used = np.zeros(3 * size, np.int64)  # the digits in each row, then in each column, then in each box
    for cell in np.flatnonzero(puzzle):
        _put(np.int64(puzzle[cell]) - 1, units[cell], used)
    blanks = np.flatnonzero(puzzle == 0)  # first those that are filled, in that order
    depths = len(blanks)
    tried = np.zeros(depths + 1, np.int64)  # how many digits of its order each depth has tried
    placed = np.full(depths + 1, -1, np.int64)  # the digit on each depth's cell
    found = guesses = depth = 0
    descending = True
    while depth >= 0:
        if depth == depths:
            found += 1
            if found == 1:
                solution[:] = puzzle
                for i in range(depths):
                    solution[blanks[i]] = placed[i] + 1
            if found == limit:
                break
            depth -= 1
            descending = False
            continue
        if descending:
            if _fewest_first(blanks, depth, units, used) > 1:
                guesses += 1
            tried[depth] = 0
        cell = blanks[depth]
        if placed[depth] >= 0:  # back from below
            _take_away(placed[depth], units[cell], used)
            placed[depth] = -1
        tried[depth] = _next_digit(_taken(units[cell], used), digit_orders[cell], tried[depth])
        descending = tried[depth] <= size
        if descending:
            placed[depth] = digit_orders[cell, tried[depth] - 1]
            _put(placed[depth], units[cell], used)
            depth += 1
        else:
            depth -= 1
    return found, guesses


@compiled
def _fill(units, orders):
    """One full grid for each (cells, size) of `orders`, the order in which digits are tried."""
    empty = np.zeros(orders.shape[1], np.uint8)
    grids = np.zeros((len(orders), orders.shape[1]), np.uint8)
    for i in range(len(orders)):
        _search(units, empty, ONE, orders[i], grids[i])
    return grids


@compiled
def _carve(units, grids, orders, extras):
    """Remove, in each grid's order, the clues that uniqueness can spare; put the last `extras` back."""
    cells, size = grids.shape[1], units[-1, 0] + 1
    digit_orders = np.empty((cells, size), np.int64)
    digit_orders[:] = np.arange(size)
    puzzles, ratings = grids.copy(), np.zeros(len(grids), np.int64)
    removed, scratch = np.empty(cells, np.int64), np.empty(cells, np.uint8)
    for i in range(len(grids)):
        puzzle, gone = puzzles[i], 0
        for cell in orders[i]:
            puzzle[cell] = 0
            if _search(units, puzzle, TWO, digit_orders, scratch)[0] == 1:
                removed[gone] = cell
                gone += 1
            else:
                puzzle[cell] = grids[i, cell]
        for j in range(max(0, gone - extras[i]), gone):
            puzzle[removed[j]] = grids[i, removed[j]]
        ratings[i] = _search(units, puzzle, TWO, digit_orders, scratch)[1]
    return puzzles, ratings
