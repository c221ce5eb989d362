"""Makes a dataset of kind `grid` (puzzles/grid.py) out of pairs of one's own, whatever they come from.

`build_dataset` takes an iterator of examples for each source, so that whoever brings another source needs only that.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.format import BLANK_IDENTIFIER, SplitWriter, write_identifiers
from dataset.pair_table import CHUNK_CELLS, INPUT, MAX_SYMBOLS, OUTPUT, UNSAID, PairTable, labels_of
from dataset.pairs import SPLITS, Example
from dataset.puzzle_splits import hold_out, stands_in
from dataset.symbols_file import read_symbols
from errors import UserError, warn
from puzzles.cells import characters, split_symbols
from puzzles.draw import missing_glyphs
from puzzles.grid import Grid
from puzzles.kind import PAD, Transform, hash_rows
from puzzles.rule import RuleFailed, broken_rules

TRIES_PER_COPY = 5
MAX_CELLS = 1 << 14  # of a canvas, as many as solve.py reads
TRAIN, TEST, VAL = (SPLITS.index(split) for split in ("train", "test", "val"))
DROPPED = -2
_INTEGER = re.compile(r"-?[0-9]+")
_HOLE_NAMES = (" ", "_", "∅", "⌀")


@dataclass(frozen=True)
class Options:
    """What is made of the pairs; dataset/build_grid_dataset.py describes each."""

    test_fraction: float = 0.1
    val_fraction: float = 0.0
    num_aug: int = 0
    dihedral: bool = False
    permute: str | None = None
    ignore: str | None = None
    vocabulary: str | None = None
    hole: str | None = None
    words: bool = False
    canvas: tuple[int, int] | None = None
    symbols: Path | None = None
    valid: str | None = None
    identifiers: bool = False
    drop_leaked: bool = False
    subsample_size: int | None = None
    seed: int = 42


def build_dataset(sources: Sequence[tuple[Iterable[Example], str | None]], options: Options, folder: Path) -> list[str]:
    """Write a dataset from sources, each with the split of its examples if all are of one; -> what it holds, in lines.

    There is at least one. Raises `UserError` for what is wrong with an example or an option, and warns on stderr of
    what is doubtful.
    """
    table = PairTable()
    for examples, split in sources:
        table.add_all(tqdm(examples, desc="reading", unit=" pairs", unit_scale=True, delay=0.5, leave=False), split)
    kind = describe(table, options)
    facts = examine(table, kind, options)
    choosing, augmenting = (
        np.random.Generator(np.random.PCG64(seed)) for seed in np.random.SeedSequence(options.seed).spawn(2)
    )
    roles = assign(table, facts, options, choosing)
    return write(table, kind, roles, options, folder, augmenting)


# What the pairs are


def describe(table: PairTable, options: Options) -> Grid:
    """The kind of these puzzles: their symbols, the canvas, and how their outputs end."""
    found = sorted(table.codes, key=_symbol_order)
    symbols = found
    if options.vocabulary:
        separated = options.words or _are_words(found) or (table.all_numbers and len(options.vocabulary.split()) > 1)
        symbols = split_symbols(options.vocabulary, separated, set(found))
        _check_vocabulary(symbols, table, options.hole)
    words = _are_words(symbols)
    shapes, holes = table.grid_shapes(), table.holes()
    ends = bool((shapes[:, INPUT] != shapes[:, OUTPUT]).any())
    hole = options.hole
    if hole is None and holes.any():
        hole = next((name for name in _HOLE_NAMES[int(words) :] if name not in symbols), None)
        if hole is None:
            raise UserError(f"every sign for a hole is a symbol ({' '.join(_HOLE_NAMES)}); name one with --hole")
    reserved = 2 if ends else 1
    vocabulary = [*[""] * reserved, *symbols]
    if (holes == 2).any() or (ends and holes.any()):
        vocabulary.append(hole)
    fills, glyphs = _look(options.symbols, symbols)
    rows, columns = _canvas(shapes, options.canvas, table)
    if options.dihedral and rows != columns and (shapes[..., 0] == shapes[..., 1]).any():
        warn(
            f"the canvas of {rows}×{columns} is no square: grids are reflected and turned by 180°, but not by 90°; "
            f"--canvas {max(rows, columns)}x{max(rows, columns)} would allow it"
        )
    tokens = {symbol: token for token, symbol in enumerate(symbols, start=reserved)}
    permuted, ignored = (
        _tokens(option, text, words, tokens)
        for option, text in (("--permute", options.permute), ("--ignore", options.ignore))
    )
    _check_exchange(permuted, ignored, vocabulary)
    return Grid(
        rows=rows,
        columns=columns,
        vocabulary=tuple(vocabulary),
        fills=tuple("none" if ends and token == 1 else fills.get(name) for token, name in enumerate(vocabulary)),
        glyphs=tuple("" if name in ("", " ", hole) else glyphs.get(name, name) for name in vocabulary),
        ends=ends,
        hole=hole,
        words=words,
        numbers=table.all_numbers and all(map(_INTEGER.fullmatch, symbols)),
        dihedral=options.dihedral,
        permuted=permuted,
        ignored=ignored,
        rule=options.valid,
    )


def _symbol_order(symbol: str) -> tuple[bool, int, str]:
    is_number = _INTEGER.fullmatch(symbol) is not None
    return not is_number, int(symbol) if is_number else 0, symbol


def _are_words(symbols: list[str]) -> bool:
    return any(len(characters(symbol)) > 1 for symbol in symbols)


def _check_vocabulary(symbols: list[str], table: PairTable, hole: str | None) -> None:
    if hole in symbols:
        raise UserError(f"--vocabulary names {hole!r}, which --hole says is no cell; leave it out of one of them")
    if len(set(symbols)) < len(symbols) or len(symbols) > MAX_SYMBOLS:
        raise UserError(f"--vocabulary names a symbol twice, or more than {MAX_SYMBOLS}; name each once")
    for symbol, first in zip(table.codes, table.first_seen, strict=True):
        if symbol not in symbols:
            raise UserError(f"{table.place(first)}: {symbol!r} is not in --vocabulary; add it, or correct the pair")


def _tokens(option: str, text: str | None, words: bool, tokens: dict[str, int]) -> tuple[int, ...]:
    """The tokens of the symbols that an option names."""
    symbols = split_symbols(text or "", words, tokens)
    for symbol in symbols:
        if symbol not in tokens:
            known = " ".join(tokens)
            raise UserError(f"{option}: {symbol!r} is none of the symbols, which are {known:.200}")
    if len(set(symbols)) < len(symbols):
        raise UserError(f"{option} names a symbol twice; name each once")
    return tuple(sorted(tokens[symbol] for symbol in symbols))


def _check_exchange(permuted: tuple[int, ...], ignored: tuple[int, ...], vocabulary: list[str]) -> None:
    """In a copy, whether a cell counts must not change."""
    one, other = (next((t for t in permuted if (t in ignored) == which), None) for which in (True, False))
    if None not in (one, other):
        raise UserError(
            f"--permute exchanges {vocabulary[one]!r}, which --ignore says does not count, for {vocabulary[other]!r}, "
            f"which does; leave one of them out"
        )


def _look(file: Path | None, symbols: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    fills, glyphs = ({}, {}) if file is None else read_symbols(file, symbols)
    blank = missing_glyphs(glyphs.get(symbol, symbol) for symbol in symbols)
    if blank:
        warn(
            f"pictures have no letter for {' '.join(blank[:10])}; give each a glyph or a colour of its own (--symbols)"
        )
    return fills, glyphs


def _canvas(shapes: np.ndarray, wanted: tuple[int, int] | None, table: PairTable) -> tuple[int, int]:
    """Rows and columns of the smallest canvas for all grids, or those that are wanted."""
    least = shapes.max((0, 1))
    rows, columns = (int(side) for side in (least if wanted is None else wanted))
    if wanted is not None and (least > wanted).any():
        first = int((shapes > np.array(wanted)).any((1, 2)).argmax())
        raise UserError(
            f"{table.place(first)}: a grid of {shapes[first].max(0)[0]}×{shapes[first].max(0)[1]} does not fit "
            f"--canvas {rows}x{columns}; the grids need {least[0]}x{least[1]}"
        )
    if rows * columns > MAX_CELLS:
        first = int(np.abs(shapes - least).min(1).min(1).argmin())
        raise UserError(
            f"{table.place(first)}: the canvas would have {rows}×{columns} cells; {MAX_CELLS:,} is the most: make the "
            f"grids smaller, or split them"
        )
    return rows, columns


@dataclass
class Facts:
    """What of the pairs decides on splits: hashes, (examples,) each."""

    pairs: np.ndarray  # of input, label and id
    questions: np.ndarray  # of input and id
    families: np.ndarray  # equal for inputs that are copies of each other, and for all members of a group


def examine(table: PairTable, kind: Grid, options: Options) -> Facts:
    """Check every pair, and find which are the same."""
    count = len(table)
    pairs, questions, families = (np.zeros(count, np.uint64) for _ in range(3))
    bar = tqdm(total=count, desc="checking", unit=" pairs", unit_scale=True, delay=0.5, leave=False)
    with bar:
        for rows, inputs, outputs in table.chunks(kind, np.arange(count)):
            labels = labels_of(kind, outputs)
            uncounted = ~(labels != PAD).any(1)
            if uncounted.any():
                raise UserError(f"{table.place(rows[uncounted.argmax()])}: no cell of the output counts (--ignore)")
            if options.valid is not None:
                _check_rule(table, kind, rows, inputs, outputs)
            questions[rows], families[rows] = hash_rows(inputs), kind.keys(inputs)
            pairs[rows] = hash_rows(np.concatenate([inputs, labels], axis=1))
            bar.update(len(rows))
    if options.identifiers:  # the same grid under another id is another puzzle
        ids = np.array(table.id_of)
        blank = ids == table.ids.get(BLANK_IDENTIFIER, count)
        if blank.any():
            raise UserError(
                f"{table.place(int(blank.argmax()))}: the id is {BLANK_IDENTIFIER!r}, which stands for no puzzle; "
                f"rename it"
            )
        if (ids == UNSAID).any():
            raise UserError(
                f"{table.place(int((ids == UNSAID).argmax()))}: there is no id, by which --identifiers goes"
            )
        for hashes in (pairs, questions, families):
            hashes += ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return Facts(pairs, questions, _united(families, np.array(table.group_of)))


def _check_rule(table: PairTable, kind: Grid, rows: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> None:
    for row, question, answer in zip(rows, inputs, outputs, strict=True):
        try:
            broken = broken_rules(kind.rule, kind.rows_of(question), kind.rows_of(answer))
        except RuleFailed as failure:
            raise UserError(f"{table.place(row)}: {failure}; correct it") from failure
        if broken:
            raise UserError(f"{table.place(row)}: the output does not pass --valid {kind.rule}: {broken[0]:.200}")


def _united(keys: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Families as numbers from 0: those of equal keys, united where a group has members in several."""
    _, families = np.unique(keys, return_inverse=True)
    families = families.reshape(-1)
    if not (groups != UNSAID).any():
        return families
    parents = list(range(int(families.max()) + 1))

    def root(family: int) -> int:
        while parents[family] != family:
            parents[family] = family = parents[parents[family]]
        return family

    first: dict[int, int] = {}
    for family, group in zip(families.tolist(), groups.tolist(), strict=True):
        if group != UNSAID:
            parents[root(family)] = root(first.setdefault(group, family))
    return np.array([root(family) for family in range(len(parents))])[families]


