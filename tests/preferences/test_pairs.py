"""minivlm/preferences/pairs.py: pairs that cannot be used are refused by line. Rows, weights and
the reference's cache are in test_train_dpo.py.
"""

import json

import pytest
import torch

from minivlm.preferences.pairs import ReferenceCache, load_pairs, split_pair

QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
PAIR = {"id": "p", "image": "a.png", "conversations": [QUESTION], "chosen": "A ring.",
        "rejected": "A star."}


def says(text: object, role: str = "gpt") -> dict:
    return {"from": role, "value": text}


@pytest.mark.parametrize("changes, reason", [
    ({"chosen": [says("A.")], "rejected": [says("B.")]}, ""),
    ({"conversations": None, "chosen": [QUESTION, says("A.")],
      "rejected": [QUESTION, says("B.")]}, ""),
    ({"image": None, "conversations": [says("What?", "human")]}, ""),
    ({"chosen": [[]], "rejected": [[]]}, "an answer is empty or no text"),
    ({"chosen": ["A."], "rejected": ["B."]}, "an answer is empty or no text"),
    ({"chosen": [says("A.", "human")], "rejected": [says("B.", "human")]}, "an answer is empty"),
    ({"chosen": [says(7)], "rejected": [says("B.")]}, "an answer is empty or no text"),
    ({"chosen": [says("A.")], "rejected": "B."}, "an answer is empty or no text"),
    ({"chosen": [{"role": "assistant", "content": "A."}], "rejected": [says("B.")]},
     "an answer is empty or no text"),
    ({"image": None}, "1 <image> marks and 0 pictures"),
    ({"conversations": [says("What?", "human")]}, "0 <image> marks and 1 pictures"),
    ({"conversations": [says("<image><image>", "human")]}, "2 <image> marks and 1 pictures"),
    ({"conversations": [says("<image>", "user")]}, "turn 0 has unknown role 'user'"),
    ({"conversations": "What?"}, "conversations that are no list"),
])
def test_a_pair_that_teaches_nothing_is_refused_by_line(changes, reason, tmp_path):
    """Catches a question taken for an answer, a picture too few, and errors without a line."""
    lines = [PAIR, PAIR | changes]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    if reason:
        with pytest.raises(ValueError, match=rf"p\.jsonl:3(:| has) {reason}"):
            load_pairs(tmp_path, "p")
    else:
        assert len(load_pairs(tmp_path, "p")) == 2


def test_no_answers_at_all_are_refused():
    """Catches IndexError for two empty lists, which equal each other."""
    for chosen, rejected in (([], []), ([], [says("B.")]), ([QUESTION], [])):
        with pytest.raises(ValueError, match="an answer is empty or no text|different prompts"):
            split_pair(PAIR | {"chosen": chosen, "rejected": rejected})


@pytest.mark.parametrize("state", [
    {"key": None, "logp": torch.zeros(3, 2)}, {"key": {"a": 1}, "logp": [[0.0, 0.0]]},
    {"key": {"a": 1}, "logp": torch.zeros(3)}, {"key": {"a": 1}, "logp": torch.zeros(3, 1)},
    {"logp": torch.zeros(3, 2)}, [1],
])
def test_a_file_that_holds_no_log_probabilities_is_damaged(state, tmp_path):
    """Catches a TypeError if the file's key is no dict, and a list where a tensor must be."""
    path = tmp_path / "ref.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match="ref.pt is damaged; delete it or name another file"):
        ReferenceCache(path, {"a": 1}, overwrite=False)
    assert ReferenceCache(path, {"a": 1}, overwrite=True).logp is None
    torch.save({"key": {"a": 1}, "logp": torch.ones(3, 2)}, path)
    assert ReferenceCache(path, {"a": 1}, overwrite=False).logp.sum() == 6
