"""Numbers as texts for people."""


def number(value: float) -> str:
    """Write a number with three digits: 12,346, 3.14, -0.0004."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    """Write a share as percentage: 0.52 is "52 %"."""
    return f"{value:.0%}".replace("%", " %")


def count(value: float) -> str:
    """Write a count with its unit: 1.07 M, 42.1 k, 512."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Write seconds: 90 s, 12.5 min, 2.1 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def milliseconds(value: float) -> str:
    """Write milliseconds: 0.52 ms, 120 ms, 2.1 s."""
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def mebibytes(value: float) -> str:
    """Write mebibytes: 600 MiB, 1.5 GiB."""
    return f"{value:.0f} MiB" if value < 1024 else f"{value / 1024:.3g} GiB"


def plural(count: int, noun: str) -> str:
    """Write a number with its noun: 1 step, 2 steps."""
    return f"{count} {noun}{'s' * (count != 1)}"
