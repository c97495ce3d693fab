"""minivlm/loading/records.py: records and meta.json are checked where they are read, by line."""

import json

import pytest

from minivlm.loading.prepared import load_meta, load_records
from minivlm.loading.records import images_of
from minivlm.metrics import answer_ok, mentions, vqa_accuracy

ASKED = {"id": "q", "image": "a.png", "kind": "color", "question": "What color?"}


def loaded(folder, need=(), **keys) -> dict:
    """The second record of a file, as it is read."""
    lines = [json.dumps({"id": "first"} | dict.fromkeys(need, "x")), json.dumps(keys)]
    (folder / "a.jsonl").write_text("\n".join(lines[1:] if need else lines))
    return load_records(folder, "a", need)[-1]


# --- ids ---


@pytest.mark.parametrize("key", [0, 1, "0", "a", -1])
def test_any_number_or_text_is_an_id(key, tmp_path):
    """Catches "has no id" for the first picture of whoever counts from 0."""
    assert loaded(tmp_path, id=key) == {"id": key}


@pytest.mark.parametrize("keys, reason", [
    ({}, "no id"), ({"id": ""}, "no id"), ({"id": None}, "no id"),
    ({"id": True}, "an id that is neither"), ({"id": 1.5}, "an id that is neither"),
    ({"id": [1]}, "an id that is neither"), ({"id": "a\ud800"}, "an id with a control character"),
    ({"id": "a\nb"}, "an id with a control character or half"),
])
def test_what_is_no_id_is_refused_by_line(keys, reason, tmp_path):
    """Catches True taken for 1, and records that no error message can name."""
    with pytest.raises(ValueError, match=rf"a\.jsonl:2 has {reason}"):
        loaded(tmp_path, **keys)


def test_ids_that_are_one_text_are_one_id(tmp_path):
    """Catches replies of the pictures 0 and "0" kept under one name: one of them would be lost."""
    (tmp_path / "a.jsonl").write_text('{"id": 0}\n{"id": "0"}\n')
    assert len(load_records(tmp_path, "a")) == 2
    with pytest.raises(ValueError, match="a.jsonl:2 has the id '0' of an earlier line"):
        load_records(tmp_path, "a", unique=True)


# --- questions ---


def test_people_as_vqa_publishes_them_are_ten_texts(tmp_path):
    """Catches VQA's own layout refused after all answers: (2 * 2/3 + 7) / 10 would be for three.

    Four of ten say 2, so the model's "2" agrees in full.
    """
    said = ["2"] * 4 + ["two or 3"] * 6
    published = [{"answer": a, "answer_confidence": "yes", "answer_id": i}
                 for i, a in enumerate(said, 1)]
    for keys in ({"people": published}, {"answers": published}, {"people": said},
                 {"people": [2] * 4 + said[4:]}, {"people": [2.0] * 4 + said[4:]}):
        q = loaded(tmp_path, **ASKED, **keys)
        assert q["people"] == said and vqa_accuracy("2", q["people"]) == 1
    assert "people" not in loaded(tmp_path, **ASKED, answers=["2", "3"])  # nobody's layout


@pytest.mark.parametrize("key", ["expect", "wrong", "names", "may", "people"])
def test_a_text_where_a_list_belongs_is_no_list_of_its_letters(key, tmp_path):
    """Catches "yes" taken for the people y, e and s: an accuracy of 0 that nobody questions."""
    assert loaded(tmp_path, **ASKED, **{key: ["red"]})[key] == ["red"]
    assert key not in loaded(tmp_path, **ASKED, **{key: None})
    with pytest.raises(
        ValueError, match=rf'a\.jsonl:2 has {key} that are no list; write \["red"\]'
    ):
        loaded(tmp_path, **ASKED, **{key: "red"})


def test_numbers_among_words_are_words(tmp_path):
    """Catches TypeError for {"expect": [2]} after all answers have been written."""
    q = loaded(tmp_path, **ASKED, expect=[2], wrong=[3.0, "four"], answer=2)
    assert (q["expect"], q["wrong"], q["answer"]) == (["2"], ["3", "four"], "2")
    assert answer_ok("There are 2.", q["expect"], q["wrong"])


