"""Write docs/tour.ipynb, a walk through the recipe in a notebook, or check what it shows.

    python results/tour.py            execute the cells; fail if one raises, or prints other
                                      words than the notebook holds
    python results/tour.py --write    execute the cells, and write the notebook

The notebook's cells stand below as text. They are executed in order in one namespace, and
what they print and display is stored in the notebook. Needs the weights in chatbots/. One
CPU thread, half a minute.
"""

import base64
import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


class Cell(NamedTuple):
    """A cell of the notebook; its name is its id."""

    name: str
    kind: str  # "markdown" or "code"
    source: str


def markdown(name: str, source: str) -> Cell:
    """A cell of prose."""
    return Cell(name, "markdown", source.strip())


def code(name: str, source: str) -> Cell:
    """A cell of code."""
    return Cell(name, "code", source.strip())


# --- the cells ---

CELLS = (
    markdown("title", """
# A tour of the recipe, in one picture

One scene of the picture book goes through the whole recipe: how it is drawn and described, what
the chatbot reads and learns of it, how CLIP begins to tell pictures apart, where the chatbot
looks while it answers, and what DPO has changed.

The scene was chosen because the chatbot of stage 3b makes a mistake in it that DPO repairs. The
weights are those in `chatbots/`. Everything runs on one CPU thread in about half a minute, with a
kernel of the environment in which the checkout is installed. `python results/tour.py` executes
these cells without Jupyter, and fails if they print other words than stand here.
"""),
    code("setup", r'''
import math
import random
import textwrap
import time

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from minivlm.loading.images import enlarged, to_tensor

try:
    display  # Jupyter and results/tour.py have it
except NameError:
    from IPython.display import display

torch.manual_seed(0)
torch.set_num_threads(1)
FONT, SMALL = ImageFont.load_default(15), ImageFont.load_default(12)


def shade(x):
    """The color of a number: -1 is orange, 0 white, 1 blue."""
    end = np.array((80, 150, 230) if x > 0 else (235, 140, 60))
    return tuple((255 + min(abs(x), 1) * (end - 255)).astype(int).tolist())
'''),
    code("draw-boxes", r'''
def boxes(words, fills, below, width=880):
    """Draw words in boxes, line by line, with a smaller text below each."""
    places, x, y = [], 0, 0
    for word, text in zip(words, below):
        w = max(FONT.getlength(word), SMALL.getlength(text)) + 12
        if x + w >= width:
            x, y = 0, y + 54
        places.append((x, y, w))
        x += w + 4
    sheet = Image.new("RGB", (width, y + 46), "white")
    pen = ImageDraw.Draw(sheet)
    for word, fill, text, (x, y, w) in zip(words, fills, below, places):
        pen.rounded_rectangle((x, y, x + w, y + 24), 4, fill, "#d0d0d0")
        pen.text((x + w / 2, y + 12), word, "black", FONT, "mm")
        pen.text((x + w / 2, y + 35), text, "#555555", SMALL, "mm")
    return sheet
'''),
    markdown("scene-text", """
## 1. A scene

`make_scene` decides what is there, from a seed. `draw` draws it, and measures how well each thing
can be seen. So the truth about every picture is known. One thing of this scene is barely visible:
the annotation lists a chair, and the picture hardly shows it.
"""),
    code("scene", r'''
from data.book import language, world

scene = world.make_scene("tour 0")
pixels = world.draw(scene)                                       # (S, S, 3)
display(enlarged(pixels, 240))
print(f"{scene.place}, {scene.time}")
for t in scene.things:
    notes = [world.PLACES[t.cell], f"visibility {t.visibility:.2f}"]
    if t.hidden:
        notes.append(f"barely visible: {t.hidden}")
    if t.unusual:
        notes.append(f"unusual: {language.strange(t, scene)}")
    print(f"- {t.size} {t.name}: {', '.join(notes)}")
'''),
    markdown("captions-text", """
Captions speak of the visible things alone. Stages 1 and 2 learn from them.
"""),
    code("captions", r'''
captions = language.captions(scene, random.Random(0))
print("\n".join(captions))
assert not any("pink chair" in caption for caption in captions)
'''),
    markdown("tokens-text", """
## 2. From a dialogue to targets

The data engine writes a dialogue about the scene. `render` turns it into one row: ids, and whether
each id is part of an answer. `collate` shifts the targets, here and nowhere else: below each token
stands the token that the model must predict there. Where nothing stands, the target is -100. Blue
tokens are part of an answer. At the orange placeholders the model reads the picture's N = 9
projected patches.
"""),
    code("chatbots", r'''
from minivlm.chatbot import SHIPPED, Chatbot
from minivlm.running import checkpoint
from minivlm.tokenizer import CHATBOTS


def load(stage):
    """A chatbot that comes with the repository."""
    state = checkpoint.load(SHIPPED / f"{stage}.pt", CHATBOTS)
    return Chatbot(state, torch.device("cpu"))


sft, dpo = load("sft"), load("dpo")
tokenizer = sft.tokenizer
config = sft.model.config
N, block_size = config.vit.n_tokens, config.gpt.block_size
images = to_tensor(pixels)[None]                                 # (1, 3, S, S)
print(f"{sum(p.numel() for p in sft.model.parameters()):,} weights, N = {N} image tokens")
'''),
    code("tokens", r'''
from data.book.prepare import dialogue_of, record_of
from minivlm.conversation import render
from minivlm.loading.batches import collate
from minivlm.losses import IGNORE_INDEX

record = record_of(scene, "tour", "")
turns = dialogue_of(record, random.Random(13), level=1)
row = render(turns, tokenizer, N)
batch = collate([row], tokenizer.pad, block_size, images=images, n_images=[1])


def words(ids):
    """The text of each token; nothing where no token is."""
    return ["" if i == IGNORE_INDEX else tokenizer.decode([i]).strip() for i in ids]


idx, targets = batch.idx[0].tolist(), batch.targets[0].tolist()
is_image = [i == tokenizer.image for i in idx]
fills = [shade(0.6 * a - 0.6 * b) for a, b in zip(row.is_answer, is_image)]
display(boxes(words(idx), fills, words(targets)))
n_learned = int(batch.n_supervised)
print(f"{n_learned} of {len(idx)} positions are learned")
assert targets[:-1] == [i if a else -100 for i, a in zip(idx[1:], row.is_answer[1:])]
'''),
    code("answer-loss", r'''
from minivlm.losses import next_token_loss

V = config.gpt.vocab_size
with torch.no_grad():
    at = batch.targets != IGNORE_INDEX                           # (B, T)
    logits = sft.model(batch.idx, batch.images, at=at)           # (M, V)
loss = next_token_loss(logits, batch.targets[at])
no_idea = next_token_loss(torch.zeros_like(logits), batch.targets[at])
print(f"loss of the answers {loss:.3f}; of a model that knows nothing {no_idea:.3f}")
assert math.isclose(no_idea, math.log(V), rel_tol=1e-5)
'''),
    markdown("clip-text", """
## 3. CLIP: which caption fits which picture?

InfoNCE compares each picture with all captions of its batch. If all vectors of a batch are equal,
the loss is ln B. Fresh towers give vectors that hardly differ, so a training starts a little above
ln B: the temperature 0.07 makes the small differences fourteen times larger.

A small CLIP is trained here, for 80 steps, on new scenes in every step.
"""),
    code("clip", r'''
from minivlm.clip import CLIP, CLIPConfig
from minivlm.conversation import caption_rows
from minivlm.losses import clip_loss
from minivlm.vit import ViTConfig


def pairs(name, n):
    """Draw n scenes: their pixels, and a batch of pictures and full captions."""
    scenes = [world.make_scene(f"{name} {i}", hide=False) for i in range(n)]
    pictures = np.stack([world.draw(s) for s in scenes])         # (n, S, S, 3)
    texts = [language.captions(s, random.Random(s.seed))[0] for s in scenes]
    rows = caption_rows(texts, tokenizer)
    batch = collate(rows, tokenizer.pad, 80, images=to_tensor(pictures), n_images=[1] * n)
    return pictures, texts, batch


C, B = 96, 128
vit = ViTConfig(image_size=60, patch_size=20, n_layer=3, n_head=3, n_embd=C, act="gelu")
clip = CLIP(CLIPConfig(vit, tokenizer.vocab_size, 80, 3, 3, C, n_embd=C, act="gelu"))
held_pictures, held_texts, held = pairs("held out", 8)
'''),
    code("similarities", r'''
@torch.no_grad()
def similarities():
    """The cosine of each of the 8 held-out pictures with each caption: (8, 8)."""
    img_z, txt_z, _ = clip(held.images, held.idx, held.lengths)
    return img_z @ txt_z.T


def heat(cosines, title, side=50):
    """Draw a matrix as squares: a line for each picture, a column for each caption."""
    n = len(cosines)
    sheet = Image.new("RGB", (side * (n + 1) + 8, side * n + 44), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((side + 8, 2), title, "black", FONT)
    for i in range(n):
        sheet.paste(enlarged(held_pictures[i], side - 4), (2, 44 + side * i))
        pen.text((side * (i + 1.5) + 8, 33), str(i), "#555555", SMALL, "mm")
        for j in range(n):
            x, y, value = side * (j + 1) + 8, 42 + side * i, cosines[i, j].item()
            pen.rectangle((x, y, x + side - 2, y + side - 2), shade(value))
            pen.text((x + side / 2, y + side / 2), f"{value:.2f}", "black", SMALL, "mm")
    return sheet
'''),
    code("train-clip", r'''
from minivlm.optim import Optimizer, lr_scale

before = similarities()
optimizer = Optimizer(clip, lr=2e-3, muon_lr=0.03, weight_decay=0.05)
steps, began = 80, time.time()
for step in range(steps):
    _, _, batch = pairs(f"clip {step}", B)
    loss = clip_loss(*clip(batch.images, batch.idx, batch.lengths))
    if step == 0:
        equal = torch.ones(B, C) / math.sqrt(C)                  # (B, C)
        print(f"ln B = {math.log(B):.3f}")
        assert math.isclose(clip_loss(equal, equal, 1 / 0.07), math.log(B), rel_tol=1e-5)
        assert abs(loss.item() - math.log(B)) < 0.5
    if step % 10 == 0:
        print(f"step {step:2}  loss {loss.item():.2f}")
    loss.backward()
    optimizer.step(lr_scale(step, steps, warmup=10), clip=1.0)
    clip.clamp_scale()
print(f"{time.time() - began:.0f} s")
'''),
    code("heat-maps", r'''
from minivlm.metrics import recall_at_k

after = similarities()
maps = [heat(before, "before the training"), heat(after, f"after {steps} steps")]
sheet = Image.new("RGB", (maps[0].width * 2 + 24, maps[0].height), "white")
sheet.paste(maps[0], (0, 0))
sheet.paste(maps[1], (maps[0].width + 24, 0))
display(sheet)
for i, text in enumerate(held_texts):
    print(f"{i}  {text}")
own = torch.eye(8, dtype=torch.bool)
print(f"recall@1 of 8: {recall_at_k(before, own, 1):.3f} -> {recall_at_k(after, own, 1):.3f}")
'''),
    markdown("attention-text", """
## 4. Where the chatbot looks

The chatbot answers. Then its answer is read once more, in one pass, and each attention layer's
input is kept. From it come the queries and keys, and from these the attention weights, by the
formula in `minivlm/transformer.py`. The model itself computes attention in a fused kernel, which
does not return the weights. So the cell checks that its weights give the layer's own output.
"""),
    code("ask", r'''
from minivlm.conversation import IMAGE_MARK


def ask(bot, question):
    """The chatbot's answer to a question about the picture."""
    asked = [{"from": "human", "value": f"{IMAGE_MARK}\n{question}"}]
    return "".join(bot.answer(asked, images, max_new_tokens=96))


for question in ("Where is the sun?", "Is anything unusual here?", "Is there a ball?"):
    print(f"{question}  {ask(sft, question)}")
'''),
    code("attention", r'''
from minivlm.rotary import rotate


def attention(attn, x, rotary, output):
    """The weights of a layer with input x (1, T, C): (H, T, T)."""
    H, G, D = attn.heads
    T = x.shape[1]
    qk, v = attn.qkv(x).view(1, T, H + 2 * G, D).split((H + G, G), dim=2)
    q, k = rotate(qk, *rotary).transpose(1, 2).split((H, G), dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)              # (1, H, T, T)
    is_seen = torch.ones(T, T, dtype=torch.bool).tril()
    weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
    out = (weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2)   # (1, T, C)
    assert torch.allclose(attn.proj(out), output, atol=1e-4)
    return weights[0]


kept = []
hooks = [
    block.attn.register_forward_hook(
        lambda attn, args, named, out: kept.append((attn, args[0], named["rotary"], out)),
        with_kwargs=True,
    )
    for block in sft.model.gpt.blocks
]
'''),
    code("read-answer", r'''
question = "Where is the sun?"
turns = [
    {"from": "human", "value": f"{IMAGE_MARK}\n{question}"},
    {"from": "gpt", "value": ask(sft, question)},
]
kept.clear()  # the hooks saw the answer being written, too
batch = collate([render(turns, tokenizer, N)], tokenizer.pad, block_size)
with torch.no_grad():
    sft.model(batch.idx, images)
    layers = [attention(*call) for call in kept]                 # (H, T, T) each
for hook in hooks:
    hook.remove()

at = batch.targets[0] != IGNORE_INDEX                            # (T,)
is_image = batch.idx[0] == tokenizer.image                       # (T,)
answer = words(batch.targets[0, at].tolist())
looks = [layer.mean(0)[at][:, is_image] for layer in layers]     # (M, N) each
print(f"{question}  {turns[1]['value']}")
for i, look in enumerate(looks):
    print(f"layer {i}: {look.sum(1).mean():.2f} of the attention is on the picture")
'''),
    markdown("looks-text", """
The last two layers, mean over the heads. A column is a token of the answer, and shows where the
model looked when it chose this token. The brightest patch has the largest weight of its picture;
the number is the share of all attention that lies on the picture.
"""),
    code("looks", r'''
def lit(weights, side=84):
    """The picture, with each patch as bright as its weight, (N,)."""
    n = math.isqrt(N)
    light = (weights / weights.max()).view(n, n).numpy()         # (n, n)
    light = np.kron(light, np.ones((len(pixels) // n,) * 2))     # (S, S)
    return enlarged((pixels * (0.15 + 0.85 * light[..., None])).astype(np.uint8), side)


shown = (len(looks) - 2, len(looks) - 1)
sheet = Image.new("RGB", (70 + 92 * len(answer), 244), "white")
pen = ImageDraw.Draw(sheet)
for line, layer in enumerate(shown):
    top = 26 + 110 * line
    pen.text((0, top + 34), f"layer {layer}", "black", FONT)
    for m, (word, weights) in enumerate(zip(answer, looks[layer])):
        x = 70 + 92 * m
        sheet.paste(lit(weights), (x, top))
        pen.text((x + 42, top + 94), f"{weights.sum():.2f}", "#555555", SMALL, "mm")
        pen.text((x + 42, 12), word, "black", FONT, "mm")
display(sheet)
'''),
    markdown("dpo-text", """
## 5. What DPO has changed

Asked for details, the chatbot of stage 3b names a ball that is not there. In this world a red ball
often comes with a child, and the answer puts it where the faint chair stands. The chatbot after
DPO names no ball. The two answers make a pair: its answer is chosen, the other one rejected.
"""),
    code("answers", r'''
question = "Describe the picture in detail."
rejected, chosen = ask(sft, question), ask(dpo, question)
for name, answer in (("rejected, SFT", rejected), ("chosen, DPO", chosen)):
    print(textwrap.fill(f"{name}: {answer}", 96))
assert "ball" in rejected and "ball" not in chosen
'''),
    markdown("pair-text", """
Both answers stand in one row behind their prompt (`pack`). Neither sees the other. As in
`train_dpo.py`, an answer's log-probability is a weighted mean over its tokens, in which tokens that
only one of the answers has weigh five times as much. The implicit reward of an answer is

    beta * (log pi(answer) - log ref(answer)),    beta = 5

where pi is the policy, the chatbot after DPO, and ref the reference, the chatbot before it. If both
are the same model, the loss is ln 2.
"""),
    code("pair", r'''
from minivlm.conversation import pack, prompt_of, spoken
from minivlm.losses import dpo_loss
from minivlm.preferences.pairs import PairBatch, changed_tokens, pair_logprobs

prompt = prompt_of(question, tokenizer, N)
ids = [spoken(text, tokenizer) + [tokenizer.end] for text in (chosen, rejected)]
row, segments = pack(prompt, ids)
batch = collate([row], tokenizer.pad, block_size, None, images, [1], [segments])
is_answer = batch.targets != IGNORE_INDEX                        # (1, T)
changed = torch.tensor(sum(changed_tokens(*ids), []))            # (M,)
weights = torch.ones(is_answer.shape)                            # (1, T)
weights[is_answer] += 4 * changed
pair = PairBatch(batch, weights)
with torch.no_grad():
    policy = pair_logprobs(dpo.model, pair, average=True)        # (1,), (1,), (1, T)
    ref = pair_logprobs(sft.model, pair, average=True)
beta = 5.0
at_start = dpo_loss(*ref[:2], *ref[:2], beta)
loss = dpo_loss(*policy[:2], *ref[:2], beta)
print(f"loss {at_start.item():.4f} -> {loss.item():.4f}")
assert math.isclose(at_start.item(), math.log(2), rel_tol=1e-5)
'''),
    markdown("rewards-text", """
Each token's share of its answer's reward: `beta * weight * (log pi - log ref) / sum of weights`.
Blue tokens have become likelier, orange ones less likely. The shares of an answer add up to its
reward; those that round to 0 are not written.
"""),
    code("rewards", r'''
fork = next(i for i, (a, b) in enumerate(zip(*ids)) if a != b)  # the first token that differs
for k, name in enumerate(("chosen", "rejected")):
    here = is_answer & (batch.segments == k + 1)                 # (1, T)
    ratio = (policy[2] - ref[2])[here]                           # (n,)
    shares = beta * weights[here] * ratio / weights[here].sum()  # (n,)
    reward = beta * (policy[k] - ref[k]).item()
    assert math.isclose(shares.sum().item(), reward, abs_tol=1e-4)
    assert shares.abs().argmax() == fork
    texts = words(ids[k])
    print(f"{name}: reward {reward:+.3f}, of this {shares[fork]:+.3f} at '{texts[fork]}'")
    notes = [f"{x:+.3f}" if abs(x) >= 0.0005 else "" for x in shares.tolist()]
    display(boxes(texts, [shade(4 * x) for x in shares.tolist()], notes))
'''),
    markdown("fork", """
Nearly all of both rewards stands at one token: where the answers part. After "There is a" the
rejected answer goes on with the ball, the chosen one with the child. Once the ball is begun, the
rest of its sentence has hardly become less likely. What DPO has unlearned is to begin it.
"""),
    markdown("end", """
Where to read on: `minivlm/losses.py` has every objective under its equation, `README.md` the stages
and their results, `docs/dpo.md` and `docs/ppo.md` how to read a run of stage 4.
"""),
)

