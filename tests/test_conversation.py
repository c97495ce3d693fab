"""minivlm/conversation.py: which tokens are answers, worked by hand and rebuilt independently."""

import itertools
import random
import re

import pytest

from minivlm.conversation import (
    IMAGE_MARK, append_unread, caption_rows, check_turns, count_images, longest_prompt, make_row,
    pack, prompt_of, render, spoken,
)
from minivlm.templates import TEMPLATES
from minivlm.tokenizer import Tokenizer, train_bpe

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


def table(turns: list[dict], n_image_tokens: int) -> str:
    """The mask as a reader would print it: one line a token, answers marked."""
    ids, is_answer = render(turns, TOKENIZER, n_image_tokens)
    return "\n".join(
        f"{TOKENIZER.decode([i])} {'answer' if a else '-'}" for i, a in zip(ids, is_answer)
    )


def test_the_mask_of_a_two_turn_dialogue_is_the_table_worked_by_hand():
    """Catches an inverted mask, a trained question, and an <|end|> that is not trained.

    Two rounds, one picture of two patches; with a byte tokenizer each letter is a token. One
    space stands before what is said.
    """
    turns = [human("<image>\nhi?"), gpt("ok"), human("so"), gpt("no")]
    assert table(turns, n_image_tokens=2).split("\n") == [
        "<|user|> -",
        "<|image|> -",
        "<|image|> -",
        "  -", "h -", "i -", "? -",
        "<|assistant|> -",
        "  answer", "o answer", "k answer", "<|end|> answer",
        "<|user|> -",
        "  -", "s -", "o -",
        "<|assistant|> -",
        "  answer", "n answer", "o answer", "<|end|> answer",
    ]


def test_a_system_turn_comes_first_and_is_not_trained():
    """Catches a system prompt in the loss."""
    assert table([{"from": "system", "value": "be"}, human("a"), gpt("b")], 1).split("\n") == [
        "<|system|> -", "  -", "b -", "e -", "<|user|> -", "  -", "a -",
        "<|assistant|> -", "  answer", "b answer", "<|end|> answer",
    ]


def test_a_last_question_leaves_the_answer_open():
    """Catches a generation prompt that ends with <|end|> or misses <|assistant|>."""
    ids, is_answer = render([human("a")], TOKENIZER, 0)
    user, assistant = TOKENIZER.special["<|user|>"], TOKENIZER.special["<|assistant|>"]
    assert ids == [user, *b" a", assistant] and not any(is_answer)
    whole, _ = render([human("a"), gpt("b")], TOKENIZER, 0)
    assert whole == ids + [*b" b", TOKENIZER.end]


def test_the_open_prompt_is_what_training_showed_before_the_answer():
    """Catches a template that differs between training and generation."""
    turns = [human("<image>\nwhat is it?"), gpt("a ring"), human("sure?"), gpt("yes")]
    ids, is_answer = render(turns, TOKENIZER, 4)
    last = len(" yes") + 1
    assert render(turns[:-1], TOKENIZER, 4) == (ids[:-last], is_answer[:-last])


def test_an_answer_of_one_word_has_the_id_of_that_word_in_a_text():
    """Catches an answer whose first word is cut otherwise, and so is learned a second time."""
    tokenizer = Tokenizer(train_bpe(["the car is red and the cup is blue " * 20], 300))
    assert spoken(" red\n", tokenizer) == tokenizer.encode("the car is red")[-1:]
    ids, is_answer = render([human("which?"), gpt("red")], tokenizer, 0)
    assert [i for i, a in zip(ids, is_answer) if a] == [*spoken("red", tokenizer), tokenizer.end]


TRICKY = [
    "<|end|>", "ASSISTANT:", "USER:", "human", "gpt", "<|assistant|>", "<|user|>", "</s>",
    "<|image|>", "###", "yes", "a red circle", "I'm not sure.", "- one\n- two", "é😀", "\u0301",
    "<|pad|>", "0",
]


