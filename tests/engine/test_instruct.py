"""The data engine: what a teacher is told, how its reply is read and judged, what is written."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import instruct
from data.book import world
from data.book.language import captions, phrases
from data.book.prepare import dialogue_of, document, make_meta, record_of, worlds
from data.book.things import COLORS
from minivlm.engine import checks, questions, scenes, talk, teachers, template
from minivlm.engine.phrasings import KINDS, STYLES, make_phraser, patterns, spelled
from minivlm.engine.questions import Draft
from minivlm.engine.references import names_of
from minivlm.engine.teachers import Reply, Request
from minivlm.engine.wording import PRIVATE, World, summary
from minivlm.evaluation.english import plural
from minivlm.evaluation.scene import OPPOSITE, claims, holds, setting_of, things_of
from minivlm.loading.prepared import start_folder
from minivlm.metrics import answer_ok

ROOT = Path(__file__).parents[2]
WORLD = World(names=tuple(sorted(set(phrases().values()))))
NAMES = frozenset(WORLD.names)
HARMLESS = {text for p in patterns("harmless") for text in spelled(p.split(" => ")[0])}
TALK = {PRIVATE, *(answer for some in talk.ANSWERS.values() for answer in some)}
GOOD = "Question:\nIs there a ring?\n===\nAnswer:\nYes.\n===\n"


def book_scene(i: int) -> dict:
    """The record of a scene of the picture book, with captions."""
    made = world.make_scene(f"test {i}", 1)
    world.draw(made)
    return record_of(made, f"s{i}", f"train.npy#{i}") | {
        "captions": captions(made, random.Random(i))}


def scene(i: int) -> dict:
    """The same, as of data sets that know nothing but a picture's objects: no place, no time."""
    record = book_scene(i)
    del record["place"], record["time"]
    for o in record["objects"]:
        o.pop("unusual", None)
    return record


