"""Talk about a picture with a trained run, in the terminal.

    python chat.py --image data/shapes/prepared/samples/0.png
    python chat.py --image scene.png --ask "How many circles are there?"

In the conversation: an empty line or Ctrl-D ends it, /new forgets the turns so far, /image PATH
takes another picture. Reads: a run folder of train_sft.py, train_ppo.py, train_dpo.py,
train_align.py or train_caption.py.
"""

from minivlm.loading.models import vlm_from
from dataclasses import dataclass

import numpy as np
import torch

from minivlm.conversation import IMAGE_MARK, Turn, render
from minivlm.generate import stream
from minivlm.loading.images import fit, open_image, to_tensor
from minivlm.running import checkpoint, machine, options
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

# --- config ---


@dataclass
class Config:
    """Options; the comments are the help texts."""

    run: str = "runs/sft"  # run folder with the model
    image: str = ""  # picture to talk about; empty = talk without one
    ask: str = ""  # ask this once and exit; empty = a conversation
    fit: str = "crop"  # how the picture is made square: crop, pad, stretch
    max_new_tokens: int = 128  # longest answer in tokens
    temperature: float = 0.0  # 0 = always the likeliest token; 1 = the model's own distribution
    top_k: int = 0  # keep only so many likeliest tokens; 0 = all
    top_p: float = 1.0  # keep the likeliest tokens that make up this probability
    seed: int = 0  # for temperatures above 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0 = torch's choice

    def __post_init__(self):
        if (
            self.temperature < 0 or not 0 < self.top_p <= 1
            or self.top_k < 0 or self.max_new_tokens < 1
        ):
            raise ValueError(
                "expected temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_new_tokens >= 1"
            )


# --- answer ---


def answer(
    model: VLM, tokenizer: Tokenizer, turns: list[Turn], images: torch.Tensor | None, cfg: Config,
    generator: torch.Generator, stop: int,
) -> str:
    """Print the answer to the last turn while it is written; return it."""
    ids, _ = render(turns, tokenizer, model.config.vit.n_tokens)
    out: list[int] = []
    shown = ""
    for (token,) in stream(
        model, images, [ids], max_new_tokens=cfg.max_new_tokens, stop=stop,
        generator=generator, temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p,
    ):
        if token is None or token == stop:
            break
        out.append(token)
        text = tokenizer.decode(out)
        if not text.endswith("\ufffd"):  # half a character waits for its other half
            print(options.printable(text[len(shown):]), end="", flush=True)
            shown = text
    print()
    return tokenizer.decode(out)


def load_picture(path: str, cfg: Config, size: int, device: torch.device) -> torch.Tensor | None:
    """The picture as the model takes it, (1, 3, S, S), or None for an empty path."""
    if not path:
        return None
    return to_tensor(np.asarray(fit(open_image(path), size, cfg.fit)))[None].to(device)


def main(cfg: Config) -> dict[str, float]:
    """Load the run, then answer once or talk until the user stops."""
    machine.seed_everything(cfg.seed, cfg.threads)
    device = machine.pick_device(cfg.device)
    state = checkpoint.load(cfg.run, ("sft", "dpo", "ppo", "align", "caption"), device)
    tokenizer, model = (
        Tokenizer.from_text(state["tokenizer"]), vlm_from(state).to(device).eval()
    )
    size = model.config.vit.image_size
    stop = tokenizer.stop(state["stage"])
    generator = torch.Generator(device).manual_seed(cfg.seed)

    images, turns = load_picture(cfg.image, cfg, size, device), []
    while True:
        try:
            question = cfg.ask or input("you: ").strip()
        except EOFError:
            question = ""
        if not question:
            break
        if question == "/new":
            turns = []
            continue
        if question.startswith("/image "):
            try:
                images, turns = (
                    load_picture(question.removeprefix("/image ").strip(), cfg, size, device), []
                )
            except (ValueError, FileNotFoundError) as error:
                print(options.printable(str(error)))  # keep the picture and the conversation there are
            continue
        # a mark typed by the user is text, as special tokens are
        question = question.replace(IMAGE_MARK, "image")
        value = f"{IMAGE_MARK}\n{question}" if images is not None and not turns else question
        turns.append({"from": "human", "value": value})
        try:
            said = answer(model, tokenizer, turns, images, cfg, generator, stop)
        except ValueError as error:
            if cfg.ask:
                raise
            print(f"{error} (/new starts afresh)")
            turns.pop()
            continue
        turns.append({"from": "gpt", "value": said.strip() or "..."})
        if cfg.ask:
            break
    return {}


if __name__ == "__main__":
    options.cli(main, Config)
