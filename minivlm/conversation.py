"""From words to rows: token ids, and which of them are answers that the model learns.

    <|user|> <|image|> x N  question ids   <|assistant|> answer ids <|end|>   <|user|> ...
       -         -             -               -            answer    answer

`make_row` makes every row of this project. It appends ids and answer mask together, piece
by piece (contract 8 in README.md). Many projects render one string and then search it for
the answers. Where such a search fails, fine-tuning learns nothing, and nobody is told.

A turn is as in LLaVA: {"from": "human" | "gpt" | "system", "value": text}, with "<image>"
where the picture belongs. Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from minivlm.tokenizer import Tokenizer

IMAGE_MARK = "<image>"

Turn = dict[str, str]


# --- rows ---


class Row(NamedTuple):
    """The token ids of one text, and whether each is part of an answer and is learned."""

    ids: list[int]
    is_answer: list[bool]


def make_row(*pieces: tuple[list[int], bool]) -> Row:
    """Join pieces of text into one row; a piece is its ids, and whether it is an answer.

    >>> make_row(([7, 8], False), ([1, 2], True))
    Row(ids=[7, 8, 1, 2], is_answer=[False, False, True, True])
    """
    row = Row([], [])
    for ids, is_answer in pieces:
        row.ids.extend(ids)
        row.is_answer.extend([is_answer] * len(ids))
    return row


def answer_row(prompt: list[int], answer: list[int]) -> Row:
    """Make a row of a prompt, which is only read, and an answer, which is learned."""
    return make_row((prompt, False), (answer, True))


def append_unread(row: Row, filler: int) -> Row:
    """Append one token, so that the token before it becomes an input of the model.

    `collate` shifts the targets, so a row's last token is only a target, never an input.
    But two heads need that token as an input: the reward model's, which reads whole answers
    (`pack_unread`), and BLIP's matching head, which reads the end of a caption. With the
    filler behind it, that token is an input. No model reads the filler, and no model learns
    it.
    """
    return Row(row.ids + [filler], row.is_answer + [False])


def pack(prompt: list[int], answers: list[list[int]]) -> tuple[Row, list[int]]:
    """Put a prompt and several answers to it into one row; return it and its segments.

        ids       prompt without its last token | last, answer 1 | last, answer 2 | ...
        segments  0                             | 1              | 2              | ...

    `last` is the prompt's last token. It stands before every answer, because the output at
    this token predicts the answer's first token.

    Args:
        prompt: at least one id.
        answers: the ids of each answer, with its end token.

    Returns:
        the row, and the segment of each of its tokens.

    Source: Wang and Hegde 2024, arXiv:2410.20305, where a row holds two answers.

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


def pack_unread(
    prompt: list[int], answers: list[list[int]], filler: int
) -> tuple[Row, list[int]]:
    """Pack as `pack` does, with a filler behind the last answer as in `append_unread`."""
    row, segments = pack(prompt, answers)
    return append_unread(row, filler), segments + segments[-1:]