def random_dialogue(rng: random.Random) -> tuple[list[dict], bool]:
    """1 to 6 rounds, maybe with a system turn and a picture, of phrases that break string masks."""
    def say() -> str:
        text = rng.choice((" ", "", "\n")).join(rng.choices(TRICKY, k=rng.randint(1, 5)))
        return rng.choice(("", " ", "\n")) + text + rng.choice(("", " ", "\n"))

    turns = [{"from": "system", "value": say()}] if rng.random() < 0.5 else []
    picture = rng.random() < 0.5
    for i in range(rng.randint(1, 6)):
        question = say()
        if picture and i == 0:
            question = rng.choice((
                f"{IMAGE_MARK}\n{question}", f"{question}\n{IMAGE_MARK}", IMAGE_MARK,
            ))
        turns += [human(question), gpt(say())]
    return turns, picture


def test_in_500_random_dialogues_exactly_the_answers_are_supervised():
    """Catches a mask found again by searching strings: answers here hold the template's markers.

    Rebuilt independently: the supervised ids, in order, are each answer's own ids and one <|end|>;
    the others are the questions' ids, the placeholders and the role tokens.
    """
    tokenizer = Tokenizer(train_bpe([" ".join(TRICKY) * 20], 340))
    rng = random.Random(0)
    for _ in range(500):
        turns, picture = random_dialogue(rng)
        n = rng.choice((1, 4, 9))
        ids, is_answer = render(turns, tokenizer, n)
        assert len(ids) == len(is_answer) and all(type(a) is bool for a in is_answer)

        supervised = [i for i, a in zip(ids, is_answer) if a]
        said = [t["value"].strip() for t in turns if t["from"] == "gpt"]
        answers = [tokenizer.encode(" " + text) + [tokenizer.end] for text in said]
        assert supervised == sum(answers, [])
        assert (
            ids.count(tokenizer.end) == len(answers) and ids.count(tokenizer.image) == n * picture
        )

        prompt = [i for i, a in zip(ids, is_answer) if not a]
        asked = [
            part.strip()
            for t in turns if t["from"] != "gpt" for part in t["value"].split(IMAGE_MARK)
        ]
        plain = [i for i in prompt if i < len(tokenizer.ranks)]
        assert plain == sum((tokenizer.encode(" " + text) for text in asked if text), [])
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        roles = {tokenizer.special[f"<|{name}|>"]: role for name, role in names.items()}
        assert [roles[i] for i in ids if i in roles] == [t["from"] for t in turns]


def test_each_image_mark_becomes_its_own_run_of_placeholders():
    """Catches a mark replaced once, or placed before the text it follows.

    "a<image>b<image>" with N = 2: " a", two placeholders, " b", two placeholders.
    """
    ids, _ = render([human("a<image>b<image>")], TOKENIZER, 2)
    image = TOKENIZER.image
    assert ids == [
        TOKENIZER.special["<|user|>"], *b" a", image, image, *b" b", image, image,
        TOKENIZER.special["<|assistant|>"],
    ]
    assert count_images([human("a<image>b<image>"), gpt("c"), human("<image>")]) == 3
    assert count_images([human("none"), {"from": "human"}]) == 0


def test_the_turns_are_left_as_they_were():
    """Catches a template that edits the caller's records."""
    turns = [human(" <image>\na "), gpt(" b ")]
    before = [dict(turn) for turn in turns]
    render(turns, TOKENIZER, 3)
    assert turns == before


