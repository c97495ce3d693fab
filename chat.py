"""Talk about a picture with a trained run, in the terminal.

    python chat.py --image data/shapes/prepared/samples/0.png
    python chat.py --image scene.png --ask "How many circles are there?"

Three lines have a meaning of their own in a conversation:

    an empty line, or Ctrl-D    ends it
    /new                        starts a new conversation about the same picture
    /image PATH                 starts a new conversation about another picture

Reads: a run folder of train_sft.py, train_ppo.py, train_dpo.py, train_align.py or
train_caption.py.
"""

from dataclasses import dataclass

import numpy as np
import torch

from minivlm.conversation import IMAGE_MARK, Turn, render
from minivlm.generate import stream
from minivlm.loading.images import fit, open_image, to_tensor
from minivlm.loading.models import vlm_from
from minivlm.running import checkpoint, machine, options
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

# --- config ---


@dataclass
class Config:
    """Options of the conversation; the comments are the help texts."""

    # conversation
    run: str = "runs/sft"  # run folder of the model
    image: str = ""  # picture file to talk about; empty = talk without a picture
    ask: str = ""  # a question to ask once, then exit; empty = a conversation
    fit: str = "crop"  # crop | pad | stretch; how the picture is made square
    # answers
    max_new_tokens: int = 128  # >= 1; most tokens of an answer
    temperature: float = 0.0  # >= 0; 0 = the likeliest token, 1 = the model's distribution
    top_k: int = 0  # >= 0; draw from the k likeliest tokens only; 0 = from all
    top_p: float = 1.0  # 0 .. 1; draw from the likeliest tokens of this total probability
    # machine
    seed: int = 0  # >= 0; decides what is drawn at temperatures above 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice


# --- answer ---


def answer(
    model: VLM, tokenizer: Tokenizer, turns: list[Turn], images: torch.Tensor | None,
    cfg: Config, generator: torch.Generator, stop: int,
) -> str:
    """Print the answer to the last turn while the model writes it; return the answer.

    Args:
        images: (1, 3, S, S), or None without a picture.
        generator: for draws at temperatures above 0.
        stop: the id that ends the answer.

    Raises:
        ValueError: if the conversation and the answer do not fit the context.
    """
    ids, _ = render(turns, tokenizer, model.config.vit.n_tokens)
    written: list[int] = []
    shown = ""
    for (token,) in stream(
        model, images, [ids], max_new_tokens=cfg.max_new_tokens, stop=stop,
        generator=generator, temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p,
    ):
        if token is None or token == stop:
            break
        written.append(token)
        text = tokenizer.decode(written)
        # if the text ends within a character, its other bytes come with the next tokens
        if not text.endswith("\ufffd"):
            print(options.printable(text[len(shown):]), end="", flush=True)
            shown = text
    print()
    return tokenizer.decode(written)


def load_picture(
    path: str, cfg: Config, size: int, device: torch.device
) -> torch.Tensor | None:
    """Load a picture as the model takes it, (1, 3, S, S); return None for an empty path."""
    if not path:
        return None
    pixels = np.asarray(fit(open_image(path), size, cfg.fit))        # (S, S, 3)
    return to_tensor(pixels)[None].to(device)


def typed() -> str:
    """Return the next line that the user types; "" at the end of the input."""
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def main(cfg: Config) -> dict[str, float]:
    """Load the run, then answer once or talk until the user stops."""
    options.check(cfg)

    # --- model ---
    machine.seed_everything(cfg.seed, cfg.threads)
    device = machine.pick_device(cfg.device)
    state = checkpoint.load(cfg.run, ("sft", "dpo", "ppo", "align", "caption"), device)
    tokenizer = Tokenizer.from_text(state["tokenizer"])
    model = vlm_from(state).to(device).eval()
    size = model.config.vit.image_size
    stop = tokenizer.stop(state["stage"])
    generator = torch.Generator(device).manual_seed(cfg.seed)

    # --- conversation ---
    images = load_picture(cfg.image, cfg, size, device)
    turns: list[Turn] = []
    while True:
        question = cfg.ask or typed()
        if not question:
            break
        if question == "/new":
            turns = []
            continue
        if question.startswith("/image "):
            path = question.removeprefix("/image ").strip()
            try:
                images = load_picture(path, cfg, size, device)
                turns = []
            except (ValueError, FileNotFoundError) as error:
                # the old picture and its conversation stay
                print(options.printable(str(error)))
            continue
        # the user cannot add a picture by typing its mark
        question = question.replace(IMAGE_MARK, "image")
        if images is not None and not turns:
            question = f"{IMAGE_MARK}\n{question}"
        turns.append({"from": "human", "value": question})
        try:
            text = answer(model, tokenizer, turns, images, cfg, generator, stop)
        except ValueError as error:
            if cfg.ask:
                raise
            print(f"{error} (/new starts a new conversation)")
            turns.pop()
            continue
        # render refuses an empty answer
        turns.append({"from": "gpt", "value": text.strip() or "..."})
        if cfg.ask:
            break
    return {}


if __name__ == "__main__":
    options.cli(main, Config)
