"""CKA against the published reference values and second formulas; never against itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from swm.errors import ModelError, SettingsError, TextError
from swm.models.decoder import find_decoder
from swm.models.layer_outputs import layer_outputs
from swm.registry import METRICS
from swm.similarity.gram import u_centred
from swm.similarity.layers import (
    BATCH_TOKENS,
    layer_similarity,
    measure_similarity,
    normalised,
)
from swm.similarity.measure import Measure
from tests.conftest import tiny_model


def notebook_data():
    """The data of Kornblith's notebook: seed 1337, 100 x 10 standard normal and 100 x 15 made from it and noise."""
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    return torch.tensor(x), torch.tensor(y)


def of_pair(x, y, metric):
    states = torch.stack([x, y])
    return float(normalised(METRICS[metric].products()(states), len(x) if METRICS[metric].mean else None)[0, 1])


@pytest.mark.parametrize(("metric", "value"), [("cka-biased", 0.55761), ("cka", 0.51346)])
def test_reference_values(metric, value):
    x, y = notebook_data()
    assert of_pair(x, y, metric) == pytest.approx(value, abs=2e-5)


def test_gaussian_kernel_by_the_three_terms_of_song():
    # The notebook's own value, 0.65483, is biased and has the distance of each sample to itself in its median.
    grams = []
    for x in notebook_data():
        squared = torch.cdist(x, x) ** 2
        different = squared[~torch.eye(len(x), dtype=torch.bool)].sqrt()
        grams.append(torch.exp(-squared / (2 * (0.5 * different.quantile(0.5)) ** 2)))
    k, m = grams
    expected = hsic_by_song(k, m) / (hsic_by_song(k, k) * hsic_by_song(m, m)).sqrt()
    assert of_pair(*notebook_data(), "cka-rbf") == pytest.approx(float(expected), abs=1e-4)


