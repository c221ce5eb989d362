"""Stopping in good order: on SIGTERM, SIGUSR1, or when `max_minutes` are over."""

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Why the run should stop after the step at hand, if it should; a signal sets it, the clock is read when asked."""

    def __init__(self, max_minutes: float | None):
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._max_minutes = max_minutes
        self._signal: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def done(self) -> None:
        """From here on the run ends anyway: a second signal must not turn that into a failure."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def reason(self) -> str | None:
        if self._signal:
            return self._signal
        if self._deadline is not None and time.monotonic() > self._deadline:
            return f"max_minutes={self._max_minutes:g}"
        return None


class Stopped(Exception):
    """Raised at a point where the state has been saved, to leave the loops."""
