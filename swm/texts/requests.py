"""Requests: questions with their right answer, which measure what a model can do."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from swm.disk.files import demo_experiment, disk_errors, home, matching, neighbour
from swm.errors import TextError
from swm.registry import ABILITIES
from swm.texts.bundled import is_calibration

Purpose = Literal["choosing", "reporting"]
SUFFIXES = (".jsonl", ".txt")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST = 1000  # requests of an ability that can be asked for
MOST_REQUESTS = 20_000  # of a file of one's own
LONGEST_LINE = 1_000_000  # characters
LONGEST_PARAGRAPH = 400  # words of a text file's paragraph: the last third of it is the answer


@dataclass(frozen=True)
class Request:
    """A question with its right answer.

    Attributes:
        id: unique within its ability.
        prompt: what the model reads.
        choices: what could follow; a single one where only the right answer is known.
        right: index of the right choice.
        group: requests of one group never serve two purposes; by default its prompt.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    right: int = 0
    group: str = ""

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[self.right]


def requests_of(ability: str, purpose: Purpose, count: int) -> list[Request]:
    """The first `count` requests of an ability for a purpose, or as many as there are.

    They come in an order that does not depend on `count`: the first ten are the same for any number.

    Args:
        ability: one of ABILITIES, or a file of one's own (see `read_requests`).

    Raises:
        TextError: if there is none.
    """
    path = ability if ability in ABILITIES else own_file(ability)
    source = ABILITIES[ability].requests() if ability in ABILITIES else read_requests(Path(path))
    wanted = [each for each in source if is_calibration(each.group or each.prompt) == (purpose == "choosing")]
    if not wanted:
        raise TextError(
            f"{ability} has no requests for {purpose}: it has too few. Name a file with at least ten lines, which are "
            "divided into those to choose by and those to report."
        )
    return sorted(wanted, key=_place)[:count]


def request_key(request: Request) -> str:
    """Its id and a checksum of its text: a file of one's own may change."""
    text = "\n".join((request.prompt, *request.choices, str(request.right)))
    return f"{request.id}:{zlib.crc32(text.encode('utf-8', 'replace')):08x}"


def _place(request: Request) -> str:
    return hashlib.sha256(f"{request.id}\n{request.prompt}".encode("utf-8", "replace")).hexdigest()


def own_file(ability: str) -> str:
    """The path of a file with requests; raises TextError if there is none, or it is of another kind."""
    path = Path(ability).expanduser()
    if path.suffix in SUFFIXES and path.is_file():
        return str(path.resolve())
    if path.suffix in SUFFIXES or "/" in ability:
        raise TextError(f"There is no file {ability} with requests (.jsonl or .txt). Check its path.")
    raise TextError(
        f"'{ability[:80]}' is not an ability. Choose some of {', '.join(ABILITIES)}, or name a .jsonl or .txt file of "
        "your own."
    )


def ability_title(ability: str) -> str:
    """What pages call an ability: its title, or the name of one's own file."""
    return ABILITIES[ability].title if ability in ABILITIES else Path(ability).stem


def read_requests(path: Path, name: str = "") -> list[Request]:
    """The requests of a file: `.jsonl` with `prompt` and `answer` (and `choices`) in each line, or `.txt`.

    Of a text, each paragraph is a request: the model reads two thirds of its words, the last third is the answer.

    Args:
        name: of the file in messages; by default its own.

    Raises:
        TextError: that names the line, if one is wrong; or that the file has too many, none, or is not UTF-8.
    """
    name = name or path.name
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = enumerate(iter(partial(file.readline, LONGEST_LINE), ""), 1)
            found = list(_of_text(lines) if path.suffix == ".txt" else _of_lines(lines, name))
    except UnicodeDecodeError:
        raise TextError(f"{name} is not UTF-8 text. Save it as UTF-8 and try again.") from None
    except OSError as error:
        raise TextError(f"Cannot read {name}: {error.strerror}. Check the file.") from None
    if not found:
        raise TextError(f"{name} has no requests. Write one JSON object per line, with prompt and answer.")
    return found


