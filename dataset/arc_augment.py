"""Augmented ARC tasks: how they are named, drawn, undone, and written as sequences of 900 tokens.

An augmentation is one of the 8 symmetries of the square (`tid`) and a permutation of the colours 1–9 (`colour_map`,
old -> new; 0, the background, stays), applied to every grid of a task. A puzzle is called

    <task>                            the task as it is
    <task>_t<tid>_<10 digits>         an augmentation: digit i is the new colour of colour i

A grid becomes a 30×30 canvas of tokens, PAD 0, EOS 1, colour + 2, flattened row by row. EOS stands along the row below
the grid and the column right of it, where they lie inside the canvas; the corner between them is PAD.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dataset.arc_tasks import MAX_GRID_SIZE, NUM_COLOURS, Pair
from puzzles.symmetry import dihedral_transform, inverse_dihedral_transform

PAD, EOS, FIRST_COLOUR = 0, 1, 2
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS
SEQ_LEN = MAX_GRID_SIZE * MAX_GRID_SIZE

NUM_SYMMETRIES = 8
SWAPS_AXES = np.isin(np.arange(NUM_SYMMETRIES), (1, 3, 6, 7))  # symmetries that make rows of columns
TRIES_PER_AUGMENTATION = 5

_IDENTITY = np.arange(NUM_COLOURS, dtype=np.uint8)
_SUFFIX = re.compile(r"(?P<task>.+)_t(?P<tid>[0-7])_(?P<digits>[0-9]{10})", re.DOTALL)


def augmentation_name(task: str, tid: int, colour_map: Sequence[int] | np.ndarray) -> str:
    """The puzzle's name; the identity gives the bare task."""
    if tid == 0 and np.array_equal(colour_map, _IDENTITY):
        return task
    return f"{task}_t{tid}_{''.join(map(str, colour_map))}"


def parse_augmentation(name: str) -> tuple[str, int, np.ndarray]:
    """Task, tid and colour map of a puzzle's name; a name without their suffix is the task itself."""
    match = _SUFFIX.fullmatch(name)
    if match and len(set(match["digits"])) == NUM_COLOURS:
        return match["task"], int(match["tid"]), np.array([int(digit) for digit in match["digits"]], dtype=np.uint8)
    return name, 0, _IDENTITY.copy()


def apply_augmentation(grid: np.ndarray, tid: int, colour_map: np.ndarray) -> np.ndarray:
    """Augment a grid of colours (or a stack of them, on the last two axes)."""
    return dihedral_transform(colour_map[grid], tid)


def undo_augmentation(grid: np.ndarray, tid: int, colour_map: np.ndarray) -> np.ndarray:
    """The grid that `apply_augmentation` made this one from."""
    return np.argsort(colour_map).astype(np.uint8)[inverse_dihedral_transform(grid, tid)]


class Augmentations(NamedTuple):
    """The puzzles of one group, the task as it is first."""

    tids: np.ndarray  # (puzzles,)
    colour_maps: np.ndarray  # (puzzles, 10) uint8


def draw_augmentations(pairs: Sequence[Pair], count: int, rng: np.random.Generator) -> Augmentations:
    """The task and up to `count` random augmentations, all different in content, out of 5 × `count` draws.

    Fewer come back where the task has fewer, by its symmetries and the colours it lacks.
    """
    # Only the raw stream of doubles: unlike that of `rng.permuted`, it has been the same in every numpy.
    # One row per draw, so that a smaller `count` gives the first of a larger one's augmentations.
    draws = rng.random((TRIES_PER_AUGMENTATION * count, NUM_COLOURS))
    tids = np.append(0, (draws[:, 0] * NUM_SYMMETRIES).astype(np.int64))
    permutations = 1 + np.argsort(draws[:, 1:], axis=1, kind="stable")
    colour_maps = np.tile(_IDENTITY, (len(tids), 1))
    colour_maps[1:, 1:] = permutations
    _, first = np.unique(_content_hashes(pairs, tids, colour_maps), return_index=True)
    chosen = np.sort(first)[: count + 1]
    return Augmentations(tids[chosen], colour_maps[chosen])


# Fixed odd-looking numbers: a seed of their own, and raw 64-bit words, the same in every numpy.
_CELL_WORDS = np.random.Philox(key=0xA2C).random_raw(2 * SEQ_LEN).reshape(2, MAX_GRID_SIZE, MAX_GRID_SIZE)
_COLOUR_WORDS = np.random.Philox(key=0xC010).random_raw(NUM_COLOURS)


