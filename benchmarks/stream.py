"""Merging from disk to disk, compared with copying the same files: bytes per second and peak memory.

python benchmarks/stream.py --gib 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ROUNDS = 3


def made(folder: Path, gib: float) -> int:
    """Writes a random 24-layer Llama in bfloat16 with the bundled tokenizer, layer by layer; returns its bytes."""
    from swm.models.decoder import find_decoder
    from swm.models.load import load_tokenizer

    width = 128 * max(1, round((gib * 2**30 / (24 * 13.5 * 2)) ** 0.5 / 128))
    config = AutoConfig.for_model(
        "llama", hidden_size=width, intermediate_size=3 * width, num_hidden_layers=24, num_attention_heads=width // 64,
        num_key_value_heads=width // 128, vocab_size=49152, tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder.mkdir()
    config.save_pretrained(folder)
    load_tokenizer("smollm2-135m").save_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    layers, names = len(find_decoder(model).layers), {}
    for part in range(-1, layers):
        inside = [n for n in state if (f".layers.{part}." in n if part >= 0 else ".layers." not in n)]
        shard = f"model-{part + 2:05d}-of-{layers + 1:05d}.safetensors"
        save_file({n: torch.randn(state[n].shape, dtype=torch.bfloat16) for n in inside}, folder / shard)
        names.update(dict.fromkeys(inside, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def copied(source: Path, target: Path) -> float:
    start = time.perf_counter()
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb+") as written:
            os.fsync(written.fileno())
    return time.perf_counter() - start


def peak_memory(action: object) -> tuple[float, int]:
    """Seconds, and the peak growth of the process's resident memory in bytes."""
    process, stop, most = psutil.Process(), threading.Event(), 0
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.005):
            info = process.memory_info()
            most = max(most, info.rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    action()  # type: ignore[operator]
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    return seconds, most


def main() -> None:
    from swm.merging.stream import stream_merge
    from swm.plan import MergePlan, Window

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    plan = MergePlan(24, (Window(10, 11), Window(16, 18), Window(21, 22)))
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        source = Path(place) / "source"
        size = made(source, options.gib)
        layer = max(file.stat().st_size for file in source.glob("*-0000[2-9]-*.safetensors"))
        rows = []
        for number in range(ROUNDS):  # in turn, so that a slow moment of the disk affects both
            target = Path(place) / f"copy-{number}"
            copy_seconds = copied(source, target)
            shutil.rmtree(target)
            facts: dict[str, int] = {}

            def merge(number: int = number, facts: dict[str, int] = facts) -> None:
                facts |= stream_merge(str(source), plan, Path(place) / f"merged-{number}")

            seconds, memory = peak_memory(merge)
            shutil.rmtree(Path(place) / f"merged-{number}")
            rates = size / copy_seconds, facts["size_bytes"] / seconds
            rows.append({"copy_bytes_per_second": rates[0], "merge_bytes_per_second": rates[1], "memory": memory})
    shares = [row["merge_bytes_per_second"] / row["copy_bytes_per_second"] for row in rows]
    print(
        json.dumps(
            {
                "source_gib": round(size / 2**30, 2),
                "layer_mib": round(layer / 2**20, 1),
                "copy_mib_per_second": [round(row["copy_bytes_per_second"] / 2**20) for row in rows],
                "merge_mib_per_second": [round(row["merge_bytes_per_second"] / 2**20) for row in rows],
                "share_of_copy_speed": [round(share, 3) for share in shares],
                "median_share": round(statistics.median(shares), 3),
                "peak_memory_in_layers": round(max(row["memory"] for row in rows) / layer, 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
