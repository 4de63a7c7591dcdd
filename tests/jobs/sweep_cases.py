"""What several tests of jobs start from."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def quiet(done, total, text):
    pass
