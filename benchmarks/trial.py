"""What `swm create` takes to try out how a model is built, for models of real sizes: seconds and peak memory.

    python benchmarks/trial.py [llama-70b mixtral-8x22b ...]

Each model in a process of its own, from its config alone; one thread. Prints a line for each.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-8b": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    }),
    "llama-70b": ("llama", {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    }),
    "gemma3-27b": ("gemma3_text", {
        "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208,
    }),
    "bamba-9b": ("bamba", {"attn_layer_indices": [9, 18, 27]}),
    "qwen3-next-80b": ("qwen3_next", {}),
    "gpt-oss-120b": ("gpt_oss", {}),
    "mixtral-8x22b": ("mixtral", {
        "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48,
        "num_key_value_heads": 8, "num_local_experts": 8,
    }),
    "llama4-scout": ("llama4_text", {}),
    "deepseek-v3": ("deepseek_v3", {}),
}  # fmt: skip


def main() -> None:
    """Try the models, each in a process of its own."""
    names = sys.argv[1:] or list(MODELS)
    if len(names) == 1:
        print(tried(names[0]), flush=True)
        return
    for name in names:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run([sys.executable, __file__, name], env=environment, check=True)


def tried(name: str) -> str:
    """A line: parameters, seconds, peak memory and the layers of which one must stay."""
    from transformers import AutoConfig

    from swm.models.decoder import parameter_count
    from swm.models.locate import skeleton
    from swm.stages.create import tried_out

    kind, settings = MODELS[name]
    shell = skeleton(AutoConfig.for_model(kind, **settings), name)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    needed = tried_out(shell).get("needed_layers")
    seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = f"{parameter_count(shell) / 1e9:6.1f} B parameters"
    return f"{name:16} {size}  {seconds:5.1f} s  +{peak / 2**20:.2f} GiB  {needed}"


if __name__ == "__main__":
    main()
