"""ARC augmentations and tokens: `pytest tests/test_arc.py`."""

import itertools

import numpy as np
import pytest

from errors import UserError
from evaluators.arc_voting import grid_of, original_grids
from puzzles.arc import (
    Arc,
    Augmentations,
    Pair,
    augmentation_name,
    crop_shapes,
    draw_augmentations,
    draw_offsets,
    encode,
    parse_augmentation,
)
from tests.arc_oracle import oracle_augment, oracle_encode, pairs_of, raw_tasks


@pytest.mark.parametrize("task", ["b15fca0b", "AboveBelow1", "my_task", "a_t1_2", "x_t9_0123456789", "y_t1_0000000000"])
def test_names_round_trip(task: str):
    colour_map = np.array([0, 6, 1, 4, 7, 3, 2, 9, 5, 8], dtype=np.uint8)
    assert augmentation_name(task, 2, colour_map) == f"{task}_t2_0614732958"
    name, tid, parsed = parse_augmentation(f"{task}_t2_0614732958")
    assert (name, tid, parsed.tolist()) == (task, 2, colour_map.tolist())
    name, tid, parsed = parse_augmentation(task)
    assert (name, tid, parsed.tolist()) == (task, 0, list(range(10)))
    assert augmentation_name(task, tid, parsed) == task


def test_augmentations_are_undone():
    grid, digits = np.random.default_rng(0).integers(0, 10, (5, 3)).astype(np.uint8), "0614732958"
    tokens = [oracle_encode(oracle_augment(grid.tolist(), tid, digits)) for tid in range(8)]
    augmentations = Augmentations(np.arange(8), np.tile(np.array(list(map(int, digits)), np.uint8), (8, 1)))
    for key in original_grids(np.array(tokens), augmentations):
        np.testing.assert_array_equal(grid_of(key), grid)


def test_names_of_other_builders():
    name, tid, parsed = parse_augmentation("cbebaa4b|||t1|||0647853219")
    assert (name, tid, parsed.tolist()) == ("cbebaa4b", 1, [0, 6, 4, 7, 8, 5, 3, 2, 1, 9])
    assert str(parse_augmentation("cbebaa4b_t1_0647853219")) == str((name, tid, parsed))
    for strange in ("a|||t1_0647853219", "a_t1|||0647853219", "a||t1||0647853219", "a|||t8|||0647853219"):
        assert parse_augmentation(strange)[0] == strange


def content(pairs: list[Pair], tid: int, digits: str) -> str:
    """A task's pairs after an augmentation, whatever their order."""
    return str(sorted([oracle_augment(grid.tolist(), tid, digits) for grid in pair] for pair in pairs))


def contents(pairs: list[Pair], drawn: Augmentations) -> list[str]:
    return [content(pairs, tid, "".join(map(str, colours))) for tid, colours in zip(*drawn, strict=True)]


def test_augmentations_are_distinct_and_nested():
    for name, task in raw_tasks().items():
        pairs = pairs_of(task)
        drawn = draw_augmentations(pairs, 60, np.random.default_rng(0))
        assert (drawn.tids[0], drawn.colour_maps[0].tolist()) == (0, list(range(10)))
        assert len(drawn.tids) == 61, name
        assert (drawn.colour_maps[:, 0] == 0).all()
        assert (np.sort(drawn.colour_maps, axis=1) == np.arange(10)).all()
        assert len(set(contents(pairs, drawn))) == 61, name
        fewer = draw_augmentations(pairs, 20, np.random.default_rng(0))
        np.testing.assert_array_equal(fewer.colour_maps, drawn.colour_maps[:21])
        np.testing.assert_array_equal(fewer.tids, drawn.tids[:21])


def test_augmentations_are_exhausted_where_the_task_has_few():
    square = np.array([[0, 3], [0, 0]], dtype=np.uint8)
    turned = np.rot90(square, 2)
    tasks = {
        "one colour, no symmetry": pairs_of(raw_tasks()["f25fbde4"]),
        "fully symmetric": [Pair(np.full((2, 2), 4, np.uint8), np.zeros((1, 1), np.uint8))],
        "a half turn swaps the pairs": [Pair(square, square), Pair(turned, turned)],
        "a half turn swaps no whole pairs": [Pair(square, turned), Pair(square, square)],
        "a half turn swaps inputs, not outputs": [Pair(square, turned & 0), Pair(turned, turned[:1] & 0)],
        "a half turn swaps the sides": [Pair(square, turned)],
        "only shapes differ": [Pair(np.zeros((1, 2), np.uint8), np.zeros((1, 1), np.uint8))],
        "only sides differ": [Pair(np.zeros((2, 2), np.uint8), square)],
    }
    sizes = {}
    for name, pairs in tasks.items():
        present = sorted({int(colour) for pair in pairs for grid in pair for colour in grid.ravel()} - {0})
        digits = ["".join(map(str, (0, *rest))) for rest in colour_orders(present)]
        every = {content(pairs, tid, d) for tid, d in itertools.product(range(8), digits)}
        drawn = contents(pairs, draw_augmentations(pairs, 400, np.random.default_rng(1)))
        assert len(drawn) == len(set(drawn)), name
        assert set(drawn) == every, name
        sizes[name] = len(drawn)
    assert sizes["fully symmetric"] == 9
    assert sizes["only shapes differ"] == 2
    assert sizes["a half turn swaps the sides"] == 4 * 9
    assert sizes["a half turn swaps inputs, not outputs"] == 8 * 9
    assert sizes["a half turn swaps the pairs"] == 2 * 9
    assert sizes["a half turn swaps no whole pairs"] == 4 * 9


