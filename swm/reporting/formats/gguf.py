"""A run's model as one file for llama.cpp and ollama, with model card and Modelfile beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from swm import __version__
from swm.disk.files import check_absent, clean_up, replace_file
from swm.errors import ExperimentError
from swm.models.known import BUNDLED
from swm.progress import Progress, no_progress
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.reporting.formats.card import model_card
from swm.reporting.names import healed_by
from swm.settings import GGUF_TYPES
from swm.workspace.runs import Run

CONTEXT = 8192  # most tokens that the Modelfile asks for: their keys and values take memory
# A sign of a chat format in the model's own template: ollama's template for it, and what ends an answer.
CHATS = {
    "<|im_start|>": (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "<|start_header_id|>": (
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "<start_of_turn>": (
        '{{ range .Messages }}<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}user{{ end }}\n'
        "{{ .Content }}<end_of_turn>\n{{ end }}<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "<|end|>": ("{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n", "<|end|>"),
}


def write_gguf(
    run: Run,
    file: Path,
    kind: str | None = None,
    progress: Progress = no_progress,
    without_attention: Collection[int] = (),
    note: str = "",
) -> None:
    """Write a run's model as a GGUF file, a Modelfile for ollama and a model card; all of them or none.

    Args:
        kind: number format; by default as `export_gguf` chooses.
        without_attention: layers to write without their attention, see `export_gguf`.
        note: what else the card says of the file.

    Raises:
        ExperimentError: if the run has no model, a file exists, or the disk is full.
        ModelError: if llama.cpp cannot run the model as transformers does.
    """
    from swm.llama_cpp.write import export_gguf
    from swm.models.locate import gguf_source

    file = file.absolute()
    check_file(run, file)
    source = gguf_source(run.experiment.settings.model)
    clean_up(file.parent, older_than=24 * 3600)
    card, modelfile = beside(file)
    with ExitStack() as undone:
        written = export_gguf(
            run.model_folder,
            file,
            kind,
            source=source,
            layers=list(run.plan.base_layers()),
            entries=_entries(run),
            without_attention=without_attention,
            progress=progress,
        )
        undone.callback(_forget, file)
        _write_new(modelfile, modelfile_of(run, file.name))
        undone.callback(_forget, modelfile)
        _write_new(card, f"{model_card(run)}\n\n{_about(written, source)}{note}")
        undone.pop_all()


def beside(file: Path) -> tuple[Path, Path]:
    """The model card and the Modelfile of a GGUF file."""
    return file.with_suffix(".md"), file.with_suffix(".Modelfile")


def check_file(run: Run, file: Path) -> None:
    """Raise ExperimentError if a run has no model, or a file cannot be written under this name."""
    if run.is_baseline or not run.has_model:
        raise ExperimentError(f"Run {run.name} has no merged model to export. Merge it first.")
    if file.suffix.lower() != ".gguf":
        raise ExperimentError(f"{file.name} must end in .gguf. Name another file.")
    for other in (file, *beside(file)):
        check_absent(other)


def modelfile_of(run: Run, name: str) -> str:
    """A Modelfile for ollama: the file, the chat's template if its format is known, stop tokens, context length."""
    folder = run.model_folder
    template = (folder / "chat_template.jinja").read_text() if (folder / "chat_template.jinja").is_file() else ""
    template = template or str(_settings(folder / "tokenizer_config.json").get("chat_template") or "")
    lines = [f"FROM ./{name}"]
    stops = [_text(_settings(folder / "tokenizer_config.json").get("eos_token"))]
    for sign, (chat, end) in CHATS.items():
        if sign in template:
            lines.append(f'TEMPLATE """{chat}"""')
            stops.append(end)
            break
    from swm.llama_cpp.config_keys import longest_text
    from swm.models.locate import load_config

    lines.append(f"PARAMETER num_ctx {min(longest_text(load_config(str(folder))), CONTEXT)}")
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops) if stop and '"' not in stop]
    return "\n".join(lines) + "\n"


def _write_new(file: Path, text: str) -> None:
    check_absent(file)  # which another export may have written in the meantime
    replace_file(file, text.encode())


def _forget(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)


def _settings(file: Path) -> dict[str, Any]:
    """A JSON file that transformers wrote; empty if there is none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except ValueError:
        raise ExperimentError(f"{file} is damaged. Merge the run again.") from None


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _entries(run: Run) -> dict[str, Any]:
    """Who made the model from what, as GGUF metadata has it."""
    model = run.experiment.settings.model
    licence = BUNDLED[model].licence if model in BUNDLED else ""
    healed = f", healed with {how}" if (how := healed_by(run)) else ""
    base = re.sub(r"\.gguf$", "", Path(model).name)
    return {
        "general.name": f"{base}-{run.plan.layers_left}-layers",
        "general.description": f"{base} with {run.plan.layers_left} of {run.plan.layer_count} layers{healed}; windows "
        f"{', '.join(map(str, run.plan.windows)) or 'none'} merged by rule {run.plan.rule}",
        "general.base_model.count": 1,
        "general.base_model.0.name": base,
        "general.quantized_by": f"Sliding-Window Merging Studio {__version__}",
        "general.tags": ["layer-pruning", "layer-merging"],
        **({"general.license": licence.lower()} if licence else {}),
    }


def _about(written: Any, source: Path | None) -> str:
    kinds = ", ".join(f"{count} in {kind}" for kind, count in sorted(written.kinds.items()))
    copied = (
        f" {written.copied} of them are copied bit for bit from {source.name}; the others changed and were re-encoded."
        if source and written.copied
        else ""
    )
    return f"## This file\n\nTensors by number format: {kinds}.{copied}\n"


EXPORT_FORMATS.register(
    ExportFormat(
        "gguf",
        "GGUF file",
        "one file for llama.cpp and ollama, with a Modelfile and the model card beside it",
        ".gguf",
        write=write_gguf,
        kinds=GGUF_TYPES,
        usual="blocks copied from the GGUF file that the model came from, else F16",
    )
)
