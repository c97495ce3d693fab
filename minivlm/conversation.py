"""The chat template: turns in, ids and "which of them are answers" out.

    <|user|> <|image|> x N  question ids   <|assistant|> answer ids <|end|>   <|user|> ...
       -         -             -               -            answer    answer

Ids and mask are appended together, piece by piece (contract 8); nothing is found again afterwards
by searching a string, the mistake that has silently emptied the loss of many a fine-tune.

Turns are LLaVA's own: {"from": "human" | "gpt" | "system", "value": text}, with "<image>" where the
picture belongs. Source: format of haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
"""

from collections.abc import Callable, Iterator

from minivlm.tokenizer import Tokenizer

IMAGE_MARK = "<image>"

Turn = dict[str, str]


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


def render(
    turns: list[Turn], tokenizer: Tokenizer, n_image_tokens: int
) -> tuple[list[int], list[bool]]:
    """Turn a conversation into ids and mark the answer tokens, each answer's <|end|> included.

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
    ids: list[int] = []
    is_answer: list[bool] = []

    def put(piece: list[int], answer: bool = False) -> None:
        ids.extend(piece)
        is_answer.extend([answer] * len(piece))

    for role, value in checked(turns):
        if role == "gpt":
            put(tokenizer.encode(value.strip()), answer=True)
            put([tokenizer.end], answer=True)
            continue
        put([tokenizer.user if role == "human" else tokenizer.system])
        for k, text in enumerate(value.split(IMAGE_MARK)):
            if k:
                put([tokenizer.image] * n_image_tokens)
            if text.strip():
                put(tokenizer.encode(text.strip()))
        if role == "human":
            put([tokenizer.assistant])
    return ids, is_answer


def render_v1(
    turns: list[Turn], encode: Callable[[str], list[int]], bos: int, eos: int, image_id: int,
    n_image_tokens: int = 1,
) -> tuple[list[int], list[bool]]:
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
    ids, is_answer, asked = [bos], [False], ""

    def put(piece: list[int], answer: bool) -> None:
        ids.extend(piece)
        is_answer.extend([answer] * len(piece))

    def put_question() -> None:
        for k, text in enumerate(asked.split(IMAGE_MARK)):
            put([image_id] * n_image_tokens * bool(k) + (encode(text) if text else []), False)

    for role, value in checked(turns):
        if role == "gpt":
            put_question()
            put([*encode(" " + value), eos], True)
            asked = ""
        else:
            asked += f"USER: {value} ASSISTANT:" if role == "human" else f"{value} "
    if asked:  # ready for the answer
        put_question()
    return ids, is_answer


def render_plain(
    caption: str, encode: Callable[[str], list[int]], bos: int, image_id: int,
    n_image_tokens: int = 1,
) -> tuple[list[int], list[bool]]:
    """LLaVA's rows of stage 1: the picture, then the caption and a line break, which are learned.

    Raises:
        ValueError: for an empty caption.

    Source: haotian-liu/LLaVA, llava/train/train.py, preprocess_plain.
    """
    if not caption.strip():
        raise ValueError("the caption is empty")
    before, text = [bos] + [image_id] * n_image_tokens, encode(caption + "\n")
    return before + text, [False] * len(before) + [True] * len(text)


def count_images(turns: list[Turn]) -> int:
    """How many <image> marks the turns hold."""
    return sum(
        turn["value"].count(IMAGE_MARK) for turn in turns if isinstance(turn.get("value"), str)
    )
