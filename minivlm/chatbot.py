"""A chatbot that answers while one waits: a trained model, its tokenizer, its way to see.

chat.py talks to one in a terminal, serve.py to several in a browser.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minivlm.conversation import Turn, render
from minivlm.generate import stream
from minivlm.loading.images import fit, open_image, to_tensor
from minivlm.loading.models import fit_of, place, vlm_from
from minivlm.running import checkpoint, machine

SHIPPED = Path(__file__).parents[1] / "chatbots"  # weights that come with the repository


def find(run: str) -> str:
    """Return a run folder, or the shipped weights of that stage if there is no such folder.

    >>> find("runs/of nobody")
    'runs/of nobody'
    """
    path = Path(run)
    shipped = SHIPPED / f"{path.name}.pt"
    if path.exists() or path.parent != Path("runs") or not shipped.is_file():
        return run
    return str(shipped)


class Chatbot:
    """A trained model that answers questions.

    Args:
        state: a checkpoint, or published weights; its tensors are taken out of it.
        device: where it computes.
        dtype: auto, float32 or bfloat16, see `machine.is_bfloat16`.
        mode: how pictures are made square, see `images.fit`; "auto": as in training.

    Raises:
        ValueError: as `vlm_from` and `tokenizer_of`.
    """

    def __init__(
        self, state: dict, device: torch.device, dtype: str = "auto", mode: str = "auto"
    ):
        self.tokenizer = checkpoint.tokenizer_of(state)
        half = machine.is_bfloat16(device, dtype)
        self.model = vlm_from(state, take=True, half=half).requires_grad_(False).eval()
        place(self.model, device, half)
        self.device = device
        self.dtype = dtype
        self.size = self.model.config.vit.image_size
        self.mode = fit_of(state) if mode == "auto" else mode
        self.stop = self.tokenizer.stop(state["stage"])

    def look(self, source: str | Path | io.BytesIO) -> Tensor:
        """Make a picture what the model sees: (1, 3, S, S). Raises as `open_image`."""
        pixels = np.asarray(fit(open_image(source), self.size, self.mode))       # (S, S, 3)
        return to_tensor(pixels)[None].to(self.device)

    def answer(self, turns: list[Turn], images: Tensor | None, **drawing) -> Iterator[str]:
        """Answer the last turn: yield the text piece by piece, as the model writes it.

        Args:
            turns: a conversation that ends with a question.
            images: (n, 3, S, S), the pictures of all turns, or None if there are none.
            drawing: max_new_tokens, temperature, generator and others, see `generate.stream`.

        Raises:
            ValueError: if the conversation does not fit the context, or names another number
                of pictures than `images` has.
        """
        ids, _ = render(turns, self.tokenizer, self.model.config.vit.n_tokens)
        size = self.model.config.gpt.block_size
        if len(ids) >= size:
            raise ValueError(
                f"the conversation has {len(ids)} tokens, and the context holds {size} with the "
                "answer; begin a new one"
            )
        tokens = stream(self.model, images, [ids], stop=self.stop, **drawing)
        written: list[int] = []
        shown = ""
        while True:
            # entered anew for each token: between two of them, another answer may be written
            with machine.autocast(self.device, self.dtype):
                [token] = next(tokens, [None])
            if token is None or token == self.stop:
                break
            written.append(token)
            text = self.tokenizer.decode(written).lstrip()
            # if the text ends within a character, its other bytes come with the next tokens
            if not text.endswith("\ufffd") and text != shown:
                yield text[len(shown):]
                shown = text
        text = self.tokenizer.decode(written).lstrip()
        if text != shown:
            yield text[len(shown):]
