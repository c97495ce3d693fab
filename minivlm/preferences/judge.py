"""A judge rates answers: a vision-language model at an OpenAI-compatible endpoint.

The judge sees the picture, the question and all answers at once. It rates each answer on
three axes: helpfulness, faithfulness and ethics.

Source: Silkie, Li et al. 2023, arXiv:2312.10665, section 3.2: GPT-4V rates the answers of
VLFeedback. The rubric (data/prompts/judge.txt) is our own.
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
from minivlm.running.files import is_number


def key_of(q: dict, answers: list[str], pictures: Pictures) -> str:
    """Name the judge's reply about the answers to a question, as "id-hash".

    The hash is that of the texts and the pixels. So an old reply is never used for other
    answers, or for other data in the same folder.
    """
    # as JSON, ["a", "b"] and ["ab"] give different hashes
    digest = hashlib.sha256(json.dumps([q["question"], answers]).encode())
    digest.update(pictures.pixels([q["image"]]).tobytes())
    return f"{q['id']}-{digest.hexdigest()[:12]}"


def requests_of(
    asked: Iterable[tuple[dict, list[str]]], pictures: Pictures, rubric: str
) -> Iterator[Request]:
    """Yield one request for each question, made when it is needed to save memory.

    Args:
        asked: questions with "id", "image" and "question", each with its answers.
        pictures: at the size at which they are sent, each as a PNG inside its request.
        rubric: the instructions that tell the judge how to rate and how to reply.
    """
    for q, answers in asked:
        png = io.BytesIO()
        Image.fromarray(pictures.pixels([q["image"]])[0]).save(png, "PNG")
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        paragraphs = [f"Question: {q['question']}"]
        for number, answer in enumerate(answers, 1):
            paragraphs.append(f"Answer {number}:\n{answer}")
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "\n\n".join(paragraphs)},
        ]
        messages = [
            {"role": "system", "content": rubric},
            {"role": "user", "content": content},
        ]
        yield Request(key_of(q, answers, pictures), "judge", q, messages)


def parse(text: str, n: int) -> list[Ratings]:
    """Read the ratings of n answers from a reply; words around the JSON list are allowed.

    Raises:
        ValueError: if there is no list, if it does not rate n answers, or if a rating is
            not a number from 1 to 5.

    >>> parse('Sure: [{"helpfulness": 4, "faithfulness": 5, "ethics": 5}]', 1)
    [{'helpfulness': 4.0, 'faithfulness': 5.0, 'ethics': 5.0}]
    """
    # models often write words before the list, or put the list into a code fence
    begin = text.find("[")
    end = text.rfind("]")
    try:
        rated = json.loads(text[begin:end + 1])
    except (ValueError, RecursionError):  # RecursionError: ten thousand brackets in a row
        raise ValueError("no JSON list") from None
    if len(rated) != n:
        raise ValueError("another number of ratings than of answers")
    ratings = []
    for entry in rated:
        # other keys, such as the reason for a rating, are ignored
        values = [entry.get(axis) for axis in AXES] if isinstance(entry, dict) else [None]
        if not all(is_number(v) and 1 <= v <= 5 for v in values):
            raise ValueError("rating that is no number from 1 to 5")
        ratings.append(dict(zip(AXES, map(float, values))))
    return ratings
