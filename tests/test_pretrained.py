"""The models in pretrained/: python -m pytest tests/test_pretrained.py"""

import json

import numpy as np
import pytest

import solve
from dataset.format import load_metadata
from evaluators.pretrained import pretrained_models
from puzzles.sudoku import Sudoku
from tests.launch import ROOT
from tests.runs import here
from training.checkpoints import read_safetensors

FOLDERS = sorted(path for path in (ROOT / "pretrained").iterdir() if path.is_dir())
PUZZLE = "4....5......7....1.72.6....2.....16.....4..8..5...7..99..1..2...41.9..3.5.3......"


def test_a_hard_sudoku_is_solved_without_naming_a_checkpoint():
    found = json.loads(here(solve.main, f"puzzle={PUZZLE}", "halt=q", "--json", "device=cpu"))
    assert found["valid"] and found["halts_at"] == len(found["steps"]) < 16
    tokens = [np.array([".123456789".index(c) + 1 for c in text], np.uint8) for text in (PUZZLE, found["answer"])]
    assert Sudoku(9, 9).valid(tokens[0], tokens[1])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_says_what_it_is(folder):
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors", "all_config.yaml", "dataset.json", "metrics.jsonl", "README.md",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6
    (model,) = (one for one in pretrained_models() if one.checkpoint.parent == folder)
    assert (model.kind.vocab_size, model.kind.seq_len) == (
        load_metadata(folder).vocab_size,
        load_metadata(folder).seq_len,
    )
    name, weights, _ = read_safetensors(model.checkpoint)
    assert name.startswith("step_") and weights
    assert any(
        "eval/exact_accuracy" in json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    )
    assert "python pretrain.py " in (folder / "README.md").read_text()
