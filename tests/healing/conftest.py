"""Fixtures that several test files of healing use."""

import pytest

from swm.texts.example import Example
from tests.conftest import WORDS


@pytest.fixture
def examples():
    words = WORDS.split()
    return [Example(" ".join(words[i : i + 5]), " " + " ".join(words[i + 5 : i + 12])) for i in range(30)]