# --- executing them ---


def execute(cells: Iterable[Cell]) -> dict[str, list[dict]]:
    """Execute the code cells in one namespace; return the outputs of each.

    Raises:
        RuntimeError: if a cell raises; the message names the cell.
    """
    outputs: dict[str, list[dict]] = {}
    namespace: dict = {}
    for cell in cells:
        if cell.kind != "code":
            continue
        shown: list[dict] = []
        namespace["display"] = taker(shown)
        try:
            with contextlib.redirect_stdout(Printer(shown)):
                exec(compile(cell.source, f"<cell {cell.name}>", "exec"), namespace)
        except Exception as error:
            raise RuntimeError(f"cell {cell.name}: {type(error).__name__}: {error}") from error
        outputs[cell.name] = shown
    return outputs


class Printer(io.TextIOBase):
    """What a cell prints, as outputs of a notebook."""

    def __init__(self, shown: list[dict]):
        self.shown = shown

    def write(self, text: str) -> int:
        """Append to the last output, or begin one behind a picture."""
        if not self.shown or self.shown[-1]["output_type"] != "stream":
            self.shown.append({"name": "stdout", "output_type": "stream", "text": ""})
        self.shown[-1]["text"] += text
        return len(text)


def taker(shown: list[dict]) -> Callable[[Image.Image], None]:
    """What a cell calls as `display`: it keeps a picture as Jupyter would."""
    def display(picture: Image.Image) -> None:
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        size = f"{picture.width} x {picture.height}"
        shown.append({
            "data": {"image/png": base64.b64encode(file.getvalue()).decode(),
                     "text/plain": f"a picture of {size} pixels"},
            "metadata": {}, "output_type": "display_data",
        })
    return display


