"""Tests of swm.texts.documents."""

import json
import sys

import pytest

from swm.errors import TextError
from swm.texts.documents import recovery_examples
from swm.texts.rows import check_source, read_examples


def test_prompt_and_response_columns_become_examples(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "2 + 2 =", "response": " 4"}, {"instruction": "Add.", "input": "1 and 1", "output": "2"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = {(e.prompt, e.response) for e in recovery_examples(str(file))}
    assert ("2 + 2 =", " 4") in found
    assert ("### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n### Response:\n", "2") in found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{}/passwd", "is neither a .txt nor a .jsonl file"),
        ("{}/nothing", "There is no file or folder"),
        ("{}/nothing.txt", "There is no file or folder"),
        ("nothing.jsonl", "There is no file or folder"),
        ("~/no-such-folder", "There is no file or folder"),
        ("a/b/c", "There is no file or folder"),
        ("../up", "There is no file or folder"),
        ("a b", "There is no file or folder"),
        ("~nobody-of-this-name/x", "is not a valid path"),
        ("x" * 5000, "is not a valid path"),
        (" ", "name is empty"),
    ],
)
def test_what_is_no_text_is_refused_before_anything_is_read(name, said, tmp_path, monkeypatch):
    (tmp_path / "passwd").write_text("root")
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would fail
    with pytest.raises(TextError, match=said) as refused:
        list(read_examples(name.format(tmp_path), "calibration"))
    assert "Errno" not in str(refused.value)


@pytest.mark.parametrize("name", ["wikitext", "org/name", "org/name:config", "Salesforce/wikitext:wikitext-2-raw-v1"])
def test_hub_ids_and_folders_pass(name, tmp_path):
    check_source(name)
    check_source(str(tmp_path))


def test_a_folder_is_no_text_file_but_may_name_a_config(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(TextError, match="is a folder, not a .txt file"):
        list(read_examples(str(tmp_path / "x.txt"), "calibration"))
    check_source(f"{tmp_path}:default")
    with pytest.raises(TextError, match="There is no file or folder"):
        check_source(f"{tmp_path}/nothing:default")