@pytest.mark.parametrize("keys, reason", [
    ({"form": "(red"}, "a form that is no regular expression: missing"),
    ({"form": ["red"]}, "form that is no text"), ({"form": "a{9999999999}"}, "a form that is no"),
    ({"style": "words"}, "a style that is not one of word, sentence, list, detail"),
    ({"style": []}, "a style that is not"), ({"kind": 3}, "kind that is no text"),
    ({"expect": [["red"]]}, "an entry of expect that is no text"),
    ({"expect": [""]}, "an entry of expect that is empty"),
    ({"expect": [True]}, "an entry of expect that is no text"),
    ({"names": [None]}, "an entry of names that is no text"),
    ({"people": [{"text": "2"}]}, "an entry of people that is no text"),
    ({"people": {"1": "2"}}, "people that are no list"), ({"answer": ["2"]}, "answer that is no t"),
    ({"border": 1}, "border that is no text"),
    ({"question": ["What?"]}, "question that is no text"),
    ({"question": "<image>\n<image> Same?"}, "a question with several <image>"),
])
def test_a_question_that_cannot_be_judged_is_refused_by_line(keys, reason, tmp_path):
    """Catches what a traceback tells only after minutes of answers, and styles that always fit."""
    with pytest.raises(ValueError, match=rf"a\.jsonl:2 has {reason}"):
        loaded(tmp_path, **ASKED | keys)


@pytest.mark.parametrize("question", [
    "<image>\nWhat color?", "What color?\n<image>", "What color?",
])
def test_a_question_loses_the_mark_of_llava(question, tmp_path):
    """Catches a second picture in the prompt, met in the middle of PPO."""
    assert loaded(tmp_path, **ASKED | {"question": question})["question"] == "What color?"


def test_a_question_of_a_mark_alone_is_none(tmp_path):
    """Catches a model that is asked nothing."""
    with pytest.raises(ValueError, match="a.jsonl:1 has no question"):
        loaded(tmp_path, need=("question",), **ASKED | {"question": "<image>\n"})


def test_keys_of_questions_are_free_where_nobody_is_asked(tmp_path):
    """Catches a crawled picture refused for a "style" that no line of code reads."""
    assert loaded(tmp_path, id="a", style="oil", kind=7)["style"] == "oil"


def test_a_label_may_be_a_number(tmp_path):
    """Catches classes 0 .. 9 that equal no key of meta.json, so that every answer is wrong."""
    assert loaded(tmp_path, id="a", label=0, group=1) == {"id": "a", "label": "0", "group": "1"}


# --- pictures, captions, objects, dialogues ---


def test_null_counts_as_absent_everywhere(tmp_path):
    """Catches AttributeError for `"attributes": null` and "no phrase for 'none dog'"."""
    dog = {"name": "dog", "attributes": None, "box": None, "hidden": None}
    cat = {"name": "cat", "attributes": {"color": None, "size": "small"}}
    r = loaded(tmp_path, id="a", captions=None, conversations=None, border=None,
               objects=[dog, cat])
    assert r == {"id": "a", "objects": [
        {"name": "dog"}, {"name": "cat", "attributes": {"size": "small"}}]}
    with pytest.raises(ValueError, match="a.jsonl:1 has no captions"):
        loaded(tmp_path, need=("captions",), id="a", captions=None)


@pytest.mark.parametrize("bad, reason", [
    ({}, "an object without a name"), ({"name": None}, "an object without a name"),
    ({"name": " "}, "an object without a name"), ({"name": 7}, "an object without a name"),
    ("dog", "an object that is not"), ({"name": "dog", "attributes": ["red"]}, "an object that is"),
    ({"name": "dog", "attributes": {"color": 7}}, "an object with a color that is no text"),
    ({"name": "..."}, "an object without a name"),
    ({"name": "<image> dog"}, "an object with a name that holds <image>"),
    ({"name": "dog", "attributes": {"color": "<image>"}}, "an object with a color that holds <im"),
    ({"name": "dog", "place": 7}, "an object with a place that is no text"),
    ({"name": "dog", "hidden": {}}, "an object whose hidden is neither true nor false"),
    ({"name": "dog", "unusual": True}, "an object with an unusual that is no text"),
    ({"name": "dog", "unusual": "<image>"}, "an object with an unusual that holds <image>"),
])
def test_an_object_that_cannot_be_read_is_refused_by_line(bad, reason, tmp_path):
    """Catches KeyError in the middle of a measurement."""
    with pytest.raises(ValueError, match=rf"a\.jsonl:2 has {reason}"):
        loaded(tmp_path, id="a", objects=[{"name": "cat"}, bad])


