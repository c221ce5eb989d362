"""What a run says while it goes: log lines on stdout, and progress bars, live on a terminal, rare in a log file."""

import logging
import sys

from tqdm import tqdm


def progress_bar(
    iterable=None, *, total: int, desc: str, unit: str, enabled: bool, leave: bool = True, initial: int = 0
) -> tqdm:
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        disable=not enabled,
        leave=leave,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        smoothing=0.05,
    )


def start_logging(is_main: bool) -> None:
    """Rank 0 tells; the others speak of errors only."""
    level = logging.INFO if is_main else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