def folder(path: Path, records: list[dict], **meta) -> Path:
    """A prepared data folder with these records, without pictures."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "meta.json").write_text(json.dumps({"name": "t", "image_size": 60} | meta))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the offline teacher ---


def test_every_sentence_of_the_offline_teacher_is_understood_and_true():
    """Catches a false answer, and one whose truth nothing can check, over 3,000 dialogues.

    Sentences are read by a grammar of their own; words alone are checked against the sentence that
    the same question gets in full.
    """
    kinds = Counter()
    for i in range(1500):
        record = scene(i)
        clear, every = template.scene_of(record), template.scene_of(record, hidden=True)
        rng = random.Random(i)
        for makers, shown in ((template.SIMPLE, clear), (template.DEEP, every)):
            for make in makers:
                draft = make(shown, rng, WORLD)
                if draft is None:
                    continue
                kinds[draft.kind] += 1
                known, other = claims(draft.answer)
                steps = ("is one of them", "are left", "with one more")
                extra = [s for s in other if not any(step in s for step in steps)]
                assert known and not extra, draft.answer
                assert all(holds(c, shown.things, NAMES) for c in known), (draft, shown)
                if draft.word in ("yes", "no"):
                    assert draft.full.endswith(f", so {draft.word}.")
                elif draft.word:
                    words = re.findall(r"\w+", draft.full.lower())
                    assert draft.word.replace("zero", "no") in words
        text = template.write("detail", record, rng, WORLD)
        if record["border"] == "private":
            assert text == PRIVATE
            continue
        detail, other = claims(text)
        assert len(detail) == len(every.things) and not other
        assert all(holds(c, every.things, NAMES) for c in detail)
    assert len(kinds) >= 16 and min(kinds.values()) > 50, kinds


def test_everything_told_of_the_picture_book_is_true_of_the_scene():
    """Catches a sentence that the scene contradicts, or that the checks reject, in any type.

    Every sentence is read unless it tells a fact, a story, what one could do or hear here, what
    belongs where, or a calculation: these are claims about no picture. Nobody tells a fact that
    only stage 0 reads.
    """
    meta = make_meta(1)
    names, places = frozenset(meta["phrases"].values()), meta["places"]
    known = worlds(1)[0]
    facts = World(facts=meta["facts"])
    of_no_picture = re.compile(
        ".* belongs? .*|one could .*|one (day|night) .*|it met .*|everybody wondered.*"
        "|it was glad.*|then .* went home|the .* is one of them|so .* objects are left"
        "|with one more.*|it is ([a-z]+|(at|in) the .*)")
    secret = [scenes.fact_of(kind, aspect, facts).lower() for kind, aspect in meta["untold"]]
    common = {scenes.fact_of(kind, aspect, known).lower() for kind in known.facts
              for aspect in known.facts[kind] if aspect != "home"}
    assert len(secret) > 40 and not common & set(secret)
    n_claims = n_facts = 0
    for i in range(300):
        record = book_scene(i)
        for kind in instruct.TYPES:
            try:
                text = template.write(kind, record, random.Random(i), known)
            except ValueError as error:
                assert "nothing can be asked" in str(error)
                continue
            dialogue = checks.parse(kind, text)
            told = list(checks.faults(kind, dialogue, record, meta["phrases"], 150, places))
            assert not told, (told, dialogue)
            things = [t for t in things_of(record) if kind != "conversation" or not t.hidden]
            for question, answer in dialogue:
                assert not [s for s in secret if s in answer.lower()], answer
                read, other = claims(answer)
                if len(answer.split()) == 1 or question in HARMLESS or answer in TALK:
                    continue
                verdicts = [holds(c, things, names, setting_of(record, places)) for c in read]
                assert False not in verdicts, (answer, record)
                n_claims += verdicts.count(True)
                for c, verdict in zip(read, verdicts):
                    if verdict is None:  # "the moon is a round rock": a fact
                        assert f"the {c[1]} is a {c[2]}" in common, answer
                for sentence in other:
                    n_facts += sentence in common
                    assert sentence in common or of_no_picture.fullmatch(sentence), answer
    assert n_claims > 1500 and n_facts > 40


def test_a_yes_answers_the_question_that_was_asked():
    """Catches a yes to a relation that is turned round, or to a thing that is not there."""
    for i in range(400):
        shown = template.scene_of(scene(i))
        things = shown.things
        draft = questions.relation(shown, random.Random(i), WORLD)
        if draft:
            words = draft.words
            assert holds(("beside", words["x"], words["r"], words["y"]), things) == (
                draft.word == "yes")
            assert f"{words['r']} the {words['y']}, so" in draft.full
            for r in OPPOSITE:
                is_so = holds(("beside", words["x"], r, words["y"]), things)
                for fact, true in ((r, is_so), (f"not {r}", not is_so), (f"to the {r}", is_so)):
                    said = f"The {words['x']} is {fact} the {words['y']}, so {draft.word}."
                    assert answer_ok(said, draft.expect, draft.wrong) == true, said
            assert " the " not in words["x"] + words["y"], "the question tells where they are"
        draft = questions.exist(shown, random.Random(i), WORLD)
        assert holds(("there", draft.words["a"]), things, NAMES) == (draft.word == "yes")
        draft = questions.negation(shown, random.Random(i), WORLD)
        is_true = holds(("count", "no", draft.words["x"]), things, NAMES)
        assert is_true == draft.full.endswith("is not in the picture.")


def test_there_are_enough_kinds_and_phrasings_and_no_unseen_one_is_ever_read():
    """Catches an unseen phrasing that training data contain, and an asked one that is taught."""
    names = (*KINDS, *STYLES.values(), "harmless")
    taught = {n: {t for p in patterns(n) for t in spelled(p)} for n in (*names, "openers")}
    follow_ups = {"and_color", "and_where", "and_size", "sure", "why"}
    talk = {"greeting", "thanks", "bye", "who", "able", "offer", "unknowable", "unsafe", "harmless"}
    asked = {n: {t for p in patterns(n, "asked") for t in spelled(p)}
             for n in {*names} - follow_ups - talk}
    assert all(patterns(n, "asked") == patterns(n) for n in follow_ups | talk)
    kept = [t for n in names for t in patterns(n, "unseen")]
    assert len(KINDS) >= 50
    for n in names:  # facts are asked about in patterns of many alternatives
        assert len(patterns(n)) >= (17 if n.startswith("fact_") else 20), n
        assert len(taught[n]) >= (60 if n in ("harmless", "unknowable", "unsafe") else 90), n
        for use in ("asked", "unseen"):
            assert len(patterns(n, use)) >= (10 if n in STYLES.values() else 20), (n, use)
    assert not any("(" in t for t in kept)

    def words_of(text):  # in their order, without signs
        return f" {' '.join(re.findall(r'[a-z{}-]+', text.lower()))} "

    for n in names:
        spoken = [words_of(t) for t in taught[n] | taught["openers"] | asked.get(n, set())]
        for k in patterns(n, "unseen"):
            assert not [t for t in spoken if words_of(k.split(" => ")[0]) in t], k
        assert not set(map(words_of, taught[n])) & set(map(words_of, asked.get(n, set()))), n
    kind_of = {}  # words -> the only kind whose question they may be
    for n in names:
        for t in taught[n] | asked.get(n, set()) | set(patterns(n, "unseen")):
            assert kind_of.setdefault(words_of(t.split(" => ")[0]), n) == n, t
    for n, texts in taught.items():
        texts = texts | asked.get(n, set())
        slots = {s for t in texts for s in re.findall(r"{(\w*)}", t)}
        assert slots <= {"a", "x", "y", "z", "xs", "ys", "r", "w"}
        for t in texts:
            assert not list(checks.faults("detail", [(t, "A.")], {}, {}, 9)), t
            assert "  " not in t and " ." not in t and " ?" not in t and t == t.strip(), t
    kept = {re.sub(r"{\w+}", "*", k.split(" => ")[0]) for k in kept}
    nouns = worlds(1)[0].known
    words = {w for n in nouns for w in (n, *n.split(), plural(n), plural(n.split()[1]))}
    words |= {f"{c} objects" for c in COLORS} | {"object", "objects"}
    longest_first = sorted(words, key=len, reverse=True)
    things = re.compile(r"\b(an? )?(" + "|".join(longest_first) + r")\b")
    for i in range(600):
        without_things = [things.sub("*", t) for t in texts_read(i)]
        assert not [t for t in without_things for k in kept if k in t]


def texts_read(i: int) -> list[str]:
    """Questions and lines of a text that training reads."""
    rng = random.Random(i)
    turns = dialogue_of(book_scene(i), rng, 1)
    return [t["value"] for t in turns[::2]] + document(f"test {i}", 1, rng).split("\n")


def test_every_way_to_ask_can_be_filled_and_yes_or_no_answers_yes_or_no():
    """Catches a slot that a kind has no word for, and an answer of another kind."""
    yes_no = {"exist", "relation", "compare_number", "compare_size", "same",
              "strange", "belongs"}
    without_a_word = {"strange", "usual"}
    made: dict[str, list] = {}
    for i in range(200):
        shown = template.scene_of(book_scene(i))
        for make in {**template.SIMPLE, **template.DEEP}:
            draft = make(shown, random.Random(i), worlds(1)[0])
            if draft:
                made.setdefault(draft.phrasing or draft.kind, []).append(draft)
    made |= {k: [Draft(k, {}, "", "")] for k in KINDS if k not in made}
    assert set(made) == set(KINDS)
    for name, drafts in made.items():
        for pattern in (p for use in ("taught", "asked", "unseen") for p in patterns(name, use)):
            for text in spelled(pattern):
                for slots in {tuple(draft.words): draft.words for draft in drafts}.values():
                    text.format(**slots)
        for draft in drafts:
            usual = draft.full.endswith("Everything is as usual, so no.")
            is_yes_no = draft.kind in yes_no or usual
            assert draft.full.endswith((", so yes.", ", so no.")) == is_yes_no
            assert (draft.word in ("yes", "no")) == (
                is_yes_no and draft.kind not in without_a_word)


def test_crowded_and_colorless_pictures_are_asked_about_truly():
    """Catches a crash beyond ten objects, "at the left box", names cut in two, crowds counted."""
    rng = random.Random(0)
    kinds = ("person", "hot dog", "bus", "wine glass", "sheep")
    for i in range(200):
        boxes = [[x, y, x + 0.1, y + 0.1] for x, y in
                 [(rng.random() * 0.9, rng.random() * 0.9) for _ in range(rng.randint(1, 30))]]
        photo = {"objects": [{"name": rng.choice(kinds), "box": b} for b in boxes]}
        tiles = {"objects": [
            {"name": rng.choice(("circle", "square")), "box": b, "place": rng.choice(
                ("left box", "top right box")), "attributes": {
                    "color": rng.choice(("yellow", "black")),
                    "size": rng.choice(("small", "medium", "large"))}} for b in boxes]}
        photo["objects"][0]["crowd"] = True
        for record, known in ((photo, (*kinds, "fire hydrant")),
                              (tiles, ("yellow circle", "blue square"))):
            names = {w: w for w in known}
            for kind in instruct.TYPES:
                try:
                    text = template.write(kind, record, random.Random(i), World(names=known))
                except ValueError as error:
                    assert "nothing can be asked" in str(error)
                    continue
                rounds = checks.parse(kind, text)
                assert not list(checks.faults(kind, rounds, record, names, 150)), text


def test_a_summary_names_each_kind_once_and_is_true():
    """"a dog, a dog and a dog" is no English: catches kinds said twice, and a wrong number."""
    boxes = [{"name": n, "box": [0, 0, 0.1, 0.1]} for n in ("dog", "bus", "dog", "cat", "dog")]
    things = things_of({"objects": boxes})
    said = summary(things)
    assert said == "There are three dogs, a bus and a cat."
    assert summary(things[1:]) == "There is a bus, two dogs and a cat."
    assert summary(things[:1]) == "There is a dog."
    names = frozenset({"dog", "bus", "cat"})
    assert [holds(c, things, names) for c in claims(said)[0]] == [True]
    assert [holds(c, things[1:], names) for c in claims(said)[0]] == [False]
    crowd = summary(things_of({"objects": boxes[:1] * 12}))
    assert crowd == "There are many dogs."


def test_a_picture_of_which_nothing_is_known_is_refused():
    """Catches an invented answer."""
    for record in ({}, {"objects": []}):
        with pytest.raises(ValueError, match="no visible object is known"):
            template.write("conversation", record, random.Random(0), WORLD)


def test_names_that_fit_more_than_one_thing_are_not_used():
    """Catches "the cat" where there are two."""
    for i in range(300):
        things = things_of(scene(i))
        for t in things:
            for phrase in names_of(t, things):
                head, *place = re.split(" (?:at|in) the ", phrase)
                words = set(head.split()) - {"object", "thing"}
                fits = [o for o in things if words <= {o.kind, o.color, o.size}]
                assert [o for o in fits if place in ([], [o.place])] == [t]


# --- what a teacher is told ---


def test_boxes_are_told_with_three_decimals_and_conversations_get_none(tmp_path):
    """Catches pixels, other separators, and boxes where LLaVA told captions alone."""
    record = {"id": "a", "image": "a.jpg", "captions": ["A  dog.", "Dogs."], "objects": [
        {"name": "dog", "attributes": {}, "box": [0.1, 0.25, 0.33333, 1]},
        {"name": "ring", "attributes": {"color": "red", "size": "small"}, "box": [0, 0, 0.5, 0.5]}]}
    boxes = "dog: [0.100, 0.250, 0.333, 1.000]\nsmall red ring: [0.000, 0.000, 0.500, 0.500]"
    assert instruct.record_as_text(record, False) == "A dog.\nDogs."
    assert instruct.record_as_text(record, True) == "A dog.\nDogs.\n\n" + boxes
    assert instruct.record_as_text({"objects": record["objects"]}, True) == boxes


def test_the_shipped_prompts_keep_to_their_own_grammar():
    """Catches an example that teaches a form which is rejected."""
    prompts = instruct.load_prompts(str(ROOT / "data" / "prompts"), 2)
    for kind in instruct.TYPES:
        roles = [m["role"] for m in prompts[kind]]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
        for message in prompts[kind][2::2]:
            rounds = checks.parse(kind, message["content"])
            assert not list(checks.faults(kind, rounds, {}, {}, 150))
    with pytest.raises(FileNotFoundError, match="no system message at"):
        instruct.load_prompts("nowhere", 1)
    with pytest.raises(FileNotFoundError, match="no phrasings at .*dance.txt"):
        patterns("dance")


def test_types_come_in_the_proportions_asked_and_pictures_in_turn():
    """Catches a rounding that loses a dialogue, and a picture used twice before another's turn."""
    cfg = instruct.Config(n=316, proportions="58:23:77")
    records = [{"id": str(i)} for i in range(40)]
    requests = instruct.requests_of(cfg, records)
    assert Counter(r.kind for r in requests) == {
        "conversation": 116, "detail": 46, "reasoning": 154}
    assert max(Counter(r.record["id"] for r in requests).values()) == 8
    assert len({r.key for r in requests}) == 316
    fewer = instruct.requests_of(instruct.Config(n=100), records)
    assert [r.key for r in fewer] == [r.key for r in requests[:100]]  # none is paid for again
    only = instruct.requests_of(instruct.Config(n=7, proportions="0:1:0"), [{"id": "a"}])
    assert {r.kind for r in only} == {"detail"}


