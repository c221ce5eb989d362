"""benchmarks/gpu.sh at toy size on the CPU: python -m pytest tests/test_gpu_script.py"""

import gzip
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.launch import ROOT
from training.config import load_config

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
TABLES = (
    "data reference trace graph resume attention compile nccl loader mixing step-sudoku step-sudoku-loader "
    "step-trm profile-toy evaluate train curve score-max score-q"
)


def gpu_sh(tmp_path: Path, *parts: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *parts],
        cwd=ROOT,
        env=os.environ | {"TOY": "1", "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "DISABLE_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )


@pytest.mark.apart
def test_gpu_script_runs_from_end_to_end(tmp_path):
    done = gpu_sh(tmp_path)
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tables = {path.stem: path.read_text() for path in out.glob("*.md")}
    without = {"mixing"} if find_spec("triton") is None else set()
    assert set(tables) == set(TABLES.split()) - without
    for name in ("trace", "graph", "resume", "attention", "compile", "nccl", "loader", "step-sudoku", "profile-toy"):
        assert tables[name].count("\n| ") >= 3 or name == "resume", name
    assert "equal to the byte" in tables["resume"] and " passed" in tables["reference"]
    assert "the same in 10 of 10 steps" in tables["graph"]
    with_loader = json.loads((out / "step-sudoku-loader.json").read_text())
    assert with_loader["machine"]["command"].startswith("python -m benchmarks.step")
    assert ["real loader" in row["what"] for row in with_loader["results"]] == [True]
    assert json.loads(gzip.decompress((out / "profile-toy-8.json.gz").read_bytes()))["traceEvents"]
    check_training(out, done.stdout, tables["curve"])


def check_training(out: Path, printed: str, curve: str) -> None:
    """The second command went on with the run of the first."""
    lines = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/lm_loss" in line] == list(range(1, 65))
    assert "stopped (" in printed and "resuming" in printed and "finished: " in printed
    assert load_config(out / "run/all_config.yaml").epochs == 8
    assert (out / "run/step_64").exists() and "64" in curve


def test_gpu_script_refuses_an_unknown_part(tmp_path):
    done = gpu_sh(tmp_path, "nvcc")
    assert done.returncode == 2
    assert "no part 'nvcc'; choose among: data reference trace" in done.stderr


def test_gpu_script_is_clean():
    tool = SHELLCHECK if SHELLCHECK.exists() else "shellcheck"
    done = subprocess.run([tool, "benchmarks/gpu.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
