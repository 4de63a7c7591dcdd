"""Texts without a registered name: files, folders and hub data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from swm.errors import TextError, first_line
from swm.registry import TEXTS
from swm.texts.example import Example

SUFFIXES = (".txt", ".jsonl")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?(:[\w.-]{1,96})?", re.ASCII)  # org/name:config
MAX_DOCUMENTS = 20_000
MAX_DOCUMENT_CHARACTERS = 1_000_000


def check_source(texts: str) -> None:
    """Raise TextError for a name that is no text file, folder or hub id; reads nothing."""
    try:
        path = Path(texts).expanduser()
        with_config = Path(texts.partition(":")[0]).expanduser().is_dir()  # as in folder:config
        exists, is_file = path.exists() or with_config, path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error).rstrip(".")
        raise TextError(f"'{texts[:80]}' is not a valid path: {reason}. Correct it.") from None
    if not texts.strip():
        raise TextError("The text's name is empty. Name a text.")
    if exists and not is_file and path.suffix in SUFFIXES:
        raise TextError(f"{path} is a folder, not a {path.suffix} file. Rename it, or name a file in it.")
    if is_file and path.suffix not in SUFFIXES:
        raise TextError(f"{path} is neither a .txt nor a .jsonl file. Save the text as one of these.")
    if not exists and (path.suffix in SUFFIXES or path.is_absolute() or not HUB_ID.fullmatch(texts)):
        raise TextError(f"There is no file or folder {path}. Check the path of the text.")


def read_examples(texts: str, purpose: str) -> Iterator[Example]:
    """The documents of a .txt or .jsonl file, a local folder, or a hub data set.

    Raises:
        TextError: if the text does not exist or cannot be read.
    """
    return map(example_of, _rows(texts, purpose))


def _rows(texts: str, purpose: str) -> Iterator[dict[str, Any]]:
    check_source(texts)
    path = Path(texts).expanduser()
    readers: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {".txt": _txt_rows, ".jsonl": _jsonl_rows}
    if path.suffix in readers:
        try:
            yield from readers[path.suffix](path)
        except UnicodeDecodeError:
            raise TextError(f"{path} is not UTF-8 text. Save it as UTF-8 and try again.") from None
        return
    yield from hub_rows(texts, purpose, texts)


def _txt_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Paragraphs, separated by blank lines."""
    with path.open(encoding="utf-8-sig") as file:
        paragraph: list[str] = []
        for line in iter(partial(file.readline, MAX_DOCUMENT_CHARACTERS), ""):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield {"text": "".join(paragraph)}
                paragraph = []
        yield {"text": "".join(paragraph)}


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_DOCUMENT_CHARACTERS), ""), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise TextError(f"Line {number} of {path} is not JSON. Each line must be one JSON object.") from None
            yield row if isinstance(row, dict) else {"text": row}


def hub_rows(repository: str, purpose: str, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set (or a local folder with one), streamed, at most MAX_DOCUMENTS.

    Args:
        repository: as in org/name or org/name:config.
        name: what the user called it, for messages.
    """
    import datasets

    folder, _, config = repository.partition(":")
    ordered = ["test", "validation", "train"] if purpose == "perplexity" else ["train", "validation", "test"]
    try:
        splits = datasets.load_dataset(folder, config or None, streaming=True)
        rows = splits[next(split for split in (*ordered, *splits) if split in splits)]
        yield from rows.take(MAX_DOCUMENTS)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        registered = ", ".join(text for text, source in TEXTS.items() if purpose in source.purposes)
        raise TextError(
            f"Cannot load text '{name}': {line} Name one of {registered}, a .txt or .jsonl file, or a hub data set "
            "(org/name or org/name:config), which needs a network."
        ) from None


def example_of(row: dict[str, Any]) -> Example:
    """A document: prompt and response by the usual column names; otherwise the whole text is the response."""
    if "output" in row and "instruction" in row:  # alpaca
        extra = f"\n\n### Input:\n{row['input']}" if row.get("input") else ""
        return Example(f"### Instruction:\n{row['instruction']}{extra}\n\n### Response:\n", str(row["output"]))
    if "prompt" in row and "response" in row:
        return Example(str(row["prompt"]), str(row["response"]))
    for column in ("text", "sentence", "content", "document", "passage"):
        if isinstance(row.get(column), str):
            return Example("", row[column])
    raise TextError(
        f"No text column among {', '.join(map(str, row))[:200]}. Name the column text, or prompt and response."
    )
