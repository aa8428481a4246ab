import pytest

from suite.progress import duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("0.5h", 1800)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert duration.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "1h30", "-1h", "1 h", "0s", "1e3s", "nan", "1h,30m", "h1"])
def test_what_is_no_time_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write it as 90s, 30m"):
        duration.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3540, "59 min"), (7500, "2 h 05 min")]
)
def test_a_time_is_written_for_people(seconds: float, text: str) -> None:
    assert duration.format_duration(seconds) == text
