"""Texts: seeded, long enough, and on the real data disjoint from one another and from the seven tasks."""

import pytest


@pytest.mark.data
def test_texts_for_different_purposes_share_no_document_and_no_13_words(real, real_ngrams):
    for a in real:
        for b in real:
            if a[0] < b[0]:
                assert not set(real[a]) & set(real[b]), (a, b)
                assert not real_ngrams[a] & real_ngrams[b], (a, b)
