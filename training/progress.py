"""Progress bars: live on a terminal, a line now and then in a log file."""

import sys

from tqdm import tqdm


def progress_bar(iterable=None, *, total: int, desc: str, unit: str, enabled: bool, leave: bool = True) -> tqdm:
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        disable=not enabled,
        leave=leave,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        smoothing=0.05,
    )
