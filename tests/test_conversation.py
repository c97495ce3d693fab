"""minivlm/conversation.py: which tokens are answers, worked by hand and rebuilt independently."""

import random

import pytest

from minivlm.conversation import IMAGE_MARK, count_images, render
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

    Two rounds, one picture of two patches; with a byte tokenizer each letter is a token.
    """
    turns = [human("<image>\nhi?"), gpt("ok"), human("so"), gpt("no")]
    assert table(turns, n_image_tokens=2).split("\n") == [
        "<|user|> -",
        "<|image|> -",
        "<|image|> -",
        "h -", "i -", "? -",
        "<|assistant|> -",
        "o answer", "k answer", "<|end|> answer",
        "<|user|> -",
        "s -", "o -",
        "<|assistant|> -",
        "n answer", "o answer", "<|end|> answer",
    ]


def test_a_system_turn_comes_first_and_is_not_trained():
    """Catches a system prompt in the loss."""
    assert table([{"from": "system", "value": "be"}, human("a"), gpt("b")], 1).split("\n") == [
        "<|system|> -", "b -", "e -", "<|user|> -", "a -",
        "<|assistant|> -", "b answer", "<|end|> answer",
    ]


def test_a_last_question_leaves_the_answer_open():
    """Catches a generation prompt that ends with <|end|> or misses <|assistant|>."""
    ids, is_answer = render([human("a")], TOKENIZER, 0)
    assert ids == [TOKENIZER.user, ord("a"), TOKENIZER.assistant] and not any(is_answer)
    whole, _ = render([human("a"), gpt("b")], TOKENIZER, 0)
    assert whole == ids + [ord("b"), TOKENIZER.end]


def test_the_open_prompt_is_what_training_showed_before_the_answer():
    """Catches a template that differs between training and generation."""
    turns = [human("<image>\nwhat is it?"), gpt("a ring"), human("sure?"), gpt("yes")]
    ids, is_answer = render(turns, TOKENIZER, 4)
    last = len("yes") + 1
    assert render(turns[:-1], TOKENIZER, 4) == (ids[:-last], is_answer[:-last])


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
        answers = [tokenizer.encode(text) + [tokenizer.end] for text in said]
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
        assert plain == sum((tokenizer.encode(text) for text in asked if text), [])
        roles = {tokenizer.system: "system", tokenizer.user: "human", tokenizer.assistant: "gpt"}
        assert [roles[i] for i in ids if i in roles] == [t["from"] for t in turns]


def test_each_image_mark_becomes_its_own_run_of_placeholders():
    """Catches a mark replaced once, or placed before the text it follows.

    "a<image>b<image>" with N = 2: a, two placeholders, b, two placeholders.
    """
    ids, _ = render([human("a<image>b<image>")], TOKENIZER, 2)
    image = TOKENIZER.image
    assert ids == [
        TOKENIZER.user, ord("a"), image, image, ord("b"), image, image, TOKENIZER.assistant,
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
    ([], "the conversation has no turns"),
    ([{"from": "user", "value": "a"}],
     "turn 0 has unknown role 'user', expected human, gpt or system"),
    ([{"value": "a"}], "turn 0 has unknown role None"),
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