# --- grammar and checks ---


@pytest.mark.parametrize("kind, text, want", [
    ("conversation", GOOD, [("Is there a ring?", "Yes.")]),
    ("conversation", GOOD * 2, [("Is there a ring?", "Yes.")] * 2),
    ("conversation", GOOD.replace("\n", "\r\n"), [("Is there a ring?", "Yes.")]),
    ("reasoning", "Question:\nWhy?\n\n===\nAnswer:\nA.\n\nB.\n===", [("Why?", "A.\n\nB.")]),
    ("detail", " A dog.\nA cat. ", [("", "A dog.\nA cat.")]),
    ("conversation", "", "empty"), ("detail", " \n", "empty"),
    ("conversation", "Question:\nA?\n===\nAnswer:\nB.", [("A?", "B.")]),  # LLaVA's own lack it too
    ("conversation", GOOD + "Question:\nA?", "grammar"),                   # breaks off
    ("conversation", "Question:\nA?\n===\n", "grammar"),
    ("conversation", "Answer:\nB.\n===\nQuestion:\nA?\n===", "grammar"),
    ("conversation", "Sure!\n" + GOOD, "grammar"),
    ("conversation", GOOD + "Hope this helps!", "grammar"),
    ("conversation", "Question:\nA?\nAnswer:\nB.\n===\nAnswer:\nC.\n===", "grammar"),
    ("conversation", "Question:\n===\nAnswer:\nB.\n===", "grammar"),
    ("detail", GOOD, "grammar"), ("reasoning", GOOD * 2, "not one question"),
])
def test_a_reply_keeps_to_the_grammar_or_is_refused(kind, text, want):
    """Catches a lenient reader: words before, after or between, a part without its head."""
    if isinstance(want, list):
        assert checks.parse(kind, text) == want
    else:
        with pytest.raises(ValueError, match=f"^{want}$"):
            checks.parse(kind, text)


