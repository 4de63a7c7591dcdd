"""Borders of warnings and batches by pencil; kernels over several blocks against tests/reference."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from swm.errors import SettingsError, TextError
from swm.registry import METRICS
from swm.similarity.gram import centred
from swm.similarity.layers import block_influence, layer_similarity, measure_similarity
from swm.similarity.measure import Measure
from tests.conftest import tiny_model
from tests.reference import cka


def texts_of(texts, length, seed=3):
    return torch.randint(1, 300, (texts, length), generator=torch.Generator().manual_seed(seed))


def states_of(seed, samples=20, layers=3, width=5):
    shared = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(layers, samples, width, generator=torch.Generator().manual_seed(seed + 1))
    return shared + noise


@pytest.mark.parametrize(("texts", "warned"), [(287, True), (288, False)])
def test_biased_cka_warns_until_the_samples_are_nine_times_the_width(texts, warned):
    # Width 32: 32 / (32 + 288) is a tenth.
    warning = measure_similarity(tiny_model(layers=2), texts_of(texts, 1), "cka-biased").warning
    assert bool(warning) == warned
    if warned:
        assert warning == (
            "Even independent layers would have a biased CKA of 0.10: a block has 287 samples at hidden size 32; "
            "it needs 288. Use debiased CKA instead."
        )


@pytest.mark.parametrize(("metric", "texts", "warned"), [("cka", 27, True), ("cka", 29, False), ("cka-rbf", 27, True)])
def test_debiased_cka_warns_until_there_are_some_28_samples(metric, texts, warned):
    # 2^0.5 / 28.3 is a twentieth.
    warning = measure_similarity(tiny_model(layers=2), texts_of(texts, 1), metric).warning
    assert bool(warning) == warned
    if warned:
        expected = (
            r"27 samples are few: the CKA of independent layers would scatter by 0\.05 around 0\. "
            r"Use at least 2[89] samples\."
        )
        assert re.fullmatch(expected, warning)


def test_a_warning_never_asks_for_as_many_samples_as_there_are():
    warning = measure_similarity(tiny_model(layers=2), texts_of(28, 1), "cka").warning
    assert warning.startswith("28 samples are few")
    assert "Use at least 28 samples" not in warning


def test_noise_of_several_blocks_falls_with_the_root_of_their_number():
    # 1,024 tokens of four texts, 252 skipped: 16 samples, one block. 1 batch, as 64 samples are wanted in each.
    one = measure_similarity(tiny_model(layers=2), texts_of(4, 256), Measure("cka", skip_tokens=252)).warning
    assert one.startswith("16 samples are few: the CKA of independent layers would scatter by 0.09 around 0. ")


@pytest.mark.parametrize(
    ("texts", "length", "skip", "calls"),
    [
        (8, 128, 0, [(1, 2), (2, 2)]),  # 1,024 tokens, 512 at once
        (3, 512, 0, [(1, 3), (2, 3), (3, 3)]),
        (2, 512 * 2, 0, [(1, 2), (2, 2)]),  # a text is not cut
        (6, 16, 0, [(1, 1)]),
        (8, 128, 112, [(1, 2), (2, 2)]),  # 128 samples are left: 64 in each
        (8, 128, 113, [(1, 1)]),  # 120 are
    ],
)
def test_texts_are_run_512_tokens_at_once_and_each_batch_is_told(texts, length, skip, calls):
    seen = []
    model = tiny_model(layers=2, max_position_embeddings=2048)
    measure_similarity(model, texts_of(texts, length), Measure("cosine", skip_tokens=skip), lambda *n: seen.append(n))
    assert seen == calls


@pytest.mark.parametrize("metric", ["cka", "cka-biased", "cka-rbf"])
def test_products_of_two_blocks_are_those_of_their_gram_matrices(metric):
    # The Gaussian's width is that of the first block; a block counts by its samples.
    pair = METRICS[metric].products()
    sigma = None
    for block in (states_of(0), states_of(7, samples=31)):
        found, n = pair(block), block.shape[1]
        x = block.double().numpy()
        if metric == "cka-rbf":
            sigma = sigma or [0.5 * cka.median_distance(layer) for layer in x]
            grams = [cka.rbf_gram(layer, width) for layer, width in zip(x, sigma, strict=True)]
        else:
            grams = [layer @ layer.T for layer in x]
        if metric == "cka-biased":
            h = np.eye(n) - 1 / n
            expected = [[np.trace(k @ h @ m @ h) * n / (n - 1) ** 2 for m in grams] for k in grams]
        else:
            expected = [[n * cka.unbiased_hsic(k, m) for m in grams] for k in grams]
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_means_over_tokens_weigh_each_token_alike_however_the_batches_fall(metric):
    model, tokens = tiny_model(layers=3), texts_of(5, 256)  # 1,280 tokens: batches of two, two and one text
    whole = layer_similarity(model, tokens, metric)
    each = torch.stack([layer_similarity(model, text[None], metric) for text in tokens])
    torch.testing.assert_close(whole, each.mean(0), rtol=0, atol=1e-6)


def test_block_influence_of_several_batches_is_the_mean_of_the_texts_own():
    model, tokens = tiny_model(layers=3), texts_of(5, 256)
    each = torch.stack([block_influence(model, text[None]) for text in tokens])
    found = measure_similarity(model, tokens)
    assert found.tokens == 5 * 256
    for whole in (block_influence(model, tokens), found.block_influence):
        assert whole.dtype == torch.float64
        torch.testing.assert_close(whole, each.mean(0), rtol=0, atol=1e-6)


def test_centring_takes_row_and_column_means_away():
    gram = torch.tensor([[[4.0, 2.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    # Rows' means 3 and 1, of all 2: 4 - 3 - 3 + 2 is 0. For the second 1/2 each: 1 - 1 + 1/2.
    assert centred(gram).tolist() == [[[0, 0], [0, 0]], [[0.5, -0.5], [-0.5, 0.5]]]


def test_samples_that_cannot_be_compared_are_refused(model):
    with pytest.raises(TextError, match="CKA needs at least 2 tokens .got 1."):
        layer_similarity(model, torch.tensor([[5]]), "cka-biased")
    assert layer_similarity(model, torch.tensor([[5, 9]]), "cka-biased").shape == (4, 4)
    with pytest.raises(TextError, match="3 tokens are too few for CKA, which needs at least 4"):
        layer_similarity(model, torch.tensor([[5, 6, 7]]), "cka-rbf")
    assert layer_similarity(model, torch.tensor([[5, 6, 7, 8]])).shape == (4, 4)
    assert layer_similarity(model, torch.tensor([[5]]), "cosine").shape == (4, 4)


def test_all_tokens_but_one_can_be_skipped(model):
    tokens = texts_of(6, 8)
    found = measure_similarity(model, tokens, Measure("cosine", skip_tokens=7))
    assert found.tokens == 6
    with pytest.raises(SettingsError, match="--skip 8 leaves no tokens: the texts have 8"):
        measure_similarity(model, tokens, Measure("cosine", skip_tokens=8))


def test_means_of_texts_of_several_batches_are_compared_in_blocks_of_256_and_more():
    # 388 texts of 4 tokens are three batches: 130, 129 and 129. After two, 259 wait and 129 are left, at least half a
    # block: so the 259 are one. Of 380 texts 254 wait after two batches, which is no block, so all are one.
    sizes = []

    def spy():
        pair = METRICS["cka"].products()
        return lambda states: sizes.append(states.shape[1]) or pair(states)

    model = tiny_model(layers=2)
    for texts, expected in ((388, [259, 129]), (380, [380])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("swm.similarity.layers.METRICS", {"cka": replace(METRICS["cka"], products=spy)})
            measure_similarity(model, texts_of(texts, 4), Measure("cka", samples="texts"))
        assert sizes == expected
        sizes.clear()
