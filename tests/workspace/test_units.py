"""Bytes and seconds as people read them, by pencil."""

import pytest

from swm.workspace.units import duration, duration_range, gib


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MiB"), (2**20, "1 MiB"), (2**30 - 1, "1,024 MiB"), (2**30, "1.0 GiB"), (1.55 * 2**40, "1,587.2 GiB")],
)
def test_bytes(size, text):
    assert gib(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (48 * 3600, "2.0 days"),
    ],
)
def test_seconds(seconds, text):
    assert duration(seconds) == text


def test_bytes_are_written_as_people_read_them():
    assert [gib(size) for size in (3 * 2**20, 2**30, 1536 * 2**30)] == ["3 MiB", "1.0 GiB", "1,536.0 GiB"]


def test_durations_are_written_as_people_say_them():
    assert [duration(s) for s in (5, 75, 3725, 3 * 86400)] == ["5 s", "1 min 15 s", "1 h 02 min", "3.0 days"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((0.2, 0.4), "1 s"),
        ((4, 8), "4 to 8 s"),
        ((50, 99), "50 to 99 s"),
        ((50, 101), "1 to 2 min"),
        ((240, 480), "4 to 8 min"),
        ((3000, 6000), "0.8 to 1.7 h"),
        ((8 * 3600, 16 * 3600), "8 to 16 h"),
        ((48 * 3600, 96 * 3600), "2.0 to 4.0 days"),
    ],
)
def test_ranges_are_in_one_unit(seconds, text):
    assert duration_range(*seconds) == text
