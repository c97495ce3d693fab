"""Checks what a teacher has written: its grammar, its wording, and whether it is true.

    dialogue = parse("conversation", reply)        raises ValueError if the grammar is wrong
    faults("conversation", dialogue, record, ...)  yields the reasons to reject the dialogue
"""

import re
from collections.abc import Iterable, Iterator

from minivlm.engine.template import QA
from minivlm.evaluation.scene import claims, holds, setting_of, things_of
from minivlm.metrics import mentions


def parse(kind: str, text: str) -> list[QA]:
    """Read the questions and answers of a reply, which repeats this pattern:

        Question:\\n...\\n===\\nAnswer:\\n...\\n===\\n

    The last line of equals signs may be missing, as in some of LLaVA's own examples. A
    detailed description is not in this grammar: it is one answer, and its question is "".

    Args:
        kind: conversation, detail or reasoning; reasoning is a single question.

    Raises:
        ValueError: if the text does not follow the grammar; with a short reason.
    """
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise ValueError("empty")
    if kind == "detail":
        if re.search(r"^(===|Question:|Answer:)", text, re.M):
            raise ValueError("grammar")
        return [("", text)]
    parts = [part.strip() for part in re.split(r"^===[ \t]*$", text, flags=re.M)]
    if not parts[-1]:
        parts.pop()
    if len(parts) % 2:
        raise ValueError("grammar")
    dialogue = []
    for question, answer in zip(parts[::2], parts[1::2]):
        q = re.fullmatch(r"Question:\s*\n?(.+)", question, re.S)
        a = re.fullmatch(r"Answer:\s*\n?(.+)", answer, re.S)
        # a second heading inside a part means that a line of equals signs is missing
        if not q or not a or re.search(r"^(Question|Answer):", f"{q[1]}\n{a[1]}", re.M):
            raise ValueError("grammar")
        dialogue.append((q[1].strip(), a[1].strip()))
    if kind == "reasoning" and len(dialogue) != 1:
        raise ValueError("not one question")
    return dialogue


# words about what the teacher was told, which nobody who looks at the picture would use:
# captions, boxes, coordinates
SOURCE = re.compile(
    r"\b(captions?|bounding box(es)?|coordinates?|annotat\w+)\b"
    r"|\b(given|provided|listed) (sentences?|descriptions?|information|objects?|list)\b"
    r"|\b(based on|according to|as (mentioned|described|stated) in) the "
    r"(sentences?|descriptions?|information|list)\b"
    r"|\bthe (sentences?|descriptions?|list) (say|state|mention|show)s?\b"
    r"|\[\s*[01]?\.\d|[01]?\.\d+, ?[01]?\.\d", re.I,
)
MARKS = re.compile(r"<image>|<\|")  # the image mark, or the start of a special token
# words of denial or doubt: a sentence with such a word may name an absent object
DENIAL = re.compile(
    r"\b(no|not|cannot|without|never|none|neither|nor|missing|absent|lacks?|nothing|if|may|"
    r"might|could|would)\b|n't\b"
)


def faults(
    kind: str, dialogue: list[QA], record: dict, phrases: dict[str, str], max_words: int,
    places: Iterable[str] = (),
) -> Iterator[str]:
    """Yield the reasons to reject a dialogue; none if it is good.

    The answers must also be true, which is checked if the record lists objects and
    `phrases` is not empty. A sentence that the grammar of evaluation/scene.py can read must
    not be false. Any other sentence may mention only objects that the record lists or its
    captions mention, unless the sentence contains a word of denial or doubt.

    A conversation is checked against the visible objects, because its teacher was told only
    what can be seen. Other types are checked against all objects.

    Args:
        kind: conversation, detail or reasoning.
        dialogue: as `parse` returns it.
        record: of the picture.
        phrases: every way to name an object -> its canonical name, as in meta.json.
        max_words: most words of an answer.
        places: every place that pictures of the data set show, as in meta.json.
    """
    # --- wording, in any data set ---
    questions = [q for q, _ in dialogue]
    if len(set(questions)) < len(questions):
        yield "question twice"
    for question, answer in dialogue:
        if SOURCE.search(question) or SOURCE.search(answer):
            yield "speaks of its source"
        if MARKS.search(question) or MARKS.search(answer):
            yield "special mark"
        if len(answer.split()) > max_words:
            yield "too long"
    if not phrases or not record.get("objects"):
        return

    # --- truth, where objects are known ---
    things = things_of(record)
    if kind == "conversation":
        things = [t for t in things if not t.hidden]
    names = frozenset(phrases.values())
    setting = setting_of(record, places)
    # a caption may mention an object that has no box
    present = {phrases.get(t.name, t.name) for t in things}
    for caption in record.get("captions", []):
        present.update(mentions(caption, phrases))
    for _, answer in dialogue:
        read, unread = claims(answer)
        verdicts = [holds(claim, things, names, setting) for claim in read]
        if False in verdicts:
            yield "false"
        for claim, verdict in zip(read, verdicts):
            if verdict is None:  # the objects cannot decide it: check its words instead
                unread.append(" ".join(claim[1:]))
        for sentence in unread:
            if not DENIAL.search(sentence) and set(mentions(sentence, phrases)) - present:
                yield "false"
