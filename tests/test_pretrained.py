"""The model in pretrained/ solves a hard Sudoku: python -m pytest tests/test_pretrained.py"""

import json

import numpy as np

import solve
from puzzles.sudoku import Sudoku
from tests.launch import ROOT
from tests.runs import here

CHECKPOINT = ROOT / "pretrained/sudoku-9x9-trm-mlp/step_11718_ema"
PUZZLE = "4....5......7....1.72.6....2.....16.....4..8..5...7..99..1..2...41.9..3.5.3......"


def test_it_solves_a_hard_sudoku_and_halts():
    found = json.loads(
        here(solve.main, f"checkpoint={CHECKPOINT}", f"puzzle={PUZZLE}", "halt=q", "--json", "device=cpu")
    )
    assert found["valid"] and found["halts_at"] == len(found["steps"]) < 16
    tokens = [np.array([".123456789".index(c) + 1 for c in text], np.uint8) for text in (PUZZLE, found["answer"])]
    assert Sudoku(9, 9).valid(tokens[0], tokens[1])


def test_it_is_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in CHECKPOINT.parent.iterdir()) < 15e6