def hsic_by_song(k, m):
    """The unbiased estimator as Song et al. write it: three terms over Gram matrices without diagonal."""
    k, m = k - torch.diag(torch.diag(k)), m - torch.diag(torch.diag(m))
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    three = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ m) + three - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def test_debiased_cka_equals_the_three_terms_of_song():
    x, y = (torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    y = y + x
    k, m = x @ x.T, y @ y.T
    expected = hsic_by_song(k, m) / (hsic_by_song(k, k) * hsic_by_song(m, m)).sqrt()
    assert of_pair(x, y, "cka") == pytest.approx(float(expected), abs=1e-5)


def test_gaussian_cka_equals_the_three_terms_with_half_the_median_distance():
    grams, states = [], []
    for seed in (0, 1):
        x = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        x = x if not states else x + states[0]
        distance = torch.cdist(x, x)
        sigma = 0.5 * distance[torch.triu(torch.ones(24, 24, dtype=torch.bool), 1)].quantile(0.5)
        grams.append(torch.exp(-(distance**2) / (2 * sigma**2)))
        states.append(x)
    k, m = grams
    expected = hsic_by_song(k, m) / (hsic_by_song(k, k) * hsic_by_song(m, m)).sqrt()
    assert of_pair(*states, "cka-rbf") == pytest.approx(float(expected), abs=1e-4)


def test_independent_data_with_few_samples_is_near_zero_when_debiased_and_near_one_when_not():
    x, y = (torch.randn(16, 4096, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert abs(of_pair(x, y, "cka")) < 0.3
    assert of_pair(x, y, "cka-biased") > 0.99


def test_cka_ignores_shift_rotation_and_scale():
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert of_pair(x, 3 * (x @ rotation) + 5, "cka") == pytest.approx(1, abs=1e-5)


def test_u_centred_matrix_has_rows_that_sum_to_zero_and_no_diagonal():
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = u_centred((x @ x.T)[None])[0]
    assert gram.diagonal().eq(0).all()
    assert gram.sum(0).abs().max() < 1e-12


def states_by_loop(model, tokens):
    with torch.inference_mode():
        hidden = model.model.embed_tokens(tokens)
        outputs = layer_outputs(model, tokens)[1]
    return [hidden.flatten(0, 1), *(output.flatten(0, 1) for output in outputs)]


def test_cosine_angular_block_influence_and_norm_by_plain_loops(model, tokens):
    states = states_by_loop(model, tokens)
    cosine = torch.nn.functional.cosine_similarity
    a, b = states[1], states[3]
    assert float(layer_similarity(model, tokens, "cosine")[0, 2]) == pytest.approx(float(cosine(a, b).mean()), abs=1e-5)
    angular = 1 - torch.rad2deg(cosine(a, b).acos()).mean() / 180
    assert float(layer_similarity(model, tokens, "angular")[0, 2]) == pytest.approx(float(angular), abs=1e-5)
    found = measure_similarity(model, tokens)
    for layer in range(4):
        influence = 1 - cosine(states[layer], states[layer + 1]).mean()
        assert float(found.block_influence[layer]) == pytest.approx(float(influence), abs=1e-5)
        length = (states[layer + 1] ** 2).sum(-1).sqrt().mean()
        assert float(found.norm[layer]) == pytest.approx(float(length), rel=1e-5)
        lengths = sorted(float(state @ state) ** 0.5 for state in states[layer + 1])
        assert float(found.norm_max[layer]) == pytest.approx(lengths[-1], rel=1e-5)
        assert float(found.norm_median[layer]) == pytest.approx(lengths[(len(lengths) - 1) // 2], rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_matrix_is_symmetric_with_ones_on_the_diagonal(model, tokens, metric):
    matrix = layer_similarity(model, tokens, metric)
    assert matrix.shape == (4, 4)
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().eq(1).all()
    assert (matrix <= 1 + 1e-9).all()


def test_batches_add_the_three_hsic_sums_and_divide_once():
    model = tiny_model(layers=3)
    tokens = torch.randint(0, 300, (8, BATCH_TOKENS // 4), generator=torch.Generator().manual_seed(2))
    first, second = (layer_outputs(model, part)[1].flatten(1, 2).double() for part in tokens.split(4))
    sums = torch.zeros(3, 3, dtype=torch.float64)
    for states in (first, second):
        grams = [x @ x.T for x in states]
        sums += torch.stack([torch.stack([hsic_by_song(k, m) for m in grams]) for k in grams])
    expected = sums / (sums.diagonal()[:, None] * sums.diagonal()[None]).sqrt()
    torch.testing.assert_close(layer_similarity(model, tokens), expected, rtol=0, atol=2e-5)


def test_a_long_text_is_measured_in_blocks_of_bounded_size():
    model = tiny_model(layers=2, max_position_embeddings=4096)
    tokens = torch.randint(0, 300, (1, 4 * BATCH_TOKENS), generator=torch.Generator().manual_seed(2))
    sizes = []

    def spy():
        pair = METRICS["cka"].products()
        return lambda states: sizes.append(states.shape[1]) or pair(states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swm.similarity.layers.METRICS", {"cka": replace(METRICS["cka"], products=spy)})
        measure_similarity(model, tokens)
    assert sizes == [BATCH_TOKENS] * 4


def song_cka(k, m):
    return float(hsic_by_song(k, m) / (hsic_by_song(k, k) * hsic_by_song(m, m)).sqrt())


def test_update_is_output_minus_input_and_first_tokens_can_be_left_out(model, tokens):
    with torch.inference_mode():
        entry, outputs = layer_outputs(model, tokens)
    states = torch.cat([entry[None], outputs])[:, :, 4:]
    grams = [x @ x.T for x in (states[1:] - states[:-1]).flatten(1, 2).double()]
    found = measure_similarity(model, tokens, Measure("cka", "update", skip_tokens=4))
    assert float(found.matrix[0, 2]) == pytest.approx(song_cka(grams[0], grams[2]), abs=1e-4)
    assert found.tokens == 3 * 12
    length = (states[2] ** 2).sum(-1).sqrt().mean()
    assert float(found.norm[1]) == pytest.approx(float(length), rel=1e-5)


def test_texts_as_samples_are_the_means_of_their_tokens(model):
    tokens = torch.randint(0, 300, (12, 64), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        means = layer_outputs(model, tokens)[1].mean(2).double()
    found = measure_similarity(model, tokens, Measure("cka", samples="texts"))
    expected = song_cka(means[0] @ means[0].T, means[3] @ means[3].T)
    assert float(found.matrix[0, 3]) == pytest.approx(expected, abs=1e-4)
    assert "12 samples are few" in found.warning


def test_warnings_say_how_many_samples_would_do(model, tokens):
    # Width 32, 48 tokens: 32 / (32 + 48); a bias of 0.1 needs 9 * 32.
    assert "a biased CKA of 0.40:" in measure_similarity(model, tokens, "cka-biased").warning
    assert "it needs 288" in measure_similarity(model, tokens, "cka-biased").warning
    assert measure_similarity(model, tokens, "cka").warning == ""
    assert measure_similarity(model, tokens, "cosine").warning == ""


def test_noise_of_independent_layers_is_as_large_as_the_warning_says():
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(12, 256, generator=generator) for _ in range(2)] for _ in range(400)]
    found = torch.tensor([of_pair(x, y, "cka") for x, y in pairs])
    assert float(found.std()) == pytest.approx(2**0.5 / 12, rel=0.2)


def test_name_of_a_measure_says_what_differs_from_the_default():
    assert Measure().name == "cka"
    assert Measure("cosine", "update", "texts", 4, "task:boolq").name == "cosine_update_by-text_skip4_task-boolq"


@pytest.mark.parametrize("change", [{"part": "x"}, {"samples": "x"}, {"skip_tokens": -1}, {"metric": "x"}])
def test_measures_that_cannot_be_are_refused(change):
    with pytest.raises(SettingsError):
        Measure(**change)


def test_skipping_every_token_is_refused(model, tokens):
    with pytest.raises(SettingsError, match="leaves no tokens: the texts have 16"):
        measure_similarity(model, tokens, Measure(skip_tokens=16))


def test_a_layer_with_equal_output_for_every_token_is_refused(model):
    same = torch.full((2, 16), 7)
    for layer in find_decoder(model).layers:
        layer.self_attn.o_proj.weight.data.zero_()
    with pytest.raises(ModelError, match="Layer 0 gives the same output for every token"):
        layer_similarity(model, same)


def test_too_few_tokens_are_refused(model):
    with pytest.raises(TextError, match="3 tokens are too few"):
        layer_similarity(model, torch.tensor([[1, 2, 3]]))


def test_unknown_metric_is_refused(model, tokens):
    with pytest.raises(SettingsError, match="Unknown similarity metric 'cca'"):
        layer_similarity(model, tokens, "cca")
