"""Memory that a search needs beyond the model, in layers, when memory is short. Prints one JSON object.

Uses a Llama with 32 layers of any width and constant weights: memory does not depend on their values. Merges windows of
three layers one after the other and keeps them, as a search does. Counts anonymous memory only (no file-backed pages).

    python benchmarks/memory.py [--width 4096] [--dtype bfloat16] [--rule rdsc] [--windows 4]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rule", default="rdsc")
    parser.add_argument("--windows", type=int, default=4)
    options = parser.parse_args()

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from swm.models.decoder import find_decoder, size_bytes
    from swm.plan import Window
    from swm.search.window_score import WindowScorer

    heads = options.width // 128
    config = AutoConfig.for_model(
        "llama", vocab_size=2000, hidden_size=options.width, intermediate_size=int(2.6875 * options.width),
        num_hidden_layers=32, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()
    model = model.to_empty(device="cpu")
    for name, weight in model.named_parameters():
        weight.data.fill_(1.0 if "norm" in name else 0.002)
    for buffer in model.buffers():
        buffer.copy_(10_000.0 ** -(torch.arange(buffer.numel()) / buffer.numel()))  # RoPE's frequencies
    tokens = torch.randint(0, 2000, (10, 128), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(tokens[:1])
    layer, before, peak = size_bytes(find_decoder(model).layers[0]), own_memory(), [0]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], own_memory())
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()
    start, above = time.time(), ()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SWM_HOME"], os.environ["SWM_MEMORY"] = home, "0.001"  # less than one layer: forces lean mode
        scorer = WindowScorer(model, tokens, options.rule)
        for number in range(options.windows):
            window = Window(28 - 4 * number, 30 - 4 * number)
            scorer.score(above, window)
            above = (window, *above)
    result = {
        "benchmark": "memory",
        "layers_beyond_the_model": round((peak[0] - before) / layer, 3),
        "model_gib": round(size_bytes(model) / 2**30, 2),
        "layer_mib": round(layer / 2**20),
        "seconds": round(time.time() - start, 1),
        **vars(options),
    }
    print(json.dumps(result, indent=1))


def own_memory() -> int:
    """Anonymous memory of this process in bytes. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


if __name__ == "__main__":
    main()
