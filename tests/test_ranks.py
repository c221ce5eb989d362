"""A rank that fails: python -m pytest tests/test_ranks.py"""

import os
import time

import pytest

from tests.launch import run
from tests.runs import reference_overrides


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_job_with_its_own_traceback_last(tmp_path):
    start = time.monotonic()
    done = run("-m", "tests.test_ranks", *reference_overrides(tmp_path / "run"), ranks=2, check=False)
    assert time.monotonic() - start < 60  # starting up included; gloo alone would wait for 30 minutes
    assert done.returncode != 0
    report = done.stderr[done.stderr.rindex("Root Cause") :]
    assert "rank      : 1 " in report
    assert "RuntimeError: this rank is broken" in report
    assert "in breaking_step" in report


if __name__ == "__main__":  # pretrain.py, whose second rank breaks in the third step
    import pretrain

    train_step = pretrain.train_step

    def breaking_step(state, *args):
        if os.environ["RANK"] == "1" and state.step == 2:
            raise RuntimeError("this rank is broken")
        return train_step(state, *args)

    pretrain.train_step = breaking_step
    pretrain.main()
