"""The chat template: turns in, ids and "which of them are answers" out.

    <|user|> <|image|> x N  question ids   <|assistant|> answer ids <|end|>   <|user|> ...
       -         -             -               -            answer    answer

Ids and mask are appended together, piece by piece (contract 8); nothing is found again afterwards
by searching a string, the mistake that has silently emptied the loss of many a fine-tune.

Turns are LLaVA's own: {"from": "human" | "gpt" | "system", "value": text}, with "<image>" where the
picture belongs. Source: format of haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
"""

from minivlm.tokenizer import Tokenizer

IMAGE_MARK = "<image>"

Turn = dict[str, str]


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
        ValueError: for no turns, an unknown role, two turns of one role in a row, an empty text, or
            an <image> in an answer.

    Source: masking of LLaVA, arXiv:2304.08485, table 2 (only the answer's tokens are in the loss).
    """
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("the conversation has no turns, or a turn is not {from, value}")
    ids: list[int] = []
    is_answer: list[bool] = []

    def put(piece: list[int], answer: bool = False) -> None:
        ids.extend(piece)
        is_answer.extend([answer] * len(piece))

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
        if role == "gpt":
            if IMAGE_MARK in value:
                raise ValueError(
                    f"turn {i} has {IMAGE_MARK} in an answer; a picture belongs to a question"
                )
            put(tokenizer.encode(value.strip()), answer=True)
            put([tokenizer.end], answer=True)
            expected = ("human",)
        else:
            put([tokenizer.user if role == "human" else tokenizer.system])
            for k, text in enumerate(value.split(IMAGE_MARK)):
                if k:
                    put([tokenizer.image] * n_image_tokens)
                if text.strip():
                    put(tokenizer.encode(text.strip()))
            if role == "human":
                put([tokenizer.assistant])
            expected = ("gpt",) if role == "human" else ("human",)
    return ids, is_answer


def count_images(turns: list[Turn]) -> int:
    """How many <image> marks the turns hold."""
    return sum(
        turn["value"].count(IMAGE_MARK) for turn in turns if isinstance(turn.get("value"), str)
    )
