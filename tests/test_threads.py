"""Thread settings: python -m pytest tests/test_threads.py"""

import os
import subprocess
import sys

import pytest

from tests.launch import ROOT
from training.threads import allowed_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, None),
    ],
)
def test_a_containers_quota(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert allowed_cores(tmp_path) == cores


THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize("script", ["pretrain", "evaluate", "solve"])
def test_scripts_choose_how_threads_wait_before_torch_loads(script):
    code = f"import sys\nclass Torch:\n    def find_spec(self, name, *_):\n        if name == 'torch':\n" \
        "            import os; print(os.environ.get('GOMP_SPINCOUNT')); os._exit(0)\n" \
        f"sys.meta_path.insert(0, Torch())\nimport {script}"  # fmt: skip
    for given, expected in (({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        environment = {key: value for key, value in os.environ.items() if key not in THREADS} | given
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == expected, done.stderr
