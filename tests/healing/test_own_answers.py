"""The original model's own answers to the prompts of a recovery text."""

import dataclasses
import itertools
import json
import random
from types import SimpleNamespace

import pytest
import torch

from swm.errors import Cancelled, TextError
from swm.healing.own_answers import BATCH_TOKENS, LONGEST, SHORTEST, _batches, needed_examples, own_answers
from swm.healing.rows import rows_of
from swm.stages.recover import recover_run
from swm.texts.example import Example
from swm.texts.tokens import leading_tokens
from swm.workspace.experiments import Experiment
from tests.conftest import WORDS, tiny_model
from tests.healing.lora_cases import SMALL

WHOLE = dataclasses.replace(SMALL, steps=400, answers="original")


def nothing(done, total):
    pass


def alone(model, tokenizer, prompt, count):
    """Greedy continuation of one prompt, token by token, without a cache."""
    ids = [*leading_tokens(tokenizer), *tokenizer(prompt, add_special_tokens=False).input_ids]
    found = []
    with torch.inference_mode():
        for _ in range(count):
            token = int(model(torch.tensor([ids + found])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            found.append(token)
    return tokenizer.decode(found)


@pytest.fixture
def unlike(examples):
    """Prompts of unlike lengths, one answer longer than any is allowed to be, and one document without a prompt."""
    words = WORDS.split()
    more = [Example(" ".join(words[: 2 + i]), " " + " ".join(words[: 1 + 3 * i])) for i in range(12)]
    return [*examples, *more, Example("the house", " river" * 200), Example("", "a document of its own")]


def test_each_answer_is_the_models_greedy_one(tokenizer, unlike, tmp_path):
    model = tiny_model(vocab_size=300, seed=5)
    model.generation_config.repetition_penalty = 1.7  # as some models bring it along
    answered = own_answers(model, tokenizer, unlike, WHOLE, tmp_path / "a.jsonl", nothing)
    assert model.generation_config.repetition_penalty == 1.7
    assert [example.prompt for example in answered] == [example.prompt for example in unlike]
    assert answered[-1] == unlike[-1]
    assert len({example.response for example in answered}) > 5
    for example, given in zip(answered[:-1], unlike, strict=False):
        length = len(tokenizer(given.response, add_special_tokens=False).input_ids)
        count = min(max(length, SHORTEST), LONGEST)
        assert example.response == alone(model, tokenizer, example.prompt, count)


@pytest.mark.parametrize("fast", [True, False])
def test_prompts_can_be_read_in_bfloat16(fast, tokenizer, unlike, tmp_path):
    model, kinds = tiny_model(vocab_size=300, seed=5), set()
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, args, result: kinds.add((result.shape[1] > 1, result.dtype))
    )
    answered = own_answers(model, tokenizer, unlike, WHOLE, tmp_path / "a.jsonl", nothing, fast)
    assert kinds == {(True, torch.bfloat16 if fast else torch.float32), (False, torch.float32)}
    assert [example.prompt for example in answered] == [example.prompt for example in unlike]
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("most", [1, 60, 150, 8192])
def test_as_many_are_answered_together_as_there_is_room_for(most, tokenizer, unlike, tmp_path, monkeypatch):
    model, sizes, store = tiny_model(vocab_size=300, seed=5), [], tmp_path / "a.jsonl"
    whole = own_answers(model, tokenizer, unlike, WHOLE, tmp_path / "whole.jsonl", nothing)
    usual = model.generate

    def generate(ids, **settings):
        sizes.append((*ids.shape, settings["max_new_tokens"]))
        return usual(ids, **settings)

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr("swm.healing.own_answers.BATCH_TOKENS", most)
    assert own_answers(model, tokenizer, unlike, WHOLE, store, nothing) == whole
    assert all(rows == 1 or rows * (width + new) <= most for rows, width, new in sizes)
    assert sum(rows for rows, _, _ in sizes) == store.read_text().count("answer")
    assert (len(sizes) == 1) is (most == 8192)


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_as_large_as_there_is_room_for(seed):
    draw = random.Random(seed)
    prompts = {place: range(draw.randint(1, 3000)) for place in draw.sample(range(300), 200)}
    lengths = [draw.randint(SHORTEST, LONGEST) for _ in range(300)]

    def tokens(batch):
        return len(batch) * (max(len(prompts[place]) for place in batch) + max(lengths[place] for place in batch))

    batches = list(_batches(prompts, lengths))
    assert sorted(itertools.chain(*batches)) == sorted(prompts)
    assert all(len(batch) == 1 or tokens(batch) <= BATCH_TOKENS for batch in batches)
    assert all(tokens([*batch, following[0]]) > BATCH_TOKENS for batch, following in itertools.pairwise(batches))


@pytest.mark.parametrize("context", [512, 200, 150, 64])
def test_a_long_prompt_is_cut_to_leave_room_for_the_longest_answer(context, tokenizer, unlike, tmp_path):
    """Learned positions end with an IndexError where a sequence is longer than the context."""
    model, read = tiny_model("opt", vocab_size=300, max_position_embeddings=context), []
    model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    long = Example(" ".join([WORDS] * 20), " the")
    own_answers(model, tokenizer, [*unlike, long], WHOLE, tmp_path / "a.jsonl", nothing)
    prefix, (ids,) = leading_tokens(tokenizer), tokenizer([long.prompt], add_special_tokens=False).input_ids
    assert len(ids) > 200
    assert max(read) == min(len(prefix) + len(ids), context - min(LONGEST, context // 2))


def test_an_answer_depends_on_its_own_prompt_alone(tokenizer, unlike, tmp_path):
    model = tiny_model(vocab_size=300, seed=5, max_position_embeddings=150)
    example = Example(" ".join(WORDS.split()[:8] * 3), " the")
    among = own_answers(model, tokenizer, [example, example, *unlike], WHOLE, tmp_path / "a.jsonl", nothing)
    (single,) = own_answers(model, tokenizer, [example], WHOLE, tmp_path / "b.jsonl", nothing)
    assert among[:2] == [single, single]
    assert single.response == alone(model, tokenizer, example.prompt, SHORTEST)


def test_equal_prompts_are_answered_once_and_prompts_of_no_tokens_never(tokenizer, tmp_path, monkeypatch):
    model, seen = tiny_model(vocab_size=300, seed=5), []
    monkeypatch.setattr(
        "swm.healing.own_answers.token_ids",
        lambda tokenizer, texts: [
            [] if not text.strip() else ids
            for text, ids in zip(texts, tokenizer(list(texts), add_special_tokens=False).input_ids, strict=True)
        ],
    )
    examples = [Example("the house", " is")] * 3 + [Example(" ", " it")]
    answered = own_answers(model, tokenizer, examples, WHOLE, tmp_path / "a.jsonl", lambda *at: seen.append(at))
    assert seen == [(0, 1)]
    assert answered == answered[:1] * 3


def test_a_cancelled_one_goes_on_and_another_run_asks_for_nothing(tokenizer, unlike, tmp_path, monkeypatch):
    monkeypatch.setattr("swm.healing.own_answers.BATCH_TOKENS", 150)
    model, store, seen = tiny_model(vocab_size=300, seed=5), tmp_path / "a.jsonl", []
    whole = own_answers(model, tokenizer, unlike, WHOLE, tmp_path / "whole.jsonl", nothing)

    def impatient(done, total):
        seen.append((done, total))
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        own_answers(model, tokenizer, unlike, WHOLE, store, impatient)
    assert store.read_text().count("answer") == seen[1][0]
    with store.open("a") as file:
        file.write('{"key": "cut o')  # as a killed process leaves it
    seen.clear()
    assert own_answers(model, tokenizer, unlike, WHOLE, store, lambda *at: seen.append(at)) == whole
    asked = len({(e.prompt, len(tokenizer(e.response).input_ids)) for e in unlike if e.prompt})
    assert seen[0] == (0, seen[0][1])
    assert seen[0][1] <= asked
    never = SimpleNamespace(config=model.config)
    assert own_answers(never, tokenizer, unlike[::-1], WHOLE, store, nothing) == whole[::-1]


def test_only_what_training_reads_is_answered(tokenizer, unlike):
    for change in ({}, {"loss_on": "response"}):
        settings = dataclasses.replace(SMALL, steps=3, **change)
        needed = list(needed_examples(tokenizer, unlike, settings))
        rows = settings.held_out + settings.steps * settings.batch
        assert needed == unlike[: len(needed)]
        assert len(rows_of(tokenizer, needed, settings)) >= rows
        assert len(needed) < len(unlike)
    assert list(needed_examples(tokenizer, unlike, dataclasses.replace(SMALL, steps=400))) == unlike


def test_a_text_without_prompts_has_nothing_to_answer(tokenizer, tmp_path):
    with pytest.raises(TextError, match="no prompts that the original model could answer. Choose --answers given"):
        own_answers(None, tokenizer, [Example("", WORDS)] * 3, WHOLE, tmp_path / "a.jsonl", nothing)


def test_the_weights_learn_from_the_originals_answers(swm, model_folder, text_file, tmp_path):
    """End to end: two runs share the answers, and the model differs from the one that learned the given answers."""
    made = swm("create", "mine", "--model", model_folder, "--texts", text_file, "--count", 3, "--length", 32)
    assert made[0] == 0
    study, words, file = Experiment.open("mine"), WORDS.split(), tmp_path / "prompts.jsonl"
    rows = [{"prompt": " ".join(words[i : i + 4]), "response": " old old old"} for i in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)))
    models = {}
    for name in ("given", "original", "again"):
        assert swm("merge", "mine", name, "--windows", "1-2")[0] == 0
        settings = dataclasses.replace(SMALL, texts=str(file), answers=name.replace("again", "original"))
        recover_run(study.run(name), settings)
        models[name] = (study.run(name).model_folder / "model.safetensors").read_bytes()
    assert models["original"] == models["again"] != models["given"]
    assert study.run("again").settings["recovery"]["answers"] == "original"