def _content_hashes(pairs: Sequence[Pair], tids: np.ndarray, colour_maps: np.ndarray) -> np.ndarray:
    """(draws,) uint64: what each augmentation makes of the task, whatever the order of its pairs.

    A pair's hash is the sum, over its cells, of word[cell] * word[colour] modulo 2^64. The cells of one colour can be
    summed before the colours are known, so that no augmented grid is built. Equal contents have equal hashes: no two
    equal puzzles are ever kept. Different contents meet with a probability of about 2^-64, which costs one draw.
    """
    sums = np.array([[_colour_sums(pair, tid) for pair in pairs] for tid in range(NUM_SYMMETRIES)])  # (8, pairs, 10)
    hashes = np.zeros(len(tids), dtype=np.uint64)
    words = _COLOUR_WORDS[colour_maps]  # (draws, 10)
    for pair in range(len(pairs)):
        hashes += _mix((sums[tids, pair] * words).sum(axis=1, dtype=np.uint64))
    return hashes


def _colour_sums(pair: Pair, tid: int) -> np.ndarray:
    """(10,) uint64: the sum of the words of the cells of each colour. (That no colour is 0 covers the shapes too.)"""
    total = np.zeros(NUM_COLOURS, dtype=np.uint64)
    for words, grid in zip(_CELL_WORDS, pair, strict=True):
        cells = dihedral_transform(grid, tid)
        rows, columns = cells.shape
        one_hot = cells.ravel() == np.arange(NUM_COLOURS)[:, None]  # (10, cells)
        total += one_hot.astype(np.uint64) @ words[:rows, :columns].ravel()
    return total


def _mix(word: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): pairs are summed after it, so it must not be linear."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def draw_offsets(pairs: Sequence[Pair], tids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(puzzles, pairs, 2): row and column of each pair's top left cell, uniform over where both its grids fit.

    One pair of every puzzle, drawn at random, stays at (0, 0).
    """
    draws = rng.random((len(tids), 2 * len(pairs) + 1))
    room = MAX_GRID_SIZE - np.array([np.maximum(pair.input.shape, pair.output.shape) for pair in pairs])  # (pairs, 2)
    room = np.where(SWAPS_AXES[tids, None, None], room[:, ::-1], room)  # (puzzles, pairs, 2)
    offsets = (draws[:, 1:].reshape(room.shape) * (room + 1)).astype(np.int64)
    offsets[np.arange(len(tids)), (draws[:, 0] * len(pairs)).astype(np.int64)] = 0
    return offsets


def encode(
    pairs: Sequence[Pair],
    augmentations: Augmentations,
    offsets: np.ndarray | None = None,  # (puzzles, pairs, 2), default: the top left corner
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, (puzzles × pairs, 900) uint8, of every augmentation of every pair, puzzle after puzzle."""
    tids, colour_maps = augmentations
    if offsets is None:
        offsets = np.zeros((len(tids), len(pairs), 2), dtype=np.int64)
    specials = np.tile(np.array([PAD, EOS], dtype=np.uint8), (len(tids), 1))
    tokens = np.concatenate([specials, colour_maps + np.uint8(FIRST_COLOUR)], axis=1)  # (puzzles, 12): old -> new
    # One row and column too many, so that the EOS of a grid at the edge is written where it is cut off.
    size = MAX_GRID_SIZE + 1
    canvas = np.zeros((2, len(tids), len(pairs), size, size), dtype=np.uint8)
    for tid in range(NUM_SYMMETRIES):
        puzzles = np.flatnonzero(tids == tid)
        for p, pair in enumerate(pairs):
            row, column = offsets[puzzles, p].T
            for side, grid in enumerate(pair):
                template = np.pad(dihedral_transform(grid, tid) + np.uint8(FIRST_COLOUR), (0, 1), constant_values=EOS)
                template[-1, -1] = PAD
                windows = sliding_window_view(canvas[side, :, p], template.shape, axis=(1, 2), writeable=True)
                windows[puzzles, row, column] = np.take(tokens[puzzles], template, axis=1)
    inputs, labels = canvas[..., :-1, :-1].reshape(2, -1, SEQ_LEN)
    return inputs, labels
