"""Records and meta.json: what their keys may hold, checked where they are read.

Whoever needs a key finds it as it must be, hours later too. A value of a wrong kind is
refused by name before anything long begins. Other projects' ways to write the same thing
are read as ours: VQA's people, LLaVA's <image> in a question, numbers among words.

Each function here takes a key and its value, and returns the value as later lines read it;
the message of its ValueError completes the sentence "FILE:LINE has ...".
"""

import json
import re
from collections.abc import Callable

from minivlm.conversation import IMAGE_MARK, check_turns
from minivlm.metrics import words_of
from minivlm.running.files import is_number
from minivlm.running.options import printable

Kinds = dict[str, Callable[[str, object], object]]  # key -> how its value is read
# styles of answers that `metrics.style_ok` knows; "" = any
STYLES = ("", "word", "sentence", "list", "detail")

# --- records ---


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} that is no text")
    return value


def _word(key: str, value: object) -> str:
    """Read a text; a number becomes its text, so 2 and 2.0 become "2"."""
    if is_number(value):
        return str(int(value) if value == int(value) else value)
    return _text(key, value)


def _list(key: str, value: object) -> list:
    if isinstance(value, str):  # its letters would be taken for entries
        raise ValueError(f"{key} that are no list; write {json.dumps([value[:40]])}")
    if not isinstance(value, list):
        raise ValueError(f"{key} that are no list")
    return value


def _words(key: str, value: object) -> list[str]:
    words = [_word(f"an entry of {key}", entry) for entry in _list(key, value)]
    if not all(word.strip() for word in words):
        raise ValueError(f"an entry of {key} that is empty")
    return words


def _captions(key: str, value: object) -> list[str]:
    for caption in _list(key, value):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError("a caption that is empty or no text")
    return value


def _people(key: str, value: object) -> list[str]:
    """Read people's answers: texts, or VQA's {"answer", "answer_confidence", ...}."""
    answers = []
    for entry in _list(key, value):
        answer = entry.get("answer") if isinstance(entry, dict) else entry
        answers.append(_word(f"an entry of {key}", answer))
    return answers


def _id(key: str, value: object) -> str | int:
    if type(value) not in (str, int):  # not isinstance: True is an int too
        raise ValueError("an id that is neither text nor a whole number")
    _line("an id", str(value))
    return value


def _line(key: str, value: object) -> str:
    """Read a text that error messages show, and generators are seeded with."""
    if printable(_text(key, value), keep="") != value:
        raise ValueError(f"{key} with a control character or half a character")
    return value


def _image(key: str, value: object) -> str | tuple[str, ...]:
    """Read the name of a picture, or a list of names; a list of one becomes the name."""
    names = tuple(_line(key, name) for name in value) if isinstance(value, list) else ()
    if len(names) > 1:
        return names
    if isinstance(value, list):
        value = value[0] if value else ""
    return _line(key, value)


def _question(key: str, value: object) -> str:
    """Read a question without LLaVA's <image>: `prompt_of` puts the picture before it."""
    question = _text(key, value)
    if question.count(IMAGE_MARK) > 1:
        raise ValueError(f"a question with several {IMAGE_MARK}; ask about one picture")
    return question.replace(IMAGE_MARK, "").strip()


def _before(key: str, value: object) -> list[dict]:
    """Read the turns before a question that refers back to them."""
    turns = _list(key, value)
    try:
        check_turns(turns, 0)
    except ValueError as error:
        raise ValueError(f"turns {key} the question that cannot be used: {error}") from None
    if turns[-1]["from"] != "gpt":
        raise ValueError(f"turns {key} the question that do not end with an answer")
    return turns


def _style(key: str, value: object) -> str:
    if value not in STYLES:
        raise ValueError(f"a style that is not one of {', '.join(STYLES[1:])}")
    return value


def _form(key: str, value: object) -> str:
    try:
        re.compile(_text(key, value))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a form that is no regular expression: {error}") from None
    return value


def _objects(key: str, value: object) -> list[dict]:
    return [_object(entry) for entry in _list(key, value)]


def _object(entry: object) -> dict:
    """Read an object of a scene. Only `scene.things_of` needs a box, and checks it."""
    look = (entry.get("attributes") or {}) if isinstance(entry, dict) else None
    if not isinstance(look, dict):
        raise ValueError("an object that is not {name, attributes, box}")
    entry = _known(entry)
    look = _known(look)
    if "attributes" in entry:
        entry["attributes"] = look
    name = entry.get("name")
    if not isinstance(name, str) or not words_of(name).strip():
        raise ValueError("an object without a name")
    said = {"name": name}
    said |= {key: entry.get(key, "") for key in ("place", "unusual", "zone")}
    said |= {key: look.get(key, "") for key in ("color", "size")}
    for key, text in said.items():
        a = "an" if key == "unusual" else "a"
        _name(f"an object with {a} {key}", text)
    for key in ("hidden", "crowd"):
        if not isinstance(entry.get(key, False), (bool, int, str)):
            raise ValueError(f"an object whose {key} is neither true nor false")
    return entry