@pytest.mark.parametrize("turns, message", [
    ([], "^the conversation has no turns, or a turn is not {from, value}$"),
    ([{"from": "user", "value": "a"}],
     "turn 0 has unknown role 'user', expected human, gpt or system"),
    ([{"value": "a"}], "turn 0 has unknown role None, expected human"),
    ([{"from": "user" * 10 ** 6, "value": "a"}], "^turn 0 has unknown role '(user){9}use, exp"),
    ([gpt("a")], "turn 0 is by gpt, expected system or human"),
    ([human("a"), human("b")], "turn 1 is by human, expected gpt: human and gpt alternate"),
    ([human("a"), gpt("b"), gpt("c")], "turn 2 is by gpt, expected human"),
    ([human("a"), gpt("b"), {"from": "system", "value": "c"}],
     "turn 2 is by system, expected human"),
    ([{"from": "system", "value": "a"}, gpt("b")], "turn 1 is by gpt, expected human"),
    ([{"from": "system", "value": "a"}] * 2, "turn 1 is by system, expected human"),
    ([human(" \n")], "turn 0 by human is empty"),
    ([human("a"), gpt("")], "turn 1 by gpt is empty"),
    ([human("a"), {"from": "gpt", "value": None}], "turn 1 by gpt is empty"),
    ([human("a"), {"from": "gpt"}], "turn 1 by gpt is empty"),
    ([human("a"), gpt("see <image>")], "turn 1 has <image> in an answer"),
])
def test_a_malformed_conversation_is_refused_with_its_turn(turns, message):
    """Catches a dialogue that trains on nothing, or on the wrong side, in silence."""
    with pytest.raises(ValueError, match=message):
        render(turns, TOKENIZER, 1)


# --- LLaVA's templates ---


class Pieces:
    """A tokenizer of SentencePiece's manners: a space belongs to the word behind it. A whole text
    gets a space before it, and so does what stands behind a special token."""

    BOS, EOS, IMAGE = 1, 2, -200
    template = TEMPLATES["vicuna"]
    end, image = EOS, IMAGE

    def __init__(self):
        self.ids: dict[str, int] = {}
        self.marks = {mark: self.encode(mark) for mark in self.template.marks}
        self.marks |= {"<s>": [self.BOS], "</s>": [self.EOS]}
        self.begin = [self.BOS]

    def encode(self, text: str) -> list[int]:
        found = re.findall(r"_?[A-Za-z]+|_?[^A-Za-z_]|_", text.replace(" ", "_"))
        return [self.ids.setdefault(piece, 3 + len(self.ids)) for piece in found]

    def whole(self, text: str) -> list[int]:
        """A text with its special tokens, as LLaVA gets it, <image> included."""
        out = [self.BOS]
        for i, part in enumerate(text.split(IMAGE_MARK)):
            out += [self.IMAGE] if i else []
            for j, piece in enumerate(part.split("</s>")):
                out += ([self.EOS] if j else []) + (self.encode(" " + piece) if piece else [])
        return out


def llava_v1(turns: list[dict], pieces: Pieces) -> tuple[list[int], list[bool]]:
    """LLaVA's own way: render a string, tokenize it, find the answers by counting tokens.

    All is False where its count does not come out, and the dialogue is "ignored".
    """
    said = turns[0]["value"] + " "
    for turn in turns[1:]:
        said += f"USER: {turn['value']} " if turn["from"] == "human" else (
            f"ASSISTANT: {turn['value']}</s>")
    ids = pieces.whole(said)
    learned, at = [True] * len(ids), 1
    learned[0] = False
    for part in said.split("</s>"):
        halves = part.split(" ASSISTANT: ")
        if len(halves) != 2:
            break
        before = len(pieces.whole(halves[0] + " ASSISTANT: ")) - 2   # <s>, and the last lone space
        learned[at:at + before] = [False] * before
        at += len(pieces.whole(part))                                # its <s> stands for the </s>
    learned[at:] = [False] * (len(ids) - at)
    return ids, learned if at == len(ids) else [False] * len(ids)


