"""Numbers as people read them. Nothing here loads PyTorch."""

from datetime import datetime, timedelta


def moment(seconds: float) -> str:
    """The time of day in so many seconds; the date where it is another day."""
    now = datetime.now()
    try:
        then = now + timedelta(seconds=seconds)
    except OverflowError:
        return "the year 10,000"
    if then.date() == now.date():
        return f"{then:%H:%M:%S}" if seconds < 600 else f"{then:%H:%M}"
    return f"{then:%Y-%m-%d %H:%M}" if seconds < 90 * 86400 else f"{then:%Y-%m-%d}"


def duration(seconds: float) -> str:
    """In the unit that reads best, with two digits or more."""
    if seconds < 1:
        return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if (count := seconds / length) < 99.5:
            return f"{count:.{0 if count >= 9.95 else 1}f} {unit}"
    hours = f"{seconds / 3600:,.0f} h"
    return hours if seconds < 365 * 86400 else f"{hours} ({seconds / 31_557_600:,.1f} years)"


def operations(count: float) -> str:
    """Floating-point operations with three digits and a prefix of thousands."""
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if count < 999.5 or prefix == "Z":
            return f"{count:.3g} {prefix}FLOP"
        count /= 1000
    raise AssertionError


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
