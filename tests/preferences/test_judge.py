"""minivlm/preferences/judge.py: a vision-language model that rates answers.

What it is shown, and what may come back.
"""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from data import preferences
from minivlm.engine.teachers import Reply
from minivlm.loading.images import Pictures
from minivlm.preferences import judge
from minivlm.running import checkpoint
from test_instruct import read
from test_preferences import folder

GOOD = {"helpfulness": 4, "faithfulness": 2.5, "ethics": 5}


@pytest.mark.parametrize("text, message", [
    ("I cannot rate these.", "no JSON list"), ("", "no JSON list"), ("[{]", "no JSON list"),
    ("[" * 5000 + "]" * 5000, "no JSON list"),
    (json.dumps([GOOD]), "another number of ratings"), ("[]", "another number of ratings"),
    (json.dumps([GOOD, 3]), "no number from 1 to 5"),
    (json.dumps([GOOD, GOOD | {"ethics": 6}]), "no number from 1 to 5"),
    (json.dumps([GOOD, GOOD | {"ethics": "5"}]), "no number from 1 to 5"),
    (json.dumps([GOOD, GOOD | {"ethics": True}]), "no number from 1 to 5"),
    ('[{"helpfulness": NaN, "faithfulness": 1, "ethics": 1}, 2]', "no number from 1 to 5"),
    (json.dumps([GOOD, {"helpfulness": 4}]), "no number from 1 to 5"),
])
def test_a_reply_that_cannot_be_read_says_why(text, message):
    """Catches half a reply that becomes a rating, and a reader that breaks on nonsense."""
    with pytest.raises(ValueError, match=message):
        judge.parse(text, 2)


def test_words_and_fences_around_the_list_do_no_harm():
    """Catches a reader that wants nothing but the list."""
    said = f"Here you are:\n```json\n{json.dumps([GOOD | {'why': 'neat [sic]'}, GOOD])}\n```"
    assert judge.parse(said, 2) == [GOOD, GOOD]


def test_the_judge_is_shown_the_picture_the_question_and_all_answers_in_order(tmp_path):
    """Catches a picture of another record or other pixels, and an answer that is left out."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    np.save(tmp_path / "train.npy", pixels)
    q = {"id": "q", "image": "train.npy#1", "question": "What color?"}
    (r,) = judge.requests_of([(q, ["Red.", "Blue."])], Pictures(tmp_path, 16), "be strict")
    system, user = r.messages
    assert system == {"role": "system", "content": "be strict"}
    picture, text = user["content"]
    sent = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(sent))) == pixels[1]).all()
    assert text["text"] == "Question: What color?\n\nAnswer 1:\nRed.\n\nAnswer 2:\nBlue."
    pictures = Pictures(tmp_path, 16)
    keys = {judge.key_of(*x, pictures) for x in (
        (q, ["a", "b"]), (q, ["b", "a"]), (q | {"question": "?"}, ["a", "b"]),
        (q | {"image": "train.npy#0"}, ["a", "b"]))}
    assert len(keys) == 4


class Judge:
    """Stands for the endpoint: longer answers are better; every third reply is nonsense."""

    asked: list[str] = []

    def __init__(self, *args):
        pass

    def write(self, requests):
        for i, r in enumerate(requests):
            self.asked.append(r.key)
            said = r.messages[1]["content"][1]["text"].split("\n\n")[1:]
            rated = [GOOD | {"helpfulness": min(5, 1 + len(s) / 20)} for s in said]
            yield r, (Reply("no"), Reply(json.dumps(rated)), Reply(error="APITimeoutError"))[i % 3]


def test_a_judged_run_counts_what_failed_and_asks_only_that_again(
        tmp_path, vlm, tokenizer, monkeypatch):
    """Catches replies that are paid for twice, and nonsense that is dropped in silence."""
    folder(tmp_path)
    checkpoint.save([tmp_path / "ckpt.pt"], stage="sft",
                    configs={"model": dataclasses.asdict(vlm.config)}, model=vlm,
                    tokenizer=tokenizer, step=1, best=0.0)
    monkeypatch.setattr(preferences, "OpenAITeacher", Judge)
    (tmp_path / "rubric.txt").write_text("rate")
    cfg = preferences.Config(run=str(tmp_path), data=str(tmp_path), n=12, n_val=1, k=2,
                             max_new_tokens=8, rater="judge", model="m", seed=1,
                             rubric=f"{tmp_path}/rubric.txt")
    first = preferences.main(cfg)
    n = len(Judge.asked)
    alone = 12 - n  # questions that got one answer only are not shown to the judge
    ties = n - 2 * (n // 3) - (n % 3 == 2) - first["rankings"] - first["rankings_val"]
    assert n > 6 and first["skipped"] == alone + n - first["rankings"] - first["rankings_val"]
    assert ties >= 0
    rows = read(tmp_path / "preferences.jsonl") + read(tmp_path / "preferences_val.jsonl")
    assert rows and all(r["rater"] == "judge" for r in rows)
    assert all((r["ranking"][0] < r["ranking"][1]) ==
               (r["ratings"][0]["helpfulness"] > r["ratings"][1]["helpfulness"]) for r in rows)
    again = preferences.main(cfg)
    assert Judge.asked[n:] == Judge.asked[2:n:3]  # those that timed out
    assert again["skipped"] <= first["skipped"]
    (tmp_path / "rubric.txt").write_text("rate by other rules")
    with pytest.raises(ValueError, match="holds replies by"):
        preferences.main(cfg)
    preferences.main(dataclasses.replace(cfg, fresh=True))
