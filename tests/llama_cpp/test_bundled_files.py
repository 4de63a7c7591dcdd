"""The bundled model merged, fitted and healed, as files that llama.cpp runs."""

import math

import pytest
import torch
from gguf import GGUFReader

from swm.models.load import load_model
from swm.models.locate import bundled_file
from swm.plan import MergePlan, Window
from swm.reporting.export import export_run
from swm.settings import ExperimentSettings, preset_settings
from swm.stages.create import create_experiment
from swm.stages.loading import calibration_of
from swm.stages.merge import merge_run
from swm.stages.recover import recover_run
from tests.llama_cpp.conftest import HARD

PLANS = {
    "dropped": MergePlan(30, (Window(12, 13), Window(17, 18)), "keep_first"),
    "merged": MergePlan(30, (Window(17, 18), Window(26, 27)), "rdsc"),
    "fitted": MergePlan(30, (Window(12, 18),), "fit"),
    "healed": MergePlan(30, (Window(12, 18),), "fit"),
}
CHANGED = {"dropped": 0, "merged": 14, "fitted": 1, "healed": 24 * 7}  # matrices


@pytest.fixture
def experiment(bundled_home):
    return create_experiment("e", ExperimentSettings("smollm2-135m", "lambada", 4, 128))


@pytest.mark.long
@pytest.mark.bundled
@pytest.mark.parametrize("name", PLANS)
def test_the_bundled_model_in_llama_cpp(name, experiment, tmp_path, client):
    run = experiment.create_run(name, PLANS[name])
    merge_run(run)
    if name == "healed":
        recover_run(run, preset_settings("quick", steps=2))
    model, tokenizer = load_model(str(run.model_folder))
    rows = calibration_of(experiment, tokenizer)
    with torch.inference_mode():
        logits = model(rows, use_cache=False).logits[:, :-1].log_softmax(-1)
        exact = math.exp(-float(logits.gather(2, rows[:, 1:, None]).mean()))
        prompt = tokenizer("The capital of France is")["input_ids"]
        words = model.generate(torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
    for kind, bound in (("F16", 0.005), ("Q8_0", 0.02)):
        file = export_run(run, tmp_path / f"{kind}.gguf", kind=kind)
        answer = client.ask(
            file, tokenize=[*HARD, "<|im_start|>user\nHi<|im_end|>"], logprobs=rows.tolist(),
            generate={"tokens": prompt, "count": 16},
        )  # fmt: skip
        found = [value for text in answer["logprobs"] for value in text]
        assert math.exp(-sum(found) / len(found)) == pytest.approx(exact, rel=bound)
        texts = [*HARD, "<|im_start|>user\nHi<|im_end|>"]
        assert answer["tokens"] == [tokenizer(text)["input_ids"] for text in texts]
        if kind == "F16":
            assert answer["generated"] == words[0, len(prompt) :].tolist()
    copied = export_run(run, tmp_path / "copied.gguf")
    before = {tensor.name: tensor for tensor in GGUFReader(bundled_file("smollm2-135m")).tensors}
    changed = 0
    for tensor in GGUFReader(copied).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            parts[1] = str(run.plan.base_layers()[int(parts[1])])
        source = before[".".join(parts)]
        if tensor.tensor_type.name != "F32":
            changed += tensor.data.tobytes() != source.data.tobytes()
    assert changed == CHANGED[name]
