"""Tests of swm.reporting.card."""

from swm.reporting.formats.card import model_card


def test_model_card_says_what_was_merged(experiment):
    card = model_card(experiment.run("first"))
    assert "4 of 6 layers" in card
    assert "counted from 0): 1-3." in card
    assert "| boolq, % (acc, 40 documents) | – | 50.0 [44.1, 55.9] |" in card
    assert "python -m swm create study" in card