def _name(key: str, value: object) -> str:
    """Read a text of which data/quiz.py and data/instruct.py make questions."""
    if IMAGE_MARK in _text(key, value):
        raise ValueError(f"{key} that holds {IMAGE_MARK}")
    return value


def images_of(record: dict) -> list[str]:
    """The names of a record's pictures, in order; of none, one or several."""
    image = record.get("image") or ()
    return [image] if isinstance(image, str) else list(image)


def _known(fields: dict) -> dict:
    """Drop the keys whose value is null: null counts as absent."""
    return {key: value for key, value in fields.items() if value is not None}


RECORD: Kinds = {
    "id": _id, "image": _image, "text": _text, "border": _text, "place": _name,
    "time": _name, "captions": _captions, "objects": _objects, "conversations": _list,
    "responses": _list,
}
# keys of a record that has a question; and of a picture to be classified
QUESTION: Kinds = {
    "question": _question, "kind": _text, "style": _style, "form": _form, "answer": _word,
    "people": _people, "expect": _words, "wrong": _words, "names": _words, "may": _words,
    "before": _before,
}
CLASSIFIED: Kinds = {"label": _word, "group": _word}


def as_read(record: dict, need: tuple[str, ...] = ()) -> dict:
    """Return a record as later lines read it.

    Keys with null are dropped. Numbers become texts where words are compared. VQA's
    `answers` become `people`. Several pictures become a tuple of names; only dialogues and
    pairs may have several, so "image" in `need` asks for one.

    Args:
        need: as for `load_records`.

    Raises:
        ValueError: if a key is missing, or its value is of a wrong kind. The message
            completes the sentence "the record has ...".
    """
    record = _known(record)
    kinds = dict(RECORD)
    if "question" in record:
        kinds |= QUESTION
        answers = record.get("answers")
        if isinstance(answers, list) and all(
            isinstance(answer, dict) and "answer" in answer for answer in answers
        ):
            record.setdefault("people", answers)
    if "label" in record:
        kinds |= CLASSIFIED
    record = read_keys(record, kinds)
    # an empty value counts as missing: nothing can be learned from it; an id may be 0
    missing = []
    for key in dict.fromkeys(("id", *need)):
        if record.get(key) in (None, "", [], {}):
            missing.append(key)
    if missing:
        raise ValueError(f"no {' and no '.join(missing)}")
    if "image" in need and not isinstance(record["image"], str):
        raise ValueError(f"{len(record['image'])} pictures where one is expected")
    if "conversations" in need:
        turns = record["conversations"]
        try:
            check_turns(turns, len(images_of(record)))
        except ValueError as error:
            raise ValueError(f"a conversation that cannot be used: {error}") from None
        if not any(turn["from"] == "gpt" for turn in turns):
            raise ValueError("a conversation without an answer")
    return record


def read_keys(fields: dict, kinds: Kinds) -> dict:
    """Return the fields with the values of these keys as they are read, where they are."""
    return fields | {key: kinds[key](key, fields[key]) for key in kinds if key in fields}


def fault_of(record: dict) -> str:
    """Say what `as_read` refuses in a record; "" if nothing."""
    try:
        as_read(record)
    except ValueError as error:
        return str(error)
    return ""


# --- meta.json ---


def _map(key: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{key} that are no JSON object")
    return value


def _phrases(key: str, value: object) -> dict[str, str]:
    """Read phrases, in the form in which `metrics.mentions` looks for them."""
    phrases = {}
    for phrase, name in _map(key, value).items():
        phrases[words_of(phrase).strip()] = _name(f"{key} with a name", name)
        if name and not words_of(name).strip():  # "" names nothing, see `mentions`
            raise ValueError(f"{key} with a name without a word: {name[:40]!r}")
    return phrases


def _prompts(key: str, value: object) -> dict[str, list[str]]:
    """Read the texts of each class; a class without a text could never be chosen."""
    prompts = {}
    for label, texts in _map(key, value).items():
        prompts[label] = _words(f"{key} of {label[:40]!r}", texts)
        if not texts:
            raise ValueError(f"no {key} of {label[:40]!r}")
    return prompts


def _chance(key: str, value: object) -> dict[str, float]:
    for p in _map(key, value).values():
        if not is_number(p) or not 0 <= p <= 1:
            raise ValueError(f"a {key} that is no number in 0..1")
    return value


def _texts(key: str, value: object) -> dict[str, dict[str, str]]:
    """Read texts by two keys, as facts[kind][aspect]."""
    for entry in _map(key, value).values():
        for text in _map(f"an entry of {key}", entry).values():
            _name(f"an entry of {key}", text)
    return value


def _pairs(key: str, value: object) -> list[list[str]]:
    for pair in _list(key, value):
        if len(_words(f"an entry of {key}", pair)) != 2:
            raise ValueError(f"an entry of {key} that is no pair")
    return value


META: Kinds = {
    "phrases": _phrases, "prompts": _prompts, "chance": _chance, "held_out": _words,
    "common": _words, "questions": _words,
    "facts": _texts, "places": _texts, "untold": _pairs,
}