# Splits


def assign(table: PairTable, facts: Facts, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The split of every example, as its index in SPLITS, or DROPPED."""
    roles = np.array(table.splits, np.int8)
    free = roles == UNSAID
    roles[free] = TRAIN
    if free.any() and not (roles == TEST).any() and options.test_fraction:
        roles[_some(facts, np.flatnonzero(free), options.test_fraction, rng)] = TEST
    _drop_repeated(table, facts, roles)
    if options.subsample_size is not None:
        chosen = np.flatnonzero(roles == TRAIN)
        if options.subsample_size > len(chosen):
            raise UserError(f"--subsample-size {options.subsample_size}: only {len(chosen)} train pairs are there")
        roles[chosen[rng.permutation(len(chosen))[options.subsample_size :]]] = DROPPED
    if options.val_fraction and not (roles == VAL).any():
        roles[_some(facts, np.flatnonzero(roles == TRAIN), options.val_fraction, rng)] = VAL
    _handle_leaks(facts, roles, options.drop_leaked)
    if not (roles == TRAIN).any():
        raise UserError(
            f"nothing is left to train on of {len(table)} pairs; lower --test-fraction and --val-fraction, give "
            f"another split, do without --drop-leaked, or add pairs (copies of a puzzle, and a group, are in one split)"
        )
    return roles


def _some(facts: Facts, examples: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """About this share of the examples, in whole families; none if there are none."""
    return examples[hold_out(facts.families[examples], share, rng)] if len(examples) else examples


def _drop_repeated(table: PairTable, facts: Facts, roles: np.ndarray) -> None:
    """Leave out pairs that are in their split already; warn of them, and of inputs with several outputs."""
    order = np.lexsort((np.arange(len(roles)), facts.pairs, roles))
    same = (np.diff(facts.pairs[order]) == 0) & (np.diff(roles[order]) == 0)
    again = order[1:][same]
    roles[again] = DROPPED
    if len(again):
        warn(f"{len(again)} pairs are in their split already (the first: {table.place(int(again.min()))}): left out")
    kept = np.flatnonzero(roles != DROPPED)
    order = kept[np.lexsort((facts.pairs[kept], facts.questions[kept]))]
    questions, pairs = facts.questions[order], facts.pairs[order]
    two = np.flatnonzero((questions[1:] == questions[:-1]) & (pairs[1:] != pairs[:-1]))
    if len(two):
        examples = sorted(int(order[i]) for i in (two[0], two[0] + 1))
        places = " and ".join(table.place(i) for i in examples)
        count = len(np.unique(questions[two]))
        warn(f"{count} inputs have several outputs, such as {places}: kept, but no model can give them all")


def _handle_leaks(facts: Facts, roles: np.ndarray, drop: bool) -> None:
    """Count the test and val pairs whose input is in train, or a copy, or a member of their group; drop on demand."""
    in_train = np.unique(facts.families[roles == TRAIN])
    leaked = np.zeros(len(roles), bool)
    for split in (TEST, VAL):
        members = np.flatnonzero(roles == split)
        found = members[stands_in(facts.families[members], in_train)]
        if len(found):
            remedy = "dropped from train" if drop else "trained on: scores will be too high; --drop-leaked drops them"
            warn(
                f"{len(found)} of the {len(members)} {SPLITS[split]} pairs are also in train (the same input, a copy, "
                f"or one of their group), and are {remedy}"
            )
            leaked |= np.isin(facts.families, facts.families[found])
    if drop:
        roles[leaked & (roles == TRAIN)] = DROPPED


# Writing


def write(
    table: PairTable, kind: Grid, roles: np.ndarray, options: Options, folder: Path, rng: np.random.Generator
) -> list[str]:
    """Write the splits, train with its copies; -> a line on the whole and one for each split."""
    names = list(table.ids) if options.identifiers else []
    write_identifiers(folder, names)
    identifiers = np.array(table.id_of, np.int32) + 1 if names else np.zeros(len(table), np.int32)
    untrained = np.setdiff1d(identifiers[roles >= 0], identifiers[roles == TRAIN])
    if len(untrained):
        warn(f"{len(untrained)} ids have no pair in train, such as {names[untrained[0] - 1]}: they stay untrained")
    if not (roles == TEST).any():
        stated = "every pair says that it is in another one"
        reason = "no pair says so, and --test-fraction is 0" if not options.test_fraction else stated
        warn(f"there is no test split: {reason}")
    symbols = kind.shown_symbols()
    lines = [f"canvas of {kind.rows}×{kind.columns}, {len(symbols)} symbols: {' '.join(symbols)}"]
    for split in (TRAIN, TEST, VAL):
        chosen = np.flatnonzero(roles == split)
        if len(chosen):
            writer = SplitWriter(folder, SPLITS[split], seq_len=kind.seq_len)
            augmenter = Augmenter(kind, options.num_aug if split == TRAIN else 0, rng)
            count = _write_split(table, kind, chosen, identifiers, writer, augmenter)
            metadata = writer.finish(vocab_size=kind.vocab_size, num_puzzle_identifiers=len(names) + 1, kind=kind)
            lines.append(f"{SPLITS[split]}: {count:,} examples in {metadata.total_groups:,} groups")
    return lines


def _write_split(
    table: PairTable,
    kind: Grid,
    chosen: np.ndarray,
    identifiers: np.ndarray,
    writer: SplitWriter,
    augmenter: "Augmenter",
) -> int:
    """Append the chosen examples, group by group; -> how many there are with all copies."""
    count = 0
    with tqdm(total=len(chosen), desc="writing", unit=" pairs", unit_scale=True, delay=0.5, leave=False) as bar:
        for batch, ends in _whole_groups(chosen, np.array(table.group_of), kind.seq_len * (1 + augmenter.num_aug)):
            copies = [augmenter(inputs, labels_of(kind, outputs)) for _, inputs, outputs in table.chunks(kind, batch)]
            inputs, labels, made = (np.concatenate(parts) for parts in zip(*copies, strict=True))
            writer.append(
                inputs,
                labels,
                puzzle_identifiers=np.repeat(identifiers[batch], made),
                puzzle_sizes=np.ones(len(inputs), np.int32),
                group_sizes=np.diff(np.cumsum(made)[ends - 1], prepend=0),
            )
            count += len(inputs)
            bar.update(len(batch))
    if augmenter.short:
        warn(f"{augmenter.short} pairs have fewer than {augmenter.num_aug} different copies: all that were found")
    return count


def _whole_groups(chosen: np.ndarray, groups: np.ndarray, cells: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield examples, the members of a group together and no group cut, and where the groups end among them.

    A group stands where its first member does. An example without a group is one; it takes so many `cells`.
    """
    own = groups[chosen].astype(np.int64)
    own[own == UNSAID] = -2 - np.flatnonzero(own == UNSAID)  # a number of its own
    _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
    rank = first[inverse.reshape(-1)]
    order = np.argsort(rank, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(rank[order])) + 1, len(order))
    most, start = max(1, CHUNK_CELLS // cells), 0
    while start < len(order):
        last = max(
            int(np.searchsorted(ends, start + most, side="right")), int(np.searchsorted(ends, start, "right")) + 1
        )
        inside = ends[np.searchsorted(ends, start, side="right") : last]
        yield chosen[order[start : inside[-1]]], inside - start
        start = int(inside[-1])


class Augmenter:
    """Makes the copies of pairs: each pair itself first, then up to `num_aug` others, no two alike."""

    def __init__(self, kind: Grid, num_aug: int, rng: np.random.Generator):
        self.kind, self.num_aug, self.short = kind, num_aug, 0
        self._draws = kind.draw_transforms(rng)

    def __call__(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, labels (n, cells) -> those of all copies, and how many each pair has (n,)."""
        if not self.num_aug:
            return inputs, labels, np.ones(len(inputs), np.int64)
        pairs = np.stack([inputs, labels], axis=1)  # (n, 2, cells)
        copies = [self._of_one(pair) for pair in pairs]
        found = np.concatenate(copies)
        return found[:, 0], found[:, 1], np.array([len(one) for one in copies])

    def _of_one(self, pair: np.ndarray) -> np.ndarray:
        """(2, cells) -> (copies, 2, cells)."""
        found = {pair.tobytes(): pair}
        for transform in self._transforms():
            copy = transform.apply(pair)
            found.setdefault(copy.tobytes(), copy)
            if len(found) > self.num_aug:
                break
        self.short += len(found) <= self.num_aug
        return np.stack(list(found.values()))

    def _transforms(self) -> Iterator[Transform]:
        """All symmetries where they are few, otherwise enough random ones."""
        if self.kind.num_symmetries > self.num_aug + 1:
            return islice(self._draws, TRIES_PER_COPY * self.num_aug)
        return self.kind.all_transforms()