# --- the notebook ---


def notebook(cells: Iterable[Cell], outputs: dict[str, list[dict]]) -> dict:
    """The notebook as nbformat 4.5 has it."""
    written = []
    n_code = 0
    for cell in cells:
        lines = cell.source.splitlines(keepends=True)
        entry = {"cell_type": cell.kind, "id": cell.name, "metadata": {}, "source": lines}
        if cell.kind == "code":
            n_code += 1
            entry |= {"execution_count": n_code, "outputs": outputs[cell.name]}
        written.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": written, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4, "nbformat_minor": 5,
    }


def printed(outputs: list[dict]) -> str:
    """What a cell has printed."""
    streams = [output for output in outputs if output["output_type"] == "stream"]
    # Jupyter saves an output as one text or as a list of lines
    return "".join("".join(output["text"]) for output in streams)


def same(a: str, b: str) -> bool:
    """Whether two texts have the same words, and decimals that are nearly equal.

    Another machine rounds otherwise, and a training makes such differences larger. Whole
    seconds are not compared.

    >>> same("loss 1.30, 7 s", "loss 1.34, 12 s"), same("1.3", "1.9"), same("a 1.3", "b 1.3")
    (True, False, False)
    """
    a, b = (re.sub(r"\b\d+ s\b", "time", text) for text in (a, b))
    decimal = r"[-+]?\d+\.\d+"
    if re.sub(decimal, "#", a) != re.sub(decimal, "#", b):
        return False
    numbers = zip(re.findall(decimal, a), re.findall(decimal, b))
    return all(abs(float(x) - float(y)) <= 0.05 + 0.1 * abs(float(y)) for x, y in numbers)


def differences(stored: dict, outputs: dict[str, list[dict]]) -> list[str]:
    """The names of cells that print other words than those in a notebook."""
    kept = {cell["id"]: printed(cell.get("outputs", [])) for cell in stored["cells"]}
    return [name for name, new in outputs.items() if not same(kept.get(name, ""), printed(new))]


def main(write: bool = False) -> None:
    """Execute the cells; write the notebook, or compare with it."""
    began = time.time()
    try:
        outputs = execute(CELLS)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"{len(outputs)} cells in {time.time() - began:.0f} s")
    if write:
        text = json.dumps(notebook(CELLS, outputs), indent=1, ensure_ascii=False)
        NOTEBOOK.write_text(text + "\n", encoding="utf-8")
        return
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    differ = differences(stored, outputs)
    if differ:
        sys.exit(f"cells that print other words than {NOTEBOOK.name} holds: {', '.join(differ)}")


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
