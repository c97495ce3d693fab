"""From words to rows: token ids, and which of them are answers that the model learns.

    <|user|> <|image|> x N  question ids   <|assistant|> answer ids <|end|>   <|user|> ...
       -         -             -               -            answer    answer

Every row in the project is made by `make_row`, which appends ids and answer mask together, piece by
piece (contract 8). Nothing is found again afterwards by searching a string, the mistake that has
silently emptied the loss of many a fine-tune.

Turns are LLaVA's own: {"from": "human" | "gpt" | "system", "value": text}, with "<image>" where the
picture belongs. Source: format of haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from minivlm.tokenizer import Tokenizer

IMAGE_MARK = "<image>"

Turn = dict[str, str]


# --- rows ---


class Row(NamedTuple):
    """Token ids of one text, and for each whether it belongs to an answer and is learned."""

    ids: list[int]
    is_answer: list[bool]


def make_row(*pieces: tuple[list[int], bool]) -> Row:
    """Append pieces of text, each with whether it is an answer.

    >>> make_row(([7, 8], False), ([1, 2], True))
    Row(ids=[7, 8, 1, 2], is_answer=[False, False, True, True])
    """
    row = Row([], [])
    for ids, is_answer in pieces:
        row.ids.extend(ids)
        row.is_answer.extend([is_answer] * len(ids))
    return row


def answer_row(prompt: list[int], answer: list[int]) -> Row:
    """A prompt, which is read, and an answer to it, which is learned."""
    return make_row((prompt, False), (answer, True))


def append_unread(row: Row, filler: int) -> Row:
    """Append one token, so that the token before it becomes an input of the model.

    `collate` shifts: a row's last token is only a target, never an input. But a model that
    scores at the last token (a reward model at the end of an answer, BLIP's matching head at
    the end of a caption) must read that token. So the filler becomes the last one; nothing reads
    the filler, and nothing learns it.
    """
    return Row(row.ids + [filler], row.is_answer + [False])


def pack(prompt: list[int], answers: list[list[int]]) -> tuple[Row, list[int]]:
    """One row that holds a prompt once and several answers to it; and the segment of each token.

        ids       prompt without its last token | that token, answer 1 | that token, answer 2 | ...
        segments  0                             | 1                    | 2                    | ...

    The prompt's last token stands before each answer, because the answer's first token is predicted
    there.

    Source: Wang and Hegde 2024, arXiv:2410.20305 (for pairs).

    >>> pack([7, 8], [[1, 2], [3]])[0].ids
    [7, 8, 1, 2, 8, 3]
    >>> pack([7, 8], [[1, 2], [3]])[1]
    [0, 1, 1, 1, 2, 2]
    """
    shared, last = prompt[:-1], prompt[-1:]
    pieces = [(shared, False)]
    segments = [0] * len(shared)
    for k, answer in enumerate(answers, start=1):
        pieces += [(last, False), (answer, True)]
        segments += [k] * (1 + len(answer))
    return make_row(*pieces), segments


def caption_rows(
    captions: Iterable[str],
    tokenizer: Tokenizer,
    n_image_tokens: int = 0,
    prompt: list[int] | None = None,
    end: bool = False,
) -> list[Row]:
    """LLaVA's "plain" rows: the picture, a prompt if there is one, the caption and its end token.

    Caption and end token are learned, picture and prompt are not.

    Args:
        n_image_tokens: N, placeholders before the text; 0 for a text tower.
        prompt: ids before every caption, BLIP's "a picture of".
        end: make the caption's end token an input too, see `append_unread`.

    Source: haotian-liu/LLaVA, llava/train/train.py, preprocess_plain; BLIP, models/blip.py.
    """
    before = [tokenizer.image] * n_image_tokens + (prompt or [])
    rows = []
    for caption in captions:
        row = answer_row(before, tokenizer.encode(caption) + [tokenizer.endoftext])
        rows.append(append_unread(row, tokenizer.end) if end else row)
    return rows


# --- the chat template ---


def checked(turns: list[Turn]) -> Iterator[tuple[str, str]]:
    """Role and text of each turn.

    Raises:
        ValueError: for no turns, an unknown role, two turns of one role in a row, an empty text, or
            an <image> in an answer.
    """
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("the conversation has no turns, or a turn is not {from, value}")
    expected = ("system", "human")
    for i, turn in enumerate(turns):
        role, value = turn.get("from"), turn.get("value")
        if role not in ("system", "human", "gpt"):
            raise ValueError(f"turn {i} has unknown role {role!r}, expected human, gpt or system")
        if role not in expected:
            raise ValueError(
                f"turn {i} is by {role}, expected {' or '.join(expected)}: human and gpt alternate"
            )
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"turn {i} by {role} is empty")
        if role == "gpt" and IMAGE_MARK in value:
            raise ValueError(
                f"turn {i} has {IMAGE_MARK} in an answer; a picture belongs to a question"
            )
        expected = ("gpt",) if role == "human" else ("human",)
        yield role, value


def render(turns: list[Turn], tokenizer: Tokenizer, n_image_tokens: int) -> Row:
    """Turn a conversation into a row; each answer's <|end|> is part of the answer.

    Args:
        turns: an optional system turn, then human and gpt in alternation; a last human turn is
            followed by an open <|assistant|>, ready for the answer.
        tokenizer: gives the ids.
        n_image_tokens: N, placeholders for each <image>.

    Returns:
        ids and is_answer, of equal length.

    Raises:
        ValueError: as `checked`.

    Source: masking of LLaVA, arXiv:2304.08485, table 2 (only the answer's tokens are in the loss).
    """
    pieces: list[tuple[list[int], bool]] = []
    for role, value in checked(turns):
        if role == "gpt":
            pieces.append((tokenizer.encode(value.strip()) + [tokenizer.end], True))
            continue
        pieces.append(([tokenizer.user if role == "human" else tokenizer.system], False))
        for k, text in enumerate(value.split(IMAGE_MARK)):
            if k > 0:  # a picture stands between two pieces of text
                pieces.append(([tokenizer.image] * n_image_tokens, False))
            if text.strip():
                pieces.append((tokenizer.encode(text.strip()), False))
        if role == "human":
            pieces.append(([tokenizer.assistant], False))
    return make_row(*pieces)


def prompt_of(
    question: str, tokenizer: Tokenizer, n_image_tokens: int, facts: Sequence[str] = ()
) -> list[int]:
    """The ids of a question about a picture, up to where its answer begins.

    Args:
        facts: true captions of the picture, shown before the question. A reward model that reads
            them need not guess what the picture shows (factually augmented RLHF, LLaVA-RLHF,
            arXiv:2309.14525, section 3.2).
    """
    lines = [IMAGE_MARK, *facts, question]
    turns = [{"from": "human", "value": "\n".join(lines)}]
    return render(turns, tokenizer, n_image_tokens).ids


def render_v1(
    turns: list[Turn], encode: Callable[[str], list[int]], bos: int, eos: int, image_id: int,
    n_image_tokens: int = 1,
) -> Row:
    """The same for LLaVA-1.5's template, for people who bring its weights.

        <s>SYSTEM USER: question ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>
        learned:                           -----------                         -----------

    LLaVA renders a string, then finds the answers in it by counting tokens, and drops the dialogue
    where the count does not come out; here each piece is known for what it is.

    Args:
        turns: as for `render`; the system turn holds the words before the first USER, and each
            <image> stands where it is meant (LLaVA's trainer first moves it to the start of its
            turn and adds a line break, as data/llava/prepare.py does).
        encode: text -> ids, no special ones among them. An answer comes with the space before it;
            a SentencePiece tokenizer that adds one of its own is given
            `lambda text: encode(text.removeprefix(" "))`.
        bos, eos: ids of <s> and </s>.
        image_id: what stands for one image token; LLaVA puts a single -200 for each picture.

    Raises:
        ValueError: as `checked`.

    Source: haotian-liu/LLaVA, llava/conversation.py (conv_vicuna_v1) and preprocess_v1.
    """
    pieces: list[tuple[list[int], bool]] = [([bos], False)]
    asked = ""

    def close_question() -> None:
        for k, text in enumerate(asked.split(IMAGE_MARK)):
            if k > 0:
                pieces.append(([image_id] * n_image_tokens, False))
            if text:
                pieces.append((encode(text), False))

    for role, value in checked(turns):
        if role == "gpt":
            close_question()
            pieces.append(([*encode(" " + value), eos], True))
            asked = ""
        elif role == "human":
            asked += f"USER: {value} ASSISTANT:"
        else:
            asked += f"{value} "
    if asked:  # ready for the answer
        close_question()
    return make_row(*pieces)


def count_images(turns: list[Turn]) -> int:
    """How many <image> marks the turns hold."""
    return sum(
        turn["value"].count(IMAGE_MARK) for turn in turns if isinstance(turn.get("value"), str)
    )
