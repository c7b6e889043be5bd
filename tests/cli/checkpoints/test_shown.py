import argparse

import pytest

from trainkit.cli.checkpoints import arguments, shown


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_023_900, "999.9 KiB"),
        (1_024_000, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**62, "4096.0 PiB"),
    ],
)
def test_sizes(num_bytes, text):
    assert shown.size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-3, "0 s"), (59, "59 s"), (121, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_ages(seconds, text):
    assert shown.age(seconds) == text


def test_tables_are_as_wide_as_their_cells():
    assert list(shown.table(("A", "B"), [("long", "x"), ("", "y")])) == [
        "A     B",
        "long  x",
        "      y",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("2d", 172800)]
)
def test_durations(text, seconds):
    assert arguments.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "h", "1 h", "inf", "nan", "1h30m"])
def test_what_is_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected seconds, or 15m, 1h, 2d"):
        arguments.duration(text)
