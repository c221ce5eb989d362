"""How tests wait, and what a command says that never ends: python -m pytest tests/test_waiting.py"""

import pytest

from tests import warm
from tests.waiting import LONGEST_LOOK, Patience


def test_a_pause_of_the_machine_is_not_waiting(monkeypatch):
    now = 100.0
    monkeypatch.setattr("tests.waiting.time.monotonic", lambda: now)
    patience = Patience(10)
    for _ in range(9):
        now += 1
        assert not patience.over
    assert 1 < LONGEST_LOOK < 10
    now += 1
    assert patience.over
    patience = Patience(10)
    now += 5000
    assert not patience.over


def test_a_command_that_never_ends_says_where_it_is(tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text("import time\nprint('begun', flush=True)\ndef hang():\n    time.sleep(1000)\nhang()\n")
    with pytest.raises(AssertionError, match="not over after 3 s") as failure:
        warm.Started(script).communicate(timeout=3)
    assert "sleeping" in str(failure.value)
    assert "in hang" in str(failure.value)
    assert "begun" in str(failure.value)