@pytest.mark.parametrize("answer, reason", [
    ("Yes, there is a red car.", None), ("It floats like a balloon.", None),
    ("As the caption says, it is red.", "speaks of its source"),
    ("Its bounding box is small.", "speaks of its source"),
    ("It is at 0.35, 0.52.", "speaks of its source"),
    ("<image>", "special mark"), ("Red<|end|>", "special mark"), ("very " * 200, "too long"),
    ("The car is blue.", "false"), ("Behind a blue car lies the sea.", "false"),
    ("One does not see a blue car here.", None), ("There are two cars.", "false"),
    ("It costs $4.99.", None), ("No blue car is visible.", None), ("There is a fence.", None),
    ("No one can see a blue car, as described in the list.", "speaks of its source"),
    ("A green tree is what one sees in the window.", None),  # a caption says so
])
def test_a_reply_is_judged(answer, reason):
    """Catches a fault let through, and a good answer refused."""
    record = {"captions": ["A car before a green tree."], "objects": [
        {"name": "car", "attributes": {"color": "red"}, "box": [0, 0, 1, 1]}]}
    found = list(checks.faults("detail", [("What?", answer)], record, phrases(), 150))
    assert found == ([reason] if reason else [])


def test_a_question_asked_twice_is_a_fault():
    """Catches a conversation that repeats itself."""
    assert list(
        checks.faults("conversation", [("A?", "B."), ("A?", "B.")], {}, {}, 9)
    ) == ["question twice"]


