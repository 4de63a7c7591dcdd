"""What rules fit and scale gain in every family, on small trained models: random weights have no redundancy.

    python benchmarks/families.py [--families llama,mixtral] [--steps 1500] [--drop 2]

For each family a model of 6 layers and width 128 is trained on the bundled texts (novels, children's stories, questions
with answers), loses the layers that raise perplexity least, and is rescaled or fitted. Perplexity is that of held-out
novels, in tokens of a vocabulary of 512 that is learnt from the same texts: with a larger one, a model learns little
more than how frequent each token is in so short a time, and layers hardly matter. Prints a table.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

VOCABULARY, LAYERS, LENGTH, BATCH, SEED = 512, 6, 128, 4, 1234
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 32},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "sliding_window": 32, "sliding_window_pattern": 4, "query_pre_attn_scalar": 32},
    "phi3": {},
    "olmo2": {},
    "gpt2": {"n_embd": 128, "n_layer": LAYERS, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "opt": {"ffn_dim": 384, "word_embed_proj_dim": 128},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "stablelm": {},
    "granite": {},
    "smollm3": {"no_rope_layer_interval": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 192, "head_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 192},
}
RATE = 2e-3


def main() -> None:
    """Train, cut and fit each family, and print a line for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--steps", type=int, default=1500, help="of training each model, 512 tokens each")
    parser.add_argument("--drop", type=int, default=2, help="layers to drop")
    options = parser.parse_args()
    tokenizer, rows = texts()
    print("| family | trained | without layers | rescaled | fitted | layers | regained |")
    print("|---|---|---|---|---|---|---|")
    for family in options.families.split(","):
        print(measured(family, tokenizer, rows, options.steps, options.drop), flush=True)


def texts() -> tuple[Any, Any]:
    """A tokenizer learnt from the training texts, and those texts as rows of token ids."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from swm.texts.documents import documents
    from swm.texts.tokens import packed_rows

    found = [text for name in ("lambada", "coqa") for text in documents(name, "calibration")]
    found += documents("instructions", "recovery")
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        found, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt, eos_token="<end>")
    return tokenizer, torch.tensor(packed_rows(tokenizer, found, LENGTH))


def trained(family: str, rows: Any, steps: int) -> Any:
    """A model of the family, after so many steps."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        ids = rows[torch.randint(0, len(rows), (BATCH,))]
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def measured(family: str, tokenizer: Any, rows: Any, steps: int, drop: int) -> str:
    """A line of the table: perplexities, the layers dropped, and the share of the loss that each rule regains."""
    from swm.errors import NoScaleError
    from swm.evaluation.perplexity import perplexity
    from swm.merging.apply import apply_plan
    from swm.merging.fit import apply_fitted_plan
    from swm.planners.plan_with import plan_with
    from swm.texts.calibration import calibration_tokens, fit_tokens, perplexity_tokens

    model = trained(family, rows, steps)
    held_out = perplexity_tokens(tokenizer, "lambada", 40, LENGTH, SEED)
    plan = plan_with("sleb", model, calibration_tokens(tokenizer, "lambada", 20, LENGTH, SEED), LAYERS - drop)
    whole, cut = (perplexity(one, held_out)["value"] for one in (model, apply_plan(model, plan)))
    rows, values, regained = fit_tokens(tokenizer, "lambada", LENGTH, SEED), [], []
    for how in ("scale", "fit"):
        try:
            value = perplexity(apply_fitted_plan(model, replace(plan, rule=how), rows, how=how), held_out)["value"]
        except NoScaleError:
            values.append("refused")
            continue
        values.append(f"{value:.1f}")
        regained.append(f"{math.log(cut / value) / math.log(cut / whole):.0%}")
    dropped = ", ".join(map(str, sorted({*range(LAYERS)} - {*plan.base_layers()})))
    return f"| {family} | {whole:.1f} | {cut:.1f} | {' | '.join(values)} | {dropped} | {' and '.join(regained)} |"


if __name__ == "__main__":
    main()
