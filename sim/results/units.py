"""Numbers as people read them: three significant digits and a unit; an en dash for what is undefined."""

from __future__ import annotations

UNDEFINED = "–"


def digits(value: float) -> str:
    """About three significant digits, thousands separated: 1,235 / 12.3 / 0.123 / 7."""
    if value == int(value):
        return f"{int(value):,}"
    size = abs(value)
    decimals = (
        0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3 if size >= 0.09995 else 4
    )
    if size < 0.01:
        return f"{value:.3g}"
    return f"{value:,.{decimals}f}"


def duration(seconds: float | None) -> str:
    """Seconds as µs, ms, s, min or h."""
    if seconds is None:
        return UNDEFINED
    if seconds == 0:
        return "0 s"
    for limit, scale, unit in (
        (0.9995e-3, 1e6, "µs"),
        (0.9995, 1e3, "ms"),
        (120, 1, "s"),
        (7200, 1 / 60, "min"),
    ):
        if seconds < limit:
            return f"{digits(seconds * scale)} {unit}"
    return f"{digits(seconds / 3600)} h"


def percent(ratio: float | None) -> str:
    """A ratio of 0..1 as a percentage; what is above nothing never reads 0."""
    if ratio is None:
        return UNDEFINED
    if 0 < ratio < 0.0005:
        return "< 0.1 %"
    return f"{100 * ratio:.{0 if ratio >= 0.0995 or ratio == 0 else 1}f} %"


def number(value: float | None, unit: str = "") -> str:
    """A count or rate, in thousands or millions when large."""
    if value is None:
        return UNDEFINED
    for limit, letter in ((999.5e9, "T"), (999.5e6, "G"), (999.5e3, "M")):
        if abs(value) >= limit:
            text = f"{digits(value / (limit / 999.5 * 1e3))} {letter}"
            break
    else:
        text = digits(value)
    return f"{text} {unit}".rstrip()


def size(num_bytes: float | None) -> str:
    """Bytes in decimal units, as bandwidths are stated."""
    if num_bytes is None:
        return UNDEFINED
    for scale, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= 0.9995 * scale:
            return f"{digits(num_bytes / scale)} {unit}"
    return f"{digits(num_bytes)} B"


def usd(value: float | None) -> str:
    """US dollars: cents when small."""
    if value is None:
        return UNDEFINED
    return f"${value:,.2f}" if abs(value) >= 0.095 or value == 0 else f"${value:.2g}"
