"""Reading and judging what a teacher has written: its grammar, its manners, and whether it is true.

Used by: instruct.py.
"""

import re
from collections.abc import Iterator

from minivlm.evaluation.scene import claims, holds, things_of
from minivlm.metrics import mentions

Round = tuple[str, str]  # question, answer


def parse(kind: str, text: str) -> list[Round]:
    """Read a reply: (question, answer) pairs; a detailed description is one with no question yet.

        Question:\\n...\\n===\\nAnswer:\\n...\\n===\\n, again and again

    The last line of equals signs may be missing, as in some of LLaVA's own examples.

    Raises:
        ValueError: with the reason, if the text keeps not to the grammar.
    """
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise ValueError("empty")
    if kind == "detail":
        if re.search(r"^(===|Question:|Answer:)", text, re.M):
            raise ValueError("grammar")
        return [("", text)]
    parts = [part.strip() for part in re.split(r"^===[ \t]*$", text, flags=re.M)]
    parts = parts[:-1] if not parts[-1] else parts
    if len(parts) % 2:
        raise ValueError("grammar")
    rounds = []
    for question, answer in zip(parts[::2], parts[1::2]):
        q = re.fullmatch(r"Question:\s*\n?(.+)", question, re.S)
        a = re.fullmatch(r"Answer:\s*\n?(.+)", answer, re.S)
        if not q or not a or re.search(r"^(Question|Answer):", q[1] + "\n" + a[1], re.M):
            raise ValueError("grammar")
        rounds.append((q[1].strip(), a[1].strip()))
    if kind == "reasoning" and len(rounds) != 1:
        raise ValueError("not one question")
    return rounds


# what somebody who sees the picture would not speak of
SOURCE = re.compile(
    r"\b(captions?|bounding box(es)?|coordinates?|annotat\w+)\b"
    r"|\b(given|provided|listed) (sentences?|descriptions?|information|objects?|list)\b"
    r"|\b(based on|according to|as (mentioned|described|stated) in) the "
    r"(sentences?|descriptions?|information|list)\b"
    r"|\bthe (sentences?|descriptions?|list) (say|state|mention|show)s?\b"
    r"|\[\s*[01]?\.\d|[01]?\.\d+, ?[01]?\.\d", re.I,
)
MARKS = re.compile(r"<image>|<\|")
DENIAL = re.compile(
    r"\b(no|not|cannot|without|never|none|neither|nor|missing|absent|lacks?|nothing|if|may|might|"
    r"could|would)\b|n't\b"
)


def faults(
    kind: str, rounds: list[Round], record: dict, phrases: dict[str, str], max_words: int
) -> Iterator[str]:
    """What is wrong with a reply, as reasons; nothing if it is good.

    Where the objects of a picture are known by names that `phrases` knows, what the answers claim
    must not be false: sentences that the grammar of facts.py reads, and every object that a
    sentence without a denial or a doubt mentions must be among the objects or in the captions. A
    conversation, written from sentences about what can be seen, is checked against the clearly
    visible objects, the other types against all.
    """
    questions = [q for q, _ in rounds]
    if len(set(questions)) < len(questions):
        yield "question twice"
    for q, a in rounds:
        if SOURCE.search(q) or SOURCE.search(a):
            yield "speaks of its source"
        if MARKS.search(q) or MARKS.search(a):
            yield "special mark"
        if len(a.split()) > max_words:
            yield "too long"
    if not phrases or not record.get("objects"):
        return
    things = [t for t in things_of(record) if kind != "conversation" or not t.hidden]
    names = frozenset(phrases.values())
    here = {phrases.get(t.name, t.name) for t in things}
    here |= {name for c in record.get("captions", []) for name in mentions(c, phrases)}
    for _, answer in rounds:
        read, other = claims(answer)
        verdicts = [holds(c, things, names) for c in read]
        undecided = [" ".join(c[1:]) for c, v in zip(read, verdicts) if v is None]
        if False in verdicts:
            yield "false"
        for sentence in other + undecided:
            if not DENIAL.search(sentence) and set(mentions(sentence, phrases)) - here:
                yield "false"
