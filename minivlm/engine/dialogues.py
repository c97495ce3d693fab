"""From questions and answers to turns in LLaVA's format."""

from random import Random

from minivlm.conversation import IMAGE_MARK, Turn
from minivlm.engine.phrasings import make_phraser
from minivlm.engine.template import QA


def turns_of(dialogue: list[QA], rng: Random) -> list[Turn]:
    """A dialogue in LLaVA's format, with the picture before the first question."""
    turns = []
    for question, answer in dialogue:
        # a teacher writes a detailed description without a question
        question = question or make_phraser(rng)("detail", {})
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": answer})
    turns[0]["value"] = f"{IMAGE_MARK}\n" + turns[0]["value"]
    return turns