def colour_orders(present: list[int]) -> list[tuple[int, ...]]:
    """Images of the colours 1–9 that differ on the colours `present`."""
    orders = []
    for images in itertools.permutations(range(1, 10), len(present)):
        rest = iter(sorted(set(range(1, 10)) - set(images)))
        given = dict(zip(present, images, strict=True))
        orders.append(tuple(given[colour] if colour in given else next(rest) for colour in range(1, 10)))
    return orders


def test_encode_equals_the_scalar_oracle():
    for task in raw_tasks().values():
        pairs = pairs_of(task)
        augmentations = draw_augmentations(pairs, 30, np.random.default_rng(2))
        offsets = draw_offsets(pairs, augmentations.tids, np.random.default_rng(3))
        for used in (None, offsets):
            inputs, labels = encode(pairs, augmentations, used)
            assert inputs.dtype == labels.dtype == np.uint8
            row = 0
            for puzzle, (tid, colours) in enumerate(zip(*augmentations, strict=True)):
                for p, pair in enumerate(pairs):
                    corner = (0, 0) if used is None else used[puzzle, p]
                    for array, grid in ((inputs, pair.input), (labels, pair.output)):
                        cells = oracle_augment(grid.tolist(), tid, "".join(map(str, colours)))
                        assert array[row].tolist() == oracle_encode(cells, *corner)
                    row += 1
            assert row == len(inputs) == len(labels)


def test_offsets_are_uniform_where_the_grids_fit():
    grids = [np.zeros(shape, np.uint8) for shape in ((10, 28), (4, 25), (30, 2), (1, 1))]
    pairs = [Pair(grids[0], grids[1]), Pair(grids[2], grids[3]), Pair(grids[3], grids[3])]
    tids = np.repeat([0, 6], 20_000)
    offsets = draw_offsets(pairs, tids, np.random.default_rng(4))
    assert (offsets == 0).all(axis=2).any(axis=1).all()  # in every puzzle one pair stays
    for half, transposed in ((offsets[:20_000], False), (offsets[20_000:], True)):
        for p, room in enumerate([(20, 2), (0, 28), (29, 29)]):
            for axis, most in enumerate(room[::-1] if transposed else room):
                counts = np.bincount(half[:, p, axis], minlength=most + 1)
                assert len(counts) == most + 1
                expected = 20_000 * (2 / 3 / (most + 1) + np.eye(1, most + 1).ravel() / 3)  # 1 in 3 stays
                assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max()), (p, axis, counts)


def test_crop_equals_a_search_of_all_rectangles():
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 12, (60, 30, 30))
    share = rng.choice([0.0, 0.001, 0.01, 0.1], (60, 1, 1))
    tokens[rng.random(tokens.shape) < share] = rng.choice([0, 1, 12, -100])
    tokens[0, 0, 0] = 1
    tokens[1, 3:], tokens[1, :, 5:] = 0, 1
    tokens[2] = np.array(oracle_encode([[7] * 30] * 30)).reshape(30, 30)
    tokens[3, 2, 1:] = tokens[3, 6] = tokens[3, :, 2] = 1  # 2 × 2 against 4 more rows of one column
    tokens[4, 1, 1:] = tokens[4, 2] = tokens[4, 0, 2:] = 0  # 1 × 2 against 2 × 1: as large, the fewer rows win
    for sequence, shape in zip(tokens, crop_shapes(tokens.reshape(60, 900)), strict=True):
        special = (sequence < 2) | (sequence > 11)
        free = [(r, c) for r in range(1, 31) for c in range(1, 31) if not special[:r, :c].any()]
        best = max(free, key=lambda size: (size[0] * size[1], -size[0]), default=(0, 0))
        assert tuple(shape) == best
    assert tuple(crop_shapes(tokens[4:5].reshape(1, 900))[0]) == (1, 2)


def test_what_counts_of_a_canvas():
    kind, grid = Arc(30, 30), [[1, 0, 9], [4, 4, 4]]
    tokens = np.array(oracle_encode(grid), np.uint8)
    tokens[899] = 7  # beyond the grid
    assert kind.extent(tokens) == (2, 3)
    assert kind.plain(tokens) == kind.colours(tokens).tolist() == grid
    expected = np.zeros((30, 30), int)
    expected[:2, :3] = np.array(grid) + 2
    np.testing.assert_array_equal(kind.visible(tokens), expected.ravel())
    nothing = np.zeros(900, np.uint8)
    assert (kind.extent(nothing), kind.plain(nothing)) == ((0, 0), [])
    assert kind.valid(tokens, np.stack([tokens, nothing])).tolist() == [True, False]
    assert (kind.violations(tokens, tokens), kind.violations(tokens, nothing)) == ([], ["there is no grid"])
    with pytest.raises(UserError, match="already holds its copies"):
        kind.symmetries(8, seed=0)
    with pytest.raises(UserError, match="build them with dataset"):
        kind.encode(tokens[None], tokens[None])