def test_a_conversation_is_checked_against_what_can_be_seen():
    """Catches a denial of what only the annotation knows taken for a lie, and the other way."""
    record = {"objects": [{"name": "car", "attributes": {"color": "red"}, "box": [0, 0, 1, 1],
                           "hidden": True}]}
    for kind, answer, want in (
        ("conversation", "There is no car.", []), ("detail", "There is no car.", ["false"]),
        ("conversation", "There is a red car.", ["false"]), ("detail", "There is a red car.", []),
    ):
        assert list(checks.faults(kind, [("", answer)], record, phrases(), 9)) == want


def test_a_reply_is_checked_against_place_and_time():
    """Catches a reply that calls the sea a room, night day, or nothing unusual what is."""
    record = {"place": "sea", "time": "night", "objects": [
        {"name": "fish", "attributes": {"color": "red"}, "box": [0, 0, 1, 1],
         "unusual": "a fish is in the sky, and fish belong in the water"}]}
    for answer, want in (
        ("The picture shows the sea. It is night.", []), ("The picture shows a room.", ["false"]),
        ("It is day.", ["false"]), ("The picture shows a beach.", []),
        ("A fish is in the sky, and fish belong in the water.", []),
        ("No, everything is as usual.", ["false"]),
    ):
        dialogue = [("What?", answer)]
        found = checks.faults("detail", dialogue, record, phrases(), 20, ["sea", "room"])
        assert list(found) == want, answer