def kept_requests() -> list[Path]:
    """Files of requests that came through the browser."""
    return [file for suffix in SUFFIXES for file in matching(home() / "requests", f"[A-Za-z0-9]*{suffix}")]


def keep_requests(name: str, content: bytes) -> Path:
    """Keep a file of requests that came through the browser, and its path; one of the same name is replaced.

    Raises:
        TextError: if its name cannot be used, or a line is wrong: then nothing is kept.
    """
    if not FILE_NAME.fullmatch(name) or Path(name).suffix not in SUFFIXES:
        raise TextError(
            f"Cannot take '{name[:80]}': name the file with letters, digits and hyphens, and .jsonl or .txt."
        )
    if demo_experiment():
        raise TextError("This is a read-only demo: it keeps no files. Install the studio to ask requests of your own.")
    folder = home() / "requests"
    with disk_errors(folder, len(content)):
        folder.mkdir(parents=True, exist_ok=True)
        new = neighbour(folder / name, "new").with_suffix(Path(name).suffix)
        try:
            new.write_bytes(content)
            read_requests(new, name)
            new.replace(folder / name)
        finally:
            new.unlink(missing_ok=True)
    return folder / name


def _of_lines(lines: Iterable[tuple[int, str]], name: str) -> Iterator[Request]:
    seen: dict[str, int] = {}
    for number, line in lines:
        if not line.strip():
            continue
        if len(seen) == MOST_REQUESTS:
            raise TextError(f"{name} has more than {MOST_REQUESTS:,} requests (line {number}). Shorten it.")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            cause = "is too long" if len(line) >= LONGEST_LINE else "is not JSON"
            raise TextError(f"Line {number} of {name} {cause}. Each line must be one JSON object.") from None
        request = _checked(row, number, name)
        if request.prompt in seen:
            raise TextError(
                f"Line {number} of {name} has the same prompt as line {seen[request.prompt]}. Delete one of them."
            )
        seen[request.prompt] = number
        yield request


def _checked(row: Any, number: int, name: str) -> Request:
    """The request of a line; raises TextError that names the line and what is wrong."""

    def wrong(what: str) -> TextError:
        return TextError(
            f'Line {number} of {name} {what}. Write it as {{"prompt": "2 + 2 =", "answer": " 4"}}, with "choices": '
            '[" 4", " 5"] if there are some.'
        )

    if not isinstance(row, dict):
        raise wrong("is not a JSON object")
    for key in ("prompt", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise wrong(f"has no {key}")
    choices = row.get("choices") or [row["answer"]]
    if not isinstance(choices, list) or not all(isinstance(one, str) and one.strip() for one in choices):
        raise wrong("has choices that are not a list of texts")
    if row["answer"] not in choices or len({*choices}) < len(choices):
        raise wrong("has choices without its answer, or one of them twice")
    return Request(str(number), row["prompt"], tuple(choices), choices.index(row["answer"]))


def _of_text(lines: Iterable[tuple[int, str]]) -> Iterator[Request]:
    first, words, seen = 1, list[str](), set[str]()
    for number, line in (*lines, (0, "")):
        words += line.split()
        if (line.strip() and len(words) < LONGEST_PARAGRAPH) or not words:
            first = first if words else number + 1
            continue
        cut = 2 * len(words) // 3
        prompt, answer = " ".join(words[:cut]), " " + " ".join(words[cut:])
        if cut and prompt not in seen and len(seen) < MOST_REQUESTS:
            seen.add(prompt)
            yield Request(str(first), prompt, (answer,))
        first, words = number + 1, []


def check_ability(ability: str) -> str:
    """The ability as experiments keep it: a registered name, or the whole path of a readable file."""
    if ability in ABILITIES:
        return ability
    path = own_file(ability)
    read_requests(Path(path))
    return path