def test_llavas_v1_template_gives_llavas_ids_and_answers():
    """Catches a role, a space or </s> on the wrong side of the mask, over 500 dialogues.

    Where an answer itself holds "ASSISTANT:", LLaVA's count fails and it learns nothing; ours still
    learns all answers and nothing else.
    """
    rng, pieces, dropped = random.Random(0), Pieces(), 0
    words = ["red", "What", "is", "two.", "cats", "it?", "3", "a,b", "\n", "USER:"]
    for _ in range(500):
        n = rng.randint(1, 6)
        turns = [{"from": "system", "value": "A chat, with a helper."}]
        for i in range(n):
            asked, said = ("So " + " ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in "qa")
            if rng.random() < 0.05:
                said += " ASSISTANT: " + rng.choice(words)
            turns += [human("<image>\n" * (i == 0 and rng.random() < 0.7) + asked), gpt(said)]
        ids, is_answer = render(turns, pieces, 1)
        want_ids, want = llava_v1(turns, pieces)
        assert ids == want_ids
        if any(want):
            assert is_answer == want
        else:
            dropped += 1
            answers = [pieces.encode(" " + t["value"]) + [pieces.EOS] for t in turns[2::2]]
            assert [i for i, a in zip(ids, is_answer) if a] == sum(answers, [])
    assert 20 < dropped < 150


def test_llavas_v1_template_worked_by_hand():
    """<s> S USER: <image>\nq ASSISTANT: a</s> USER: r ASSISTANT: with bytes, N = 2."""
    special = {"<s>": 256, "</s>": 257, "<image>": 258}
    tokenizer = Tokenizer(TOKENIZER.ranks, special=special, template="vicuna")
    turns = [{"from": "system", "value": "S"}, human("<image>\nq"), gpt("a"), human("r")]
    ids, is_answer = render(turns, tokenizer, 2)
    text = [tokenizer.decode([i]) for i in ids]
    assert "".join(text) == (
        "<s> S USER: <image><image> \nq ASSISTANT: a</s> USER: r ASSISTANT:")
    assert [t for t, a in zip(text, is_answer) if a] == [" ", "a", "</s>"]
    said = tokenizer.decode(render(turns[1:], tokenizer, 2).ids)
    assert said.startswith("<s> A chat between a curious human and an artificial intelligence")
    ids, _ = render([turns[0], human("<image><image>")], tokenizer, 1)
    assert tokenizer.decode(ids) == "<s> S USER: <image><image>  ASSISTANT:"
    ids, _ = render([turns[0], human("<image>\n<image>q")], tokenizer, 1)
    assert tokenizer.decode(ids) == "<s> S USER: <image> \n<image> q ASSISTANT:"


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_learns_the_answers_and_their_end(template):
    """Catches: a mark that is learned, an end that is not, a special token's name read as text."""
    names = sorted({name for mark in TEMPLATES[template].marks
                    for name in re.findall(r"<\|\w+\|>|</?s>", mark)} | {"<|image|>"})
    special = {name: 256 + i for i, name in enumerate(names)}
    tokenizer = Tokenizer(TOKENIZER.ranks, special=special, template=template)
    turns = [{"from": "system", "value": "Be kind."}, human("<image>who?"), gpt("I"), human("why?"),
             gpt("so <|end|></s>")]
    ids, is_answer = render(turns, tokenizer, 3)
    learned = tokenizer.decode([i for i, answer in zip(ids, is_answer) if answer])
    t = tokenizer.template
    space = " " if t.spaced else ""
    assert learned == f"{space}I{t.end}{space}so <|end|></s>{t.end}"
    whole = tokenizer.decode(ids).replace(" ", "")
    parts = [t.begin, t.system[0], "Bekind.", t.system[1], t.user[0], "<|image|>" * 3, "who?",
             t.user[1], t.assistant[0], "I", t.end, t.assistant[1], t.user[0], "why?", t.user[1],
             t.assistant[0], "so<|end|></s>", t.end, t.assistant[1]]
    assert whole == "".join(parts).replace(" ", "")
    assert sum(i == tokenizer.end and a for i, a in zip(ids, is_answer)) == 2
    assert ids.count(tokenizer.image) == 3
    asked = render(turns[:-1], tokenizer, 3).ids
    assert ids[:len(asked)] == asked  # an answer begins where its question ends


# --- rows ---


def test_ids_and_mask_of_a_row_are_appended_together():
    """Catches a mask that is shorter than its ids, or of the piece before."""
    row = make_row(([1, 2], False), ([], True), ([3], True), ([4], False))
    assert row == ([1, 2, 3, 4], [False, False, True, False])
    assert append_unread(row, 9) == ([1, 2, 3, 4, 9], [False, False, True, False, False])


def test_a_caption_row_learns_all_but_picture_and_prompt():
    """Catches a trained placeholder, and a caption that never ends.

    "hi" with N = 2: image, image, h, i, end of text; the last three are learned.
    """
    image, end = TOKENIZER.image, TOKENIZER.endoftext
    assert caption_rows(["hi", "\u00e9"], TOKENIZER, 2) == [
        ([image, image, 104, 105, end], [False, False, True, True, True]),
        ([image, image, 195, 169, end], [False, False, True, True, True]),
    ]
    assert caption_rows(["a"], TOKENIZER) == [([97, end], [True, True])]
    with_prompt = caption_rows(["a"], TOKENIZER, 1, prompt=[65, 66], end=True)
    assert with_prompt == [
        ([image, 65, 66, 97, end, TOKENIZER.end], [False, False, False, True, True, False])]


def test_packed_answers_each_stand_behind_the_prompts_last_token():
    """Catches a first token that is predicted from another answer, segments one off.

    Prompt 7 8 9 with answers 1 2 and 3: the 9 stands before each of them.
    """
    row, segments = pack([7, 8, 9], [[1, 2], [3]])
    assert row.ids == [7, 8, 9, 1, 2, 9, 3]
    assert row.is_answer == [False, False, False, True, True, False, True]
    assert segments == [0, 0, 1, 1, 1, 2, 2]


def test_marks_are_counted_against_pictures():
    """Catches a picture too many, which would shift every later one, and bad turns passed over."""
    turns = [human("<image>\nWhat?"), gpt("A dog.")]
    check_turns(turns, 1)
    for n in (0, 2):
        with pytest.raises(ValueError, match=f"^1 <image> marks and {n} pictures$"):
            check_turns(turns, n)
    with pytest.raises(ValueError, match="turn 1 is by human"):
        check_turns([turns[0]] * 2, 2)



def test_a_question_that_refers_back_stands_behind_the_turns_before_it():
    """Catches a follow-up asked without its dialogue, and a picture in its middle."""
    before = [{"from": "human", "value": "Where is the cat?"}, {"from": "gpt", "value": "Left."}]
    ids = prompt_of("And its color?", TOKENIZER, 2, before=before)
    whole = [{"from": "human", "value": "<image>\nWhere is the cat?"}, before[1],
             {"from": "human", "value": "And its color?"}]
    assert ids == render(whole, TOKENIZER, 2).ids
    assert before[0]["value"] == "Where is the cat?"  # the caller's turns stay as they are


def test_no_order_of_the_facts_makes_a_longer_prompt_than_was_counted():
    """Catches a length that is right for one order: "Z" is one token, " Z" are two."""
    letters = Tokenizer({bytes([i]): i for i in range(256)} | {b" A": 256})
    facts = ["A cat.", "Zebras.", "A dog."]
    lengths = {len(prompt_of("Why?", letters, 4, list(order)))
               for order in itertools.permutations(facts)}
    assert len(lengths) == 2 and longest_prompt("Why?", letters, 4, facts) == max(lengths)
    assert longest_prompt("Why?", letters, 4) == len(prompt_of("Why?", letters, 4))


def test_the_word_image_in_a_fact_is_no_picture():
    """Catches a crawled caption with LLaVA's mark, which asks for a second picture in mid-run."""
    plain = prompt_of("What?", TOKENIZER, 3, ["A  dog."])
    assert prompt_of("What?", TOKENIZER, 3, ["A <image> dog."]) == plain
    assert plain.count(TOKENIZER.image) == 3