@pytest.mark.parametrize("image, want", [
    ("a.png", "a.png"), (["a.png"], "a.png"), ("", ""), ([], ""),
    (["b.png", "a.png", "b.png"], ("b.png", "a.png", "b.png")),
])
def test_a_picture_may_stand_in_a_list(image, want, tmp_path):
    """Catches one picture refused as several, and the order of several lost."""
    record = loaded(tmp_path, id="a", image=image)
    assert record["image"] == want
    assert images_of(record) == ([want] if isinstance(want, str) and want else list(want))
    with pytest.raises(ValueError, match="a.jsonl:2 has image with a control character"):
        loaded(tmp_path, id="a", image="a\nb.png")
    for bad in (7, [7], ["a.png", None], [["a.png"]]):
        with pytest.raises(ValueError, match="a.jsonl:2 has image that is no text"):
            loaded(tmp_path, id="a", image=bad)


def human(text: str) -> dict:
    return {"from": "human", "value": text}


ANSWER = {"from": "gpt", "value": "A dog."}


@pytest.mark.parametrize("image, turns, reason", [
    ("a.png", [human("What?"), ANSWER], "0 <image> marks and 1 pictures"),
    (None, [human("<image> What?"), ANSWER], "1 <image> marks and 0 pictures"),
    ("a.png", [human("<image><image>"), ANSWER], "2 <image> marks and 1 pictures"),
    (["a.png", "b.png"], [human("<image>"), ANSWER], "1 <image> marks and 2 pictures"),
    (["a.png", "b.png"], [human("<image>"), ANSWER, human("<image><image>"), ANSWER],
     "3 <image> marks and 2 pictures"),
    ("a.png", [human("<image>\nWhat?")], "a conversation without an answer"),
    ("a.png", [{"role": "user", "content": "<image>"}], "turn 0 has unknown role None"),
    ("a.png", ["What?"], "a turn is not {from, value}"), ("a.png", [], "no conversations"),
    ("a.png", [human("<image>"), human("<image>")], "human and gpt alternate"),
])
def test_a_dialogue_that_cannot_be_learned_is_refused_by_line(image, turns, reason, tmp_path):
    """Catches a wrong count of pictures, which would shift every later one, found in mid-run."""
    with pytest.raises(ValueError, match=rf"a\.jsonl:1 has .*{reason}"):
        loaded(tmp_path, need=("conversations",), id="a", image=image, conversations=turns)
    good = [human("<image>\nWhat?"), ANSWER]
    assert loaded(tmp_path, need=("conversations",), id="a", image="a", conversations=good)


@pytest.mark.parametrize("key", ["place", "time"])
def test_where_and_when_a_picture_is_are_texts(key, tmp_path):
    """Catches a place 3 or an <image> in a question, met when a dialogue is written."""
    assert loaded(tmp_path, id="a", **{key: "night"})[key] == "night"
    assert loaded(tmp_path, id="a", **{key: ""})[key] == ""
    assert key not in loaded(tmp_path, id="a", **{key: None})
    for value, reason in ((3, "is no text"), (["sea"], "is no text"),
                          ("a <image>", "holds <image>")):
        with pytest.raises(ValueError, match=rf"a\.jsonl:2 has {key} that {reason}"):
            loaded(tmp_path, id="a", **{key: value})


def test_old_records_come_back_as_they_are(tmp_path):
    """Catches a reader that changes what every prepare.py writes."""
    record = {
        "id": "s-1", "image": "val.npy#1", "border": "", "captions": ["A ring."], "noise": "",
        "objects": [{"name": "ring", "attributes": {"color": "red", "size": "large"},
                     "box": [0, 0, 0.5, 0.5], "hidden": "faint", "place": "top left",
                     "unusual": "a ring is in the sky, and rings belong in the water"}],
        "place": "sea", "time": "day",
        "conversations": [human("<image>\nWhat?"), ANSWER], "label": "red ring", "group": "seen"}
    question = ASKED | {"style": "", "form": "(yes|no)[.]?", "answer": "Yes.", "expect": ["yes"],
                        "wrong": [], "names": [], "may": [], "border": "plain"}
    for fields in (record, question):
        assert loaded(tmp_path, **fields) == fields


