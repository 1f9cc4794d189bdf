"""Numbers as a reader wants them."""

from __future__ import annotations

import math

MINUTES, HOURS = 600, 7200  # seconds from which on a duration reads in minutes, and in hours


def show(value: float, unit: str) -> str:
    """A number in its unit: `93.3%`, `1,500`, `1.2M`, `12.4 s`, `25 min`, `0.44` of the way (`relative`), else three
    digits (`0.012`, `72.6k`); `n/a` for NaN."""
    if not math.isfinite(value):
        return "n/a"
    if unit == "percent":
        return f"{100 * value:.1f}%"
    if unit == "seconds":
        size, word = _clock(value)
        return f"{value / size:,.0f} {word}" if value / size >= 100 else f"{value / size:.1f} {word}"
    if unit == "count":
        return _short(value, digits=3, full=1_000_000) if abs(value) >= 1_000_000 else f"{value:,.0f}"
    if unit == "relative":
        return f"{value:.2f}"
    return _short(value, digits=3, full=10_000)


def show_spread(std: float, unit: str, mean: float = 0.0) -> str:
    """`±` and a standard deviation in the unit of its `mean`, empty where there is none or nothing varies."""
    if not std > 0:
        return ""
    if unit == "percent":
        return f"±{100 * std:.1f}"
    if unit == "relative":
        return f"±{std:.2f}"
    if unit == "number":
        return f"±{_short(std, digits=2, full=1_000)}"
    if unit == "seconds":
        std /= _clock(mean)[0]
    elif abs(mean) >= 1_000_000:
        return f"±{_short(std, digits=2, full=1_000)}"
    return f"±{std:.2g}" if std < 10 else f"±{std:,.0f}"


def _clock(seconds: float) -> tuple[int, str]:
    """The unit in which a duration reads well, in seconds, and its sign."""
    if seconds >= HOURS:
        return 3600, "h"
    return (60, "min") if seconds >= MINUTES else (1, "s")


def _short(value: float, digits: int, full: float) -> str:
    """`digits` significant digits; larger numbers in full below `full`, in thousands or millions from there on."""
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= full:
        return f"{rounded / 1e6:,g}M" if abs(rounded) >= 1e6 else f"{rounded / 1e3:g}k"
    return f"{value:,.0f}" if abs(rounded) >= 10**digits else f"{rounded:g}"
