"""Why a run ends before its epochs are used up: a signal or the clock stops it, to go on later; a rule ends it early.

What happens on SIGTERM: `StopRequest` notes it. After the step (with several ranks, after a few steps), or after a
batch of an evaluation, all ranks ask together and raise `Stopped`; `pretrain.train` catches that, saves the state and
ends.
"""

import signal
import time
from types import FrameType

from training import launcher
from training.config import EarlyStop
from training.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # SIGHUP: the terminal, or the connection to it, is gone
WINDOW = 100  # steps; in a single one only a few sequences halt
VOTE_EVERY = 10  # steps in which several ranks ask each other whether to stop, however rarely they look at metrics


class Stopped(Exception):
    """Raised to leave the loops when the run is to stop; whoever catches it saves the state."""


class StopRequest:
    """Whether and why the run should stop after the current step: a signal that was noted, or the clock."""

    def __init__(self, max_minutes: float | None, ranks: Ranks):
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._max_minutes, self._ranks = max_minutes, ranks
        self._next_step = 0.0  # seconds that it will take: a step is never left half done
        self._signal: str | None = None
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which nohup means to last
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def done(self) -> None:
        """Ignore signals from here on: the run is ending anyway, and a second one must not turn that into a failure."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def reason(self) -> str | None:
        """This rank's reason to stop, or None."""
        if self._signal:
            return self._signal
        seconds_left, clock = self.limit
        if seconds_left is not None and seconds_left < self._next_step:
            return clock
        if launcher.is_gone():  # nobody would see what the rank writes, or end it
            return "torchrun is gone"
        return None

    @property
    def limit(self) -> tuple[float | None, str]:
        """Seconds that the clock leaves, None for no end, and what sets it."""
        if self._deadline is None:
            return None, "max_minutes"
        return self._deadline - time.monotonic(), f"max_minutes={self._max_minutes:g}"

    def note_step(self, seconds: float) -> None:
        """Note how long the last step took: the next is not begun if less time is left. 0: what follows is short."""
        self._next_step = seconds

    def asked(self) -> bool:
        """Whether any rank has a reason to stop. All of them must call it together."""
        return self._ranks.any(self.reason is not None)[0]

    def asked_after(self, step: int) -> bool:
        """The same between two looks at the metrics: after every step, or every tenth with several ranks."""
        return (self._ranks.world_size == 1 or step % VOTE_EVERY == 0) and self.asked()

    def check(self) -> None:
        """Raise `Stopped` on all ranks if any has a reason. All of them must call it together."""
        if self.asked():
            raise self.stopped()

    def stopped(self) -> Stopped:
        return Stopped(self.reason or "a signal to another rank")


class EarlyStopping:
    """The rules of `early_stop`, and what they look at.

    `patience=N`: N evaluations in a row brought no better `eval/exact_accuracy`. `train_exact_accuracy=X`: of the
    sequences that halted in the last `WINDOW` steps, a share of at least X was right. The original advises this for
    Sudoku-Extreme, where the model later over-fits and becomes unstable.

    A resumed run checks the rules again, so that a rule may be changed or lifted.
    """

    def __init__(self, rules: EarlyStop, ranks: Ranks):
        self._rules, self._ranks = rules, ranks
        self.ended_pass = False  # early, by a rule: the pass goes on if the rule is lifted
        self._since_best = 0  # evaluations since the best; on rank 0 only
        self._recent: list[list[float]] = []  # (halted, right) sequences of each of the last steps; likewise
        self._held: list[list[float]] = []  # the same of the steps after these, which count when the next one comes
        self.holding = False  # set when the run is stopped between two looks

    def note_step(self, count: float, exact: float) -> None:
        """Record a step in which `count` sequences halted, `exact` of them right."""
        if self.holding:  # an uninterrupted run would not know of it at its next look, and must decide the same
            self._held.append([count, exact])
            return
        self.count_held()
        self._recent.append([count, exact])
        del self._recent[:-WINDOW]

    def count_held(self) -> None:
        self._recent += self._held
        self._held = []
        del self._recent[:-WINDOW]

    def note_evaluation(self, improved: bool) -> None:
        self._since_best = 0 if improved else self._since_best + 1

    def reason(self) -> str | None:
        """Which rule holds, on rank 0; None on other ranks, which do not know."""
        if not self._ranks.is_main:
            return None
        if self._rules.patience is not None and self._since_best >= self._rules.patience:
            return f"no better eval/exact_accuracy in {self._since_best} evaluations"
        if self._rules.train_exact_accuracy is not None and len(self._recent) == WINDOW:
            count, exact = map(sum, zip(*self._recent, strict=True))
            if count and exact / count >= self._rules.train_exact_accuracy:
                return f"{exact / count:.1%} of the training sequences of the last {WINDOW} steps were exactly right"
        return None

    def holds(self) -> bool:
        """Whether a rule holds; the same on all ranks, which must call it together."""
        (holds,) = self._ranks.any(self.reason() is not None)
        return holds

    def progress(self) -> dict:
        """Plain values for a saved state."""
        return {
            "ended_early": self.ended_pass,
            "since_best": self._since_best,
            "recent": self._recent,
            "held": self._held,
        }

    def load_progress(self, saved: dict) -> None:
        # Earlier versions did not save all of them.
        self.ended_pass = saved.get("ended_early", False)
        self._since_best, self._recent = saved.get("since_best", 0), saved.get("recent", [])
        self._held = saved.get("held", [])
