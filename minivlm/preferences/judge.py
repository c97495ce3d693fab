"""A vision-language model behind an OpenAI-compatible endpoint as the judge of answers.

It is shown the picture, the question and all answers at once, and rates each on three axes.

Source: VLFeedback's annotation by GPT-4V, Silkie, Li et al. 2023, arXiv:2312.10665, section 3.2;
the rubric (prompts/judge.txt) is our own. Used by: preferences.py.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator

from PIL import Image

from minivlm.engine.teachers import Request
from minivlm.evaluation.raters import AXES, Ratings
from minivlm.loading.images import Pictures


def key_of(q: dict, answers: list[str], pictures: Pictures) -> str:
    """Names a question about just this picture with just these answers.

    So an old reply is not taken for new answers, nor for those about other data in the same place.
    """
    seen = hashlib.sha256(json.dumps([q["question"], answers]).encode())
    seen.update(pictures.pixels([q["image"]]).tobytes())
    return f"{q['id']}-{seen.hexdigest()[:12]}"


def requests_of(
    asked: Iterable[tuple[dict, list[str]]], pictures: Pictures, rubric: str
) -> Iterator[Request]:
    """What the judge is to read about each question and its answers, made one at a time.

    Args:
        asked: questions with "id", "image" and "question", and their answers.
        pictures: what the policy was shown; sent as PNG inside of the request.
    """
    for q, answers in asked:
        file = io.BytesIO()
        Image.fromarray(pictures.pixels([q["image"]])[0]).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        text = f"Question: {q['question']}\n\n" + "\n\n".join(
            f"Answer {i}:\n{answer}" for i, answer in enumerate(answers, 1))
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": rubric}, {"role": "user", "content": content}]
        yield Request(key_of(q, answers, pictures), "judge", q, messages)


def parse(text: str, n: int) -> list[Ratings]:
    """The ratings of n answers out of a reply; words around the list are allowed.

    Raises:
        ValueError: if there is no list, it is not of n answers, or a rating is no number in 1 .. 5.

    >>> parse('Sure: [{"helpfulness": 4, "faithfulness": 5, "ethics": 5}]', 1)
    [{'helpfulness': 4.0, 'faithfulness': 5.0, 'ethics': 5.0}]
    """
    begin, end = text.find("["), text.rfind("]")
    try:
        rated = json.loads(text[begin:end + 1])
    except (ValueError, RecursionError):
        raise ValueError("no JSON list") from None
    if len(rated) != n:
        raise ValueError("another number of ratings than of answers")
    out = []
    for r in rated:
        values = [r.get(axis) for axis in AXES] if isinstance(r, dict) else [None]
        if any(type(v) not in (int, float) or not 1 <= v <= 5 for v in values):
            raise ValueError("rating that is no number from 1 to 5")
        out.append({axis: float(v) for axis, v in zip(AXES, values)})
    return out