# --- meta.json ---


def meta_of(folder, **keys) -> dict:
    (folder / "meta.json").write_text(json.dumps({"name": "t", "image_size": 8} | keys))
    return load_meta(folder)


def test_phrases_are_found_however_they_are_written(tmp_path):
    """Catches an object that no text ever mentions, because its phrase has a capital or a dash."""
    phrases = meta_of(tmp_path, phrases={"Dog": "dog", "T-shirt": "t-shirt"})["phrases"]
    assert mentions("A dog in a T-shirt.", phrases) == ["dog", "t-shirt"]
    assert meta_of(tmp_path, phrases={"train track": ""})["phrases"] == {"train track": ""}


def test_what_is_usual_in_a_world_comes_back_as_it_is(tmp_path):
    """Catches facts that are read as something else than prepare.py wrote."""
    world = {"common": ["red cat", "red cat"], "untold": [["cat", "eats"]],
             "facts": {"cat": {"eats": "fish", "home": "on land"}},
             "places": {"sea": {"is": "the sea", "at": "at sea", "do": "swim"}}}
    meta = meta_of(tmp_path, **world)
    assert {key: meta[key] for key in world} == world


def test_what_meta_json_leaves_empty_is_absent(tmp_path):
    """Catches a model asked to choose among no class, and CHAIR over no phrase."""
    meta = meta_of(tmp_path, phrases={}, prompts=None, chance={}, held_out=[])
    assert meta == {"name": "t", "image_size": 8, "fit": "stretch"}


@pytest.mark.parametrize("keys, reason", [
    ({"phrases": ["dog"]}, "phrases that are no JSON object"),
    ({"phrases": {"dog": 7}}, "phrases with a name that is no text"),
    ({"phrases": {"dog": "..."}}, "phrases with a name without a word: '...'"),
    ({"phrases": {"dog": "<image>"}}, "phrases with a name that holds <image>"),
    ({"prompts": {"dog": []}}, "no prompts of 'dog'"),
    ({"prompts": {"dog": "A dog."}}, "prompts of 'dog' that are no list"),
    ({"prompts": {"dog": [" "]}}, "an entry of prompts of 'dog' that is empty"),
    ({"chance": {"color": 25}}, "a chance that is no number in 0..1"),
    ({"chance": {"color": True}}, "a chance that is no number in 0..1"),
    ({"held_out": "red ring"}, "held_out that are no list"),
    ({"common": "red ring"}, "common that are no list"),
    ({"common": ["red ring", ""]}, "an entry of common that is empty"),
    ({"facts": ["cat"]}, "facts that are no JSON object"),
    ({"facts": {"cat": "eats fish"}}, "an entry of facts that are no JSON object"),
    ({"facts": {"cat": {"eats": 2}}}, "an entry of facts that is no text"),
    ({"facts": {"cat": {"eats": "<image>"}}}, "an entry of facts that holds <image>"),
    ({"places": {"sea": {"is": None}}}, "an entry of places that is no text"),
    ({"places": "sea"}, "places that are no JSON object"),
    ({"untold": [["cat", "eats", "fish"]]}, "an entry of untold that is no pair"),
    ({"untold": ["at"]}, "an entry of untold that are no list"),
    ({"untold": {"cat": "eats"}}, "untold that are no list"),
    ({"fit": "squeeze"}, "a fit that is not one of crop, pad, stretch"),
])
def test_a_wrong_entry_of_meta_json_is_named(keys, reason, tmp_path):
    """Catches what no figure shows: a class that cannot be chosen, a chance above 1."""
    with pytest.raises(ValueError, match=rf"meta\.json has {reason}"):
        meta_of(tmp_path, **keys)
    for name in (7, "", None):
        with pytest.raises(ValueError, match="lacks a name or an image_size"):
            meta_of(tmp_path, name=name)
