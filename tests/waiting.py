"""Waiting in tests, by a clock that stands still while the machine does.

A virtual machine can be paused for minutes; on its return the clock has jumped, and whatever was waited for is "late".
"""

import time
from collections.abc import Callable

LONGEST_LOOK = 2.0  # seconds between two looks at the clock that count: what is more, the machine did not run


class Patience:
    """Seconds to wait, of those in which this process ran; look often."""

    def __init__(self, seconds: float):
        self._left = seconds
        self._seen = time.monotonic()

    @property
    def over(self) -> bool:
        now = time.monotonic()
        self._left -= min(now - self._seen, LONGEST_LOOK)
        self._seen = now
        return self._left <= 0


def wait_for(
    condition: Callable[[], object], what: str | Callable[[], str], seconds: float = 120, pause: float = 0.01
) -> None:
    """Until `condition()` holds; `what` says in a failure what did not come."""
    patience = Patience(seconds)
    while not condition():
        assert not patience.over, f"waited {seconds} s in vain: {what() if callable(what) else what}"
        time.sleep(pause)
