"""Whether torchrun, which started this process, is still there: it cannot end its ranks when it is killed itself.

Import this before anything slow, while the parent is still known to be torchrun.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LAUNCHER = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def is_gone() -> bool:
    """False for a process that torchrun did not start."""
    return _LAUNCHER is not None and os.getppid() != _LAUNCHER


@contextmanager
def watched() -> Iterator[None]:
    """Within the block, which may wait for other ranks or take hours, this process ends when torchrun is gone."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if is_gone():
                os._exit(143)  # the main thread waits in a library, where a signal does not reach it

    if _LAUNCHER is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
