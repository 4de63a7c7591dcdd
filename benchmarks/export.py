"""Time and memory of GGUF export: the bundled model, or one in the shape of a 7B Llama, made of zeros in a sparse file.

python benchmarks/export.py [--seven-billion] [--types F16 Q8_0]
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seven-billion", action="store_true")
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0"])
    options = parser.parse_args()
    from swm.llama_cpp.write import export_gguf
    from swm.models.locate import model_folder

    with tempfile.TemporaryDirectory() as kept:
        bundled = model_folder("smollm2-135m")
        folder = seven_billion(Path(kept) / "large", bundled) if options.seven_billion else bundled
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        print(f"{folder.name}: {stored / 2**30:.2f} GiB of weights")
        for kind in options.types:
            file = Path(kept) / f"{kind}.gguf"
            with PeakMemory() as peak:
                start = time.perf_counter()
                export_gguf(folder, file, kind)
                seconds = time.perf_counter() - start
            size = file.stat().st_size
            print(
                f"{kind}: {seconds:.1f} s, {size / 2**30:.2f} GiB, {size / 2**20 / seconds:.0f} MiB/s, "
                f"{peak.bytes / 2**20:,.0f} MiB of memory beyond files ({peak.bytes / stored:.2f} model sizes)"
            )
            file.unlink()


def seven_billion(folder: Path, tokenizer: Path) -> Path:
    """A Llama of 32 layers of width 4,096 in bfloat16, all zeros, with the bundled model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=49152,
    )
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, offset = {}, 0
    for name, tensor in model.state_dict().items():
        size = 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return folder


class PeakMemory:
    """The most anonymous memory of this process during a block, beyond that before it; files mapped do not count."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self._before, self._done = 0, anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous() - self._before)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
