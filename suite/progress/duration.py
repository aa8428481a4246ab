"""Times as people read and write them."""

import re

# Ten years.
LONGEST = 10 * 365 * 86400


def format_duration(seconds: float) -> str:
    """A time such as `40 s`, `12 min` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def parse_duration(text: str) -> float:
    """The seconds of a time such as `90s`, `30m`, `1h30m` or `2d`.

    Raises:
        ValueError: it is none, or nothing.
    """
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < LONGEST:
        raise ValueError(f"{text!r} is not a time; write it as 90s, 30m, 1h30m or 2d")
    return seconds