# --- the whole command ---


def test_the_command_writes_llavas_format_and_rejects_nothing_of_its_own(tmp_path):
    """Catches <image> in a later turn, roles out of turn, a picture that is not the record's."""
    data = folder(tmp_path, [scene(i) for i in range(30)], phrases=phrases())
    counts = instruct.main(instruct.Config(str(data), n=90))
    made = json.loads((data / "instruct.json").read_text())
    assert made == read(data / "instruct.jsonl") and len(made) == 90 - counts["rejected"] > 75
    images = {r["id"]: r["image"] for r in read(data / "train.jsonl")}
    for d in made:
        values = [t["value"] for t in d["conversations"]]
        assert values[0].startswith("<image>\n") and "<image>" not in "".join(values[1:])
        assert [t["from"] for t in d["conversations"]] == ["human", "gpt"] * (len(values) // 2)
        assert d["image"] == images[d["id"].split("-")[0]]
    rejects = read(data / "instruct.rejects.jsonl")
    assert {r["reason"] for r in rejects} <= {
        "nothing can be asked that has one answer", "no visible object is known"}
    before = (data / "instruct.json").read_bytes()
    instruct.main(instruct.Config(str(data), n=90))
    assert (data / "instruct.json").read_bytes() == before


def test_rejects_are_kept_with_reason_and_text(tmp_path, monkeypatch):
    """Catches a reply dropped in silence."""
    data = folder(tmp_path, [scene(i) for i in range(4)], phrases=phrases())
    texts = ["Sorry, I cannot.", "", "There is a red ring, says the caption.", "x" * 10]

    class Odd:
        def write(self, requests):
            for i, r in enumerate(requests):
                yield r, Reply(texts[i], cut=i == 3)

    monkeypatch.setattr(instruct, "make_teacher", lambda *_: Odd())
    with pytest.raises(ValueError, match="no dialogue passes the checks"):
        instruct.main(instruct.Config(str(data), n=4, proportions="1:0:0"))
    kept = read(data / "instruct.rejects.jsonl")
    assert Counter(k["reason"] for k in kept) == {"grammar": 2, "empty": 1, "cut off": 1}
    assert sorted(k["raw"] for k in kept) == sorted(texts)


def test_a_half_written_reply_is_cut_off_and_a_damaged_file_is_named(tmp_path):
    """Catches a killed run that loses its whole journal, or goes on behind half a line."""
    path, header = tmp_path / "raw.jsonl", {"teacher": "openai"}
    assert teachers.journal(path, header) == {}
    reply = {"key": "a", "kind": "detail", "raw": "", "error": "", "cut": False, "tokens": [1, 2]}
    whole = path.read_bytes() + json.dumps(reply).encode() + b"\n"
    path.write_bytes(whole + b'{"key": "b", "ra')
    assert list(teachers.journal(path, header)) == ["a"] and path.read_bytes() == whole
    path.write_bytes("\ufeff".encode() + whole.replace(b"\n", b"\r\n") + b"\n")  # by an editor
    assert list(teachers.journal(path, header)) == ["a"]
    path.write_bytes(whole + b'{"key": \n{"key": "b"}\n')
    with pytest.raises(ValueError, match="is damaged .*--fresh"):
        teachers.journal(path, header)


def test_a_journal_belongs_to_one_teacher_and_outlives_all_else(tmp_path, monkeypatch):
    """Catches paid replies deleted by an offline run or a prepare.py, or taken for another's."""
    data = folder(tmp_path, [scene(i) for i in range(4)])

    class Paid:
        def write(self, requests):
            for r in requests:
                yield r, Reply(GOOD, tokens=(5, 5))

    cfg = {"data": str(data), "n": 4, "proportions": "1:0:0",
           "prompts": str(ROOT / "data" / "prompts")}
    real = instruct.make_teacher
    monkeypatch.setattr(instruct, "make_teacher", lambda *_: Paid())
    assert instruct.main(instruct.Config(**cfg, teacher="openai", model="a"))["conversation"] == 4
    raw = (data / "instruct.raw.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds replies by .*'model': 'a'.*use another --out"):
        instruct.main(instruct.Config(**cfg, teacher="openai", model="b"))
    monkeypatch.setattr(instruct, "make_teacher", real)
    instruct.main(instruct.Config(**cfg))
    by_hand = json.dumps({"id": "a", "responses": ["A.", "B."], "person": "Ann"}) + "\n"
    (data / "people.jsonl").write_text(by_hand)
    start_folder(data)
    assert (data / "instruct.raw.jsonl").read_bytes() == raw
    assert (data / "people.jsonl").read_text() == by_hand
    assert not (data / "train.jsonl").exists()


@pytest.mark.parametrize("changes, message", [
    ({"teacher": "gpt"}, "teacher 'gpt' is not one of template, openai, local"),
    ({"proportions": "1:2"}, "three numbers"), ({"proportions": "0:0:0"}, "three numbers"),
    ({"n": 0}, "n is 0, expected >= 1"), ({"concurrency": 0}, "concurrency is 0, expected >= 1"),
    ({"retries": -1}, "retries is -1"), ({"n_shots": -1}, "n_shots is -1"),
    ({"teacher": "openai"}, "needs --model"),
])
def test_wrong_options_are_refused(changes, message):
    """Catches an option that fails only after the first reply was paid for."""
    with pytest.raises(ValueError, match=message):
        instruct.main(instruct.Config(**changes))


# --- an endpoint that fails in every way ---


class Endpoint(BaseHTTPRequestHandler):
    """A server that speaks the chat protocol; `plan` maps a request's number to a fault."""

    plan: dict[int, str] = {}
    seen: list[str] = []
    keys: set[str] = set()
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            n = len(self.seen)
            self.seen.append(body["messages"][-1]["content"])
            self.keys.add(self.headers["Authorization"])
        fault = self.plan.get(n, "")
        if fault == "slow":
            time.sleep(2.5)
        if fault in ("429", "500"):
            return self.reply(int(fault), {"error": {"message": fault}})
        if fault == "no json":
            return self.reply(200, None)
        detail = "Describe" in body["messages"][0]["content"]
        text = "A quiet picture." if detail else GOOD
        text = {"malformed": "Sure! Here you are.", "cut": GOOD[:30]}.get(fault, text)
        time.sleep(0.02)
        self.reply(200, {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                         "finish_reason": "length" if fault == "cut" else "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}})

    def reply(self, status: int, content: dict | None):
        data = b"<html>" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass


@pytest.fixture
def endpoint():
    """The server on a free port, fresh each time."""
    Endpoint.plan, Endpoint.seen, Endpoint.keys = {}, [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def command(data: Path, url: str, *more: str) -> list[str]:
    """instruct.py against the endpoint."""
    return [sys.executable, str(ROOT / "data" / "instruct.py"), "--data", str(data), "--teacher",
            "openai", "--model", "test", "--base_url", url, "--timeout", "1", "--n", "60", *more]


def test_no_reply_is_lost_doubled_or_paid_twice_when_all_goes_wrong(endpoint, tmp_path):
    """Catches a lost or doubled record after 429, 500, time-outs, no JSON, bad replies and a kill.

    The first run is killed in the middle. The second one finishes. Every picture is in exactly one
    of the two files, and no answered request is asked again.
    """
    pytest.importorskip("openai")
    records = [
        {"id": f"r{i}", "image": f"{i}.jpg", "captions": [f"Picture {i}."]} for i in range(60)]
    data = folder(tmp_path, records)
    Endpoint.plan = {1: "429", 3: "500", 5: "slow", 7: "no json", 9: "malformed", 11: "cut",
                     40: "429", 45: "malformed"}
    env = {**os.environ, "OPENAI_API_KEY": "sk-secret"}
    first = subprocess.Popen(command(data, endpoint), env=env, stderr=subprocess.DEVNULL)
    raw = data / "instruct.raw.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and (not raw.is_file() or raw.read_bytes().count(b"\n") < 21):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    lines = raw.read_text().splitlines(True)[1:]  # the first one says whose replies these are
    answered = {json.loads(line)["key"].split("-")[0] for line in lines if line.endswith("\n")}
    assert 20 <= len(answered) < 60
    asked_before = len(Endpoint.seen)
    done = subprocess.run(command(data, endpoint), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = {f"r{text.split()[1].rstrip('.')}" for text in Endpoint.seen[asked_before:]}
    assert not again & answered
    good = [d["id"].split("-")[0] for d in read(data / "instruct.jsonl")]
    bad = read(data / "instruct.rejects.jsonl")
    both = good + [b["key"].split("-")[0] for b in bad]
    assert sorted(both) == sorted(r["id"] for r in records)
    assert {b["reason"] for b in bad} <= {"grammar", "cut off"} and 1 <= len(bad) <= 3
    assert "6,000 in" in done.stdout and Endpoint.keys == {"Bearer sk-secret"}
    written = "".join(p.read_text() for p in data.iterdir() if p.is_file())
    assert "sk-secret" not in written + done.stdout + done.stderr


def test_a_wrong_key_is_no_reason_to_try_again(endpoint, tmp_path):
    """Catches retries of what cannot succeed, and a run that ends as if all were well."""
    pytest.importorskip("openai")
    data = folder(tmp_path, [{"id": "a", "image": "a.jpg", "captions": ["A dog."]}])
    Endpoint.do_POST, kept = (lambda self: self.reply(401, {"error": {"message": "no"}})), \
        Endpoint.do_POST
    try:
        env = {**os.environ, "OPENAI_API_KEY": "wrong"}
        done = subprocess.run([*command(data, endpoint), "--n", "1"], env=env,
                              capture_output=True, text=True)
    finally:
        Endpoint.do_POST = kept
    assert done.returncode == 2 and "the endpoint refuses: Error code: 401" in done.stderr
    assert "wrong" not in done.stderr + done.stdout


def test_without_a_key_or_a_client_nothing_is_asked(tmp_path):
    """Catches a traceback, and a key taken from anywhere but the environment."""
    data = folder(tmp_path, [{"id": "a", "image": "a.jpg", "captions": ["A dog."]}])
    env = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    done = subprocess.run(command(data, "http://127.0.0.1:9/v1"), env=env, capture_output=True,
                          text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "OPENAI_API_KEY" in done.stderr or "pip install openai" in done.stderr


def test_a_dry_run_shows_the_prompts_and_asks_nothing(tmp_path, capsys):
    """Catches a dry run that costs money, or that hides the examples."""
    data = folder(tmp_path, [{"id": "a", "image": "a.jpg", "captions": ["A dog."]}])
    cfg = instruct.Config(
        str(data), n=6, proportions="1:1:1", teacher="openai", model="m", dry_run=True,
        prompts=str(ROOT / "data" / "prompts"),
    )
    assert instruct.main(cfg) == {}
    said = capsys.readouterr().out
    assert said.count("--- system") == 3 and said.count("A dog.") == 3
    assert not (data / "instruct.raw.jsonl").exists()


def test_a_gpt_of_ours_answers_through_the_same_interface(tmp_path, tokenizer, gpt):
    """Catches a teacher that cannot be swapped for another."""
    import dataclasses

    from minivlm.engine.teachers import LocalTeacher
    from minivlm.running import checkpoint

    checkpoint.save(
        [tmp_path / "ckpt.pt"], stage="lm", configs={"model": dataclasses.asdict(gpt.config)},
        model=gpt, tokenizer=tokenizer, step=1, best=0.0,
    )
    teacher = LocalTeacher(str(tmp_path), 1.0, 8, 0, "cpu")
    asked = Request("k", "detail", {}, [{"role": "user", "content": "A dog."}])
    (request, reply), = teacher.write([asked])
    assert request is asked and isinstance(reply.text, str) and reply.tokens[1] <= 8
