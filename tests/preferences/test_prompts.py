"""minivlm/preferences/prompts.py: what the middle of a run would stumble over is refused before."""

import json

import numpy as np
import pytest

from minivlm.conversation import prompt_of
from minivlm.preferences.prompts import Prompts

PHRASES = {"red circle": "red circle"}
CIRCLE = {"name": "circle", "attributes": {"color": "red"}, "box": [0, 0, 0.5, 0.5]}
ASKED = {"id": "q", "image": "train.npy#0", "kind": "color", "question": "A?"}


@pytest.fixture
def prompts(tmp_path, vlm, tokenizer):
    """Make prompts from a folder with one picture that shows these objects, and a question."""
    def make(objects: list[dict], captions: tuple[str, ...] = (), **question) -> Prompts:
        np.save(tmp_path / "train.npy", np.zeros((1, 16, 16, 3), np.uint8))
        record = {"id": "s", "image": "train.npy#0", "objects": objects, "captions": captions}
        meta = {"name": "t", "image_size": 16, "phrases": PHRASES}
        for name, content in (("train.jsonl", record), ("prompts.jsonl", ASKED | question),
                              ("meta.json", meta)):
            (tmp_path / name).write_text(json.dumps(content))
        return Prompts(tmp_path, "train", vlm, tokenizer, facts=bool(captions))
    return make


def test_a_question_in_llavas_words_asks_about_one_picture(prompts, tokenizer):
    """Catches "placeholders ... pictures" in the middle of PPO: the prompt has the mark already."""
    asked = prompts([CIRCLE], ("A.",), question="<image>\nA?")
    batch = asked.batch(asked.load("prompts", 2), seed=0)
    n = asked.config.vit.n_tokens
    assert batch.prompts == [prompt_of("A?", tokenizer, n)]
    assert batch.reward_prompts == [prompt_of("A?", tokenizer, n, ["A."])]
    assert batch.prompts[0].count(tokenizer.image) == n


@pytest.mark.parametrize("objects, question, reason", [
    ([CIRCLE | {"box": [0, 0, 70, 90]}], {}, "train: record s has an object without a name"),
    ([CIRCLE], {"names": ["circle"]}, "no phrase of meta.json stands for 'circle'"),
    ([CIRCLE], {"image": "train.npy#7"}, "no picture train.npy#7 in train"),
])
def test_what_true_scores_need_is_checked_with_the_questions(objects, question, reason, prompts):
    """Catches a box outside of the picture that ends PPO at its first true score."""
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:1: {reason}"):
        prompts(objects, **question).load("prompts", 2)


@pytest.mark.parametrize("objects, n_scores", [
    ([CIRCLE], 1), ([], 0), ([{"name": "circle"}], 0), ([CIRCLE, {"name": "circle"}], 0),
])
def test_true_scores_are_given_where_the_scene_is_known(objects, n_scores, prompts):
    """Catches a score by objects that nobody has located, and a run that they end."""
    asked = prompts(objects)
    assert len(asked.true_scores(asked.load("prompts", 2), ["A red circle."])) == n_scores
