"""Tests of swm.texts.documents."""

import json

from swm.texts.documents import recovery_examples


def test_prompt_and_response_columns_become_examples(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "2 + 2 =", "response": " 4"}, {"instruction": "Add.", "input": "1 and 1", "output": "2"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = {(e.prompt, e.response) for e in recovery_examples(str(file))}
    assert ("2 + 2 =", " 4") in found
    assert ("### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n### Response:\n", "2") in found
