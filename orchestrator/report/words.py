"""Numbers as people read them on a page."""

from __future__ import annotations

import time


def duration(seconds: float | None) -> str:
    """`0.4 s`, `45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`; "" if unknown."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def moment(unix_s: float) -> str:
    """A point in time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def hours(cpu: float, gpu: float) -> str:
    """Hours of CPU cores and GPUs: `12.5 GPU h, 50 CPU h`, in minutes or seconds where they are few."""
    parts = [_hours(gpu, "GPU")] if gpu else []
    return ", ".join([*parts, _hours(cpu, "CPU")])


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def figure(value: float) -> str:
    """A measured number in four digits."""
    return count(value) if abs(value) >= 10_000 else f"{value:.4g}"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * share:.{digits}f}%"


def millions(number: float) -> str:
    """A number of parameters."""
    return f"{number / 1e6:,.2f} M"


def size(num_bytes: float) -> str:
    """Bytes as kB, MB, GB, TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} bytes" if unit == "bytes" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def some(names: list[str] | tuple[str, ...], most: int = 4) -> str:
    """`a, b and c`, or `a, b, c and 12 more`."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _hours(value: float, what: str) -> str:
    if value >= 1 or value == 0:
        return f"{value:,.3g} {what} h" if value < 1000 else f"{value:,.0f} {what} h"
    if value >= 1 / 60:
        return f"{value * 60:.3g} {what} min"
    return f"{value * 3600:.2g} {what} s"
