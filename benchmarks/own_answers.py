"""How long the original takes to answer a recovery text's prompts, against plain batches of 16 with transformers.

    python benchmarks/own_answers.py [--model smollm2-135m] [--steps 10] [--rounds 3]

Both write the same number of tokens for each prompt, one after the other in each round, in bfloat16 where that is
faster. Prints the seconds of each, the ratio of the medians, and how many answers are the same: with products in
bfloat16 some are not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

BATCH = 16


def main() -> None:
    """Write the answers both ways and compare."""
    from swm.healing.own_answers import needed_examples, own_answers
    from swm.models.load import fast_format, load_model
    from swm.settings import preset_settings
    from swm.texts.documents import recovery_examples

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=10, help="of the preset own-answers that the answers are for")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    settings = preset_settings("own-answers", steps=options.steps)
    examples = [one for one in recovery_examples(settings.texts, settings.seed) if one.prompt]
    examples = list(needed_examples(tokenizer, examples, settings))
    fast, seconds = fast_format(model), dict[str, list[float]](plain=[], ours=[])
    for _ in range(options.rounds):
        start = time.monotonic()
        plain = plainly(model, tokenizer, examples, fast)
        seconds["plain"].append(time.monotonic() - start)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "answers.jsonl"
            ours = own_answers(model, tokenizer, examples, settings, store, lambda *_: None, fast)
        seconds["ours"].append(time.monotonic() - start)
        told = ", ".join(f"{name} {taken[-1]:.1f} s" for name, taken in seconds.items())
        print(told, flush=True)
    answers = {example.prompt: example.response for example in ours}
    same = sum(answers.get(example.prompt, "") == answer for example, answer in zip(examples, plain, strict=True))
    ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["ours"])
    print(f"{ratio:.2f} times as fast; {same} of {len(examples)} answers the same")


def plainly(model: Any, tokenizer: Any, examples: list[Any], fast: bool) -> list[str]:
    """The answers, 16 prompts of like lengths at a time, all of it in one format."""
    import torch

    from swm.healing.own_answers import LONGEST, SHORTEST

    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    answers = {}
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].prompt))
    for done in range(0, len(order), BATCH):
        batch = order[done : done + BATCH]
        prompts = [examples[place].prompt for place in batch]
        given = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        responses = tokenizer([examples[place].response for place in batch]).input_ids
        lengths = [min(max(len(response), SHORTEST), LONGEST) for response in responses]
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
            found = model.generate(
                **given, max_new_tokens=max(lengths), do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        for place, row, length in zip(batch, found[:, given.input_ids.shape[1] :].tolist(), lengths, strict=True):
            row = [*row[:length], tokenizer.eos_token_id]
            answers[place] = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)])
    return [answer if (answer := answers[place]).strip() else "" for place in range(len(examples))]


if __name__ == "__main__":
    main()