def spoken(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of what a speaker says.

    White space around it is dropped, but in LLaVA's template ("vicuna"). There and in our
    template, one space is put before it, as in "USER: yes". So its first word has the same
    id as in the middle of a text: what a model has learned of " red" holds for an answer of
    this one word, too.

    Source: haotian-liu/LLaVA, llava/conversation.py, whose templates have the same space.
    """
    space = " " if tokenizer.template.spaced else ""
    if not tokenizer.template.keeps_space:
        text = text.strip()
    return tokenizer.encode(space + text)


def caption_rows(
    captions: Iterable[str],
    tokenizer: Tokenizer,
    n_image_tokens: int = 0,
    prompt: list[int] | None = None,
    end: bool = False,
) -> list[Row]:
    """Make LLaVA's "plain" rows: picture, prompt if there is one, caption, <|endoftext|>.

    Caption and <|endoftext|> are learned; picture and prompt are only read.

    Args:
        n_image_tokens: N, placeholders before the text; 0 for a text tower.
        prompt: ids before every caption, such as those of BLIP's "a picture of".
        end: whether <|endoftext|> shall be an input too, see `append_unread`.

    Source: haotian-liu/LLaVA, llava/train/train.py, preprocess_plain; BLIP, models/blip.py.
    """
    before = [*tokenizer.begin, *[tokenizer.image] * n_image_tokens, *(prompt or [])]
    rows = []
    for caption in captions:
        row = answer_row(before, tokenizer.encode(caption) + [tokenizer.endoftext])
        rows.append(append_unread(row, tokenizer.end) if end else row)
    return rows


# --- the chat template ---


def checked(turns: list[Turn]) -> Iterator[tuple[str, str]]:
    """Check the turns one by one, and yield role and text of each.

    Raises:
        ValueError: if there are no turns, a role is unknown, human and gpt do not
            alternate, a text is empty, or an answer holds an <image>.
    """
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("the conversation has no turns, or a turn is not {from, value}")
    expected = ("system", "human")
    for i, turn in enumerate(turns):
        role, value = turn.get("from"), turn.get("value")
        if role not in ("system", "human", "gpt"):
            raise ValueError(
                f"turn {i} has unknown role {repr(role)[:40]}, expected human, gpt or "
                "system"
            )
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
    """Render a conversation as a row, in the tokenizer's chat template.

    The token that ends an answer is part of the answer. White space around a text is
    dropped, but in LLaVA's template ("vicuna").

    LLaVA's code renders the dialogue as one string. Then it counts tokens to find the
    answers. If its count is wrong, it leaves the whole dialogue out of the loss. Here each
    piece is marked as answer or not when it is appended.

    Args:
        turns: an optional system turn, then human and gpt turns in alternation. After a
            last human turn the row ends where an answer would begin.
        tokenizer: gives the ids and the template.
        n_image_tokens: N, placeholders for each <image>.

    Returns:
        ids and is_answer, of equal length.

    Raises:
        ValueError: as `checked`.

    Source: LLaVA, arXiv:2304.08485, table 2: only the answers' tokens are in the loss;
    haotian-liu/LLaVA, llava/conversation.py (conv_vicuna_v1) and preprocess_v1.
    """
    template, marks = tokenizer.template, tokenizer.marks
    pieces = [(tokenizer.begin, False)]
    if template.default_system and turns and turns[0].get("from") != "system":
        turns = [{"from": "system", "value": template.default_system}, *turns]
    for role, value in checked(turns):
        if role == "gpt":
            pieces.append((spoken(value, tokenizer) + [tokenizer.end], True))
            pieces.append((marks[template.assistant[1]], False))
            continue
        before, behind = template.user if role == "human" else template.system
        pieces.append((marks[before], False))
        texts = value.split(IMAGE_MARK)
        for k, text in enumerate(texts):
            if k > 0:  # a picture stands between two pieces of text
                pieces.append(([tokenizer.image] * n_image_tokens, False))
            is_kept = bool(text.strip())
            if template.keeps_space:  # a turn begins and ends with a space
                is_kept = bool(text) or k in (0, len(texts) - 1)
            if is_kept:
                pieces.append((spoken(text, tokenizer), False))
        pieces.append((marks[behind], False))
        if role == "human":
            pieces.append((marks[template.assistant[0]], False))
    return make_row(*pieces)


def prompt_of(
    question: str, tokenizer: Tokenizer, n_image_tokens: int, facts: Sequence[str] = (),
    before: Sequence[Turn] = (),
) -> list[int]:
    """Return the ids before the answer to a question about one picture.

    Args:
        n_image_tokens: N, placeholders for the picture.
        facts: true captions of the picture; they stand before the question. A reward model
            that reads them need not guess what the picture shows (factually augmented RLHF,
            LLaVA-RLHF, arXiv:2309.14525, section 3.2).
        before: earlier turns, questions and answers without a picture's mark, if the
            question refers back to them.
    """
    # a caption from the web may contain the mark: it is no second picture
    text = "\n".join([*facts, question]).replace(IMAGE_MARK, "")
    first, *others = [*before, {"from": "human", "value": text}]
    first = first | {"value": f"{IMAGE_MARK}\n{first['value']}"}
    return render([first, *others], tokenizer, n_image_tokens).ids


def longest_prompt(
    question: str, tokenizer: Tokenizer, n_image_tokens: int, facts: Sequence[str] = ()
) -> int:
    """Count the tokens of a prompt, with its facts in the order that needs most.

    Only the choice of the first fact matters. A space stands before the first fact, a line
    break before every other one. Takes its arguments as `prompt_of`.
    """
    orders = [[fact, *facts[:i], *facts[i + 1:]] for i, fact in enumerate(facts)] or [[]]
    return max(len(prompt_of(question, tokenizer, n_image_tokens, order)) for order in orders)


def check_turns(turns: list[Turn], n_images: int) -> None:
    """Check the turns as `checked` does, and that they have an <image> for each picture.

    Raises:
        ValueError: as `checked`; or if there are more or fewer <image> marks.
    """
    for _ in checked(turns):
        pass
    n_marks = count_images(turns)
    if n_marks != n_images:
        raise ValueError(f"{n_marks} {IMAGE_MARK} marks and {n_images} pictures")


def count_images(turns: list[Turn]) -> int:
    """Count the <image> marks in all turns."""
    return sum(
        turn["value"].count(IMAGE_MARK) for turn in turns if isinstance(turn.get("value"), str)
    )
