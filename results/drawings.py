"""Draw docs/pipeline.svg, docs/splice.svg and docs/packed.svg.

    pipeline   the stages, which parts learn in each, and which checkpoint each starts from
    splice     how a picture gets into the language model, and where the targets begin
    packed     both answers of a pair behind one prompt, and which token sees which

The SVG is written by hand, as text. Tokens, segments, targets and masks come from the
functions that training uses. The words of the tokens come from a tokenizer that is trained
here on the texts of the drawings; with few texts, every word becomes one token, as in the
chatbot's tokenizer.

Run: python results/drawings.py
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import torch

from data.book.things import COLORS
from data.book.world import LIGHT, Scene, Thing, draw
from minivlm.attention_masks import segment_mask, segment_positions
from minivlm.conversation import IMAGE_MARK, pack, prompt_of, render, spoken
from minivlm.gpt import GPTConfig
from minivlm.loading.batches import Batch, collate
from minivlm.losses import IGNORE_INDEX
from minivlm.tokenizer import Tokenizer
from minivlm.vit import ViTConfig

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 800  # pixels of every drawing
QUESTION, CHOSEN, REJECTED = "What color is the cat?", "The cat is orange.", "It is blue."
VIT, GPT = ViTConfig(image_size=60, patch_size=20), GPTConfig()  # the default run's sizes
N = VIT.n_tokens
LETTER = 0.6  # width of a letter of the monospaced font, in font sizes

# class -> (light, dark) of each property; every drawing has a background of its own, since
# a page may be dark where the system is light
STYLE = {
    "page": {"fill": ("#ffffff", "#0d1117")},
    "ink": {"fill": ("#1f2328", "#e6edf3")},
    "soft": {"fill": ("#59636e", "#9da7b3")},
    "on": {"fill": ("#ffffff", "#0d1117")},
    "card": {"fill": ("#f6f8fa", "#161b22"), "stroke": ("#d1d9e0", "#3d444d")},
    "learns": {"fill": ("#1f5fa8", "#79b8ff")},
    "frozen": {"fill": ("none", "none"), "stroke": ("#818b98", "#7d8590")},
    "arrow": {"fill": ("none", "none"), "stroke": ("#59636e", "#9da7b3")},
    "head": {"fill": ("#59636e", "#9da7b3")},
    "text": {"fill": ("#d1d9e0", "#3d444d")},
    "image": {"fill": ("#f2b48a", "#a8561f")},
    "chosen": {"fill": ("#8ab8e6", "#1f5fa8")},
    "rejected": {"fill": ("#c9a7d8", "#7a4590")},
    "blank": {"fill": ("#f6f8fa", "#161b22")},
}
FONTS = """\
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.bold { font-weight: 600 }
.frozen { stroke-dasharray: 4 3 }
.or { stroke-dasharray: 5 4 }
"""


# --- SVG ---


class Svg:
    """A drawing under construction; all numbers are pixels from the top left corner."""

    def __init__(self, height: float, title: str):
        self.height = height
        self.title = title
        self.lines: list[str] = []
        self.rect(0, 0, WIDTH, height, "page", 8)

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, round: float = 0
    ) -> None:
        """Add a rectangle; `round` is the radius of its corners."""
        corner = f' rx="{number(round)}"' if round else ""
        place = f'x="{number(x)}" y="{number(y)}"'
        size = f'width="{number(width)}" height="{number(height)}"'
        self.lines.append(f'<rect class="{style}" {place} {size}{corner}/>')

    def text(
        self, x: float, y: float, words: str, style: str = "ink", size: float = 13,
        anchor: str = "start", up: bool = False,
    ) -> None:
        """Add a line of text on the base line y; with `up` it reads from bottom to top."""
        turn = f' transform="rotate(-90 {number(x)} {number(y)})"' if up else ""
        place = f'x="{number(x)}" y="{number(y)}" font-size="{number(size)}"'
        align = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.lines.append(
            f'<text class="{style}" {place}{align}{turn}>{escape(words)}</text>'
        )

    def path(self, d: str, style: str) -> None:
        """Add a path."""
        self.lines.append(f'<path class="{style}" d="{d}"/>')

    def arrow(self, *points: tuple[float, float], style: str = "arrow") -> None:
        """Add a line through points, with a head at the last one."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = np.sign(x - x0), np.sign(y - y0)  # the last part is level or upright
        back_x, back_y = x - 7 * dx, y - 7 * dy
        self.path(through([*points[:-1], (back_x, back_y)]), style)
        corners = [(x, y), (back_x + 4 * dy, back_y + 4 * dx), (back_x - 4 * dy, back_y - 4 * dx)]
        self.path(through(corners) + "Z", "head")

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(str(self), encoding="utf-8")

    def __str__(self) -> str:
        """The file's text, with those colors alone that the drawing has."""
        used = [name for name in STYLE if any(has_class(line, name) for line in self.lines)]
        light = "\n".join(rule(name, 0) for name in used)
        dark = "\n".join(rule(name, 1) for name in used)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
            f'{number(self.height)}" width="{WIDTH}" height="{number(self.height)}" role="img">'
        )
        media = f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
        return "\n".join([
            head, f"<title>{escape(self.title)}</title>",
            f"<style>\n{FONTS}{light}\n{media}\n</style>", *self.lines, "</svg>\n",
        ])


def number(x: float) -> str:
    """A number in as few letters as one decimal needs.

    >>> number(3.0), number(2.25)
    ('3', '2.2')
    """
    return f"{float(x):.1f}".removesuffix(".0")


def through(points: Sequence[tuple[float, float]]) -> str:
    """A path of straight lines.

    >>> through([(0, 1.5), (2, 3)])
    'M0 1.5L2 3'
    """
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def has_class(line: str, name: str) -> bool:
    """Whether an element has a class."""
    return name in line.partition('class="')[2].partition('"')[0].split()


def rule(name: str, scheme: int) -> str:
    """The CSS rule of a class; scheme is 0 for light and 1 for dark."""
    values = "; ".join(f"{key}: {colors[scheme]}" for key, colors in STYLE[name].items())
    return f".{name} {{ {values} }}"


def wide(words: str, size: float) -> float:
    """The width of a text in the monospaced font."""
    return LETTER * size * len(words)


# --- the stages ---

CARD, CHIP = 372, 81  # widths: of a stage's card, of a part in it
# number, name, script, what it learns from, checkpoint, column -> part and state
UPPER = {
    "0": ("language", "train_lm.py", "next token, from text", "runs/lm", {2: ("GPT", "learns")}),
    "1": ("alignment", "train_clip.py", "InfoNCE, from pictures and captions", "runs/clip",
          {0: ("ViT", "learns"), 2: ("text tower", "learns"), 3: ("temperature", "learns")}),
    "2": ("captioning", "train_caption.py", "next token, from pictures and captions",
          "runs/caption", {0: ("ViT", "learns"), 1: ("projector", "learns"),
                           2: ("GPT", "learns"), 3: ("two heads", "learn (BLIP)")}),
    "3a": ("connector", "train_align.py", "next token, from pictures and captions", "runs/align",
           {0: ("ViT", "frozen"), 1: ("projector", "learns"), 2: ("GPT", "frozen")}),
    "3b": ("instructions", "train_sft.py", "answers only, from dialogues", "runs/sft",
           {0: ("ViT", "frozen"), 1: ("projector", "learns"), 2: ("GPT", "learns")}),
}
POLICY = (("ViT", "frozen"), ("projector", "learns"), ("GPT", "learns"))
# the same, with the parts in lines: three of the model that learns, three beside it
LOWER = {
    "4a": ("reward", "train_reward.py", "ranked answers", "runs/reward",
           {3: ("score head", "learns")}),
    "4b": ("PPO", "train_ppo.py", "scores of answers", "runs/ppo",
           {3: ("reference", "frozen"), 4: ("reward model", "frozen"),
            5: ("value model", "learns")}),
    "4c": ("DPO", "train_dpo.py", "pairs of answers", "runs/dpo", {3: ("reference", "frozen")}),
    "4d": ("GRPO", "train_grpo.py", "checked answers", "runs/grpo", {3: ("reference", "frozen")}),
}


def box_of(state: str) -> tuple[str, str, str]:
    """The classes of a part's box, of its name and of its state."""
    if state == "frozen":
        return "frozen", "ink", "soft"
    return "learns", "on", "on"


def pill(svg: Svg, x: float, y: float, name: str) -> None:
    """A checkpoint's name, centered at a point."""
    width = wide(name, 12) + 20
    svg.rect(x - width / 2, y - 11, width, 22, "card", 11)
    svg.text(x, y + 4, name, "ink mono", 12, "middle")


def stage(svg: Svg, x: float, y: float, key: str) -> None:
    """A stage of the first four, with its parts side by side."""
    name, script, objective, checkpoint, parts = UPPER[key]
    svg.rect(x, y, CARD, 112, "card", 8)
    svg.text(x + 12, y + 23, f"{key}  {name}", "ink bold", 15)
    svg.text(x + CARD - 12, y + 23, script, "soft mono", 12, "end")
    svg.text(x + 12, y + 41, objective, "soft", 12.5)
    for column, (part, state) in parts.items():
        box, title, word = box_of(state)
        left = x + 12 + column * (CHIP + 8)
        svg.rect(left, y + 52, CHIP, 40, box, 5)
        svg.text(left + CHIP / 2, y + 69, part, title, 12, "middle")
        svg.text(left + CHIP / 2, y + 84, state, word, 11, "middle")
    pill(svg, x + CARD / 2, y + 112, checkpoint)


def aligned_stage(svg: Svg, x: float, y: float, key: str) -> None:
    """A stage of the last four, with its parts in lines."""
    name, script, source, checkpoint, beside = LOWER[key]
    width = 172
    svg.rect(x, y, width, 286, "card", 8)
    svg.text(x + 12, y + 23, f"{key}  {name}", "ink bold", 15)
    svg.text(x + 12, y + 41, script, "soft mono", 12)
    svg.text(x + 12, y + 59, f"from {source}", "soft", 12.5)
    model = "policy" if key != "4a" else "reward model"
    svg.text(x + 12, y + 83, model, "ink", 12)
    svg.text(x + 12, y + 183, "its head" if key == "4a" else "beside it", "ink", 12)
    for line, (part, state) in (dict(enumerate(POLICY)) | beside).items():
        box, title, word = box_of(state)
        top = y + 90 + 25 * line + (25 if line > 2 else 0)
        svg.rect(x + 12, top, width - 24, 21, box, 5)
        svg.text(x + 20, top + 15, part, title, 12)
        svg.text(x + width - 20, top + 15, state, word, 11, "end")
    pill(svg, x + width / 2, y + 286, checkpoint)


def pipeline() -> Svg:
    """The stages, and the checkpoints between them."""
    svg = Svg(868, "The stages of the recipe, what learns in each, and what each starts from")
    svg.rect(20, 17, 64, 22, "learns", 5)
    svg.text(52, 32, "learns", "on", 12, "middle")
    svg.rect(94, 17, 64, 22, "frozen", 5)
    svg.text(126, 32, "frozen", "soft", 12, "middle")
    pill(svg, 212, 28, "runs/lm")
    svg.text(254, 32, "a checkpoint; an arrow leads to the stage that starts from it", "soft", 12.5)
    left, right, middle = 20, WIDTH - 20 - CARD, (WIDTH - CARD) / 2
    tops = [58, 222, 386, 550]
    centers = (left + CARD / 2, right + CARD / 2)
    for key, x, y in (("0", left, tops[0]), ("1", right, tops[0]), ("2", left, tops[1]),
                      ("3a", right, tops[1]), ("3b", middle, tops[2])):
        stage(svg, x, y, key)
    # stages 2 and 3a take both towers
    bus = tops[1] - 26
    svg.path(through([(x, bus) for x in centers]), "arrow")
    for x in centers:
        svg.arrow((x, tops[0] + 123), (x, tops[1]))
    svg.text(WIDTH / 2, bus - 6, "the GPT of runs/lm, the ViT of runs/clip", "soft", 12,
             "middle")
    # stage 3b takes either
    bend = tops[2] - 26
    svg.arrow((centers[0], tops[1] + 123), (centers[0], bend), (320, bend), (320, tops[2]))
    svg.arrow((centers[1], tops[1] + 123), (centers[1], bend), (480, bend), (480, tops[2]),
              style="arrow or")
    svg.text(centers[0] + 12, bend + 16, "by default", "soft", 12)
    svg.text(centers[1] - 12, bend + 16, "or, as LLaVA", "soft", 12, "end")
    # stage 4 starts from the chatbot; PPO also from the reward model
    bus = tops[3] - 26
    lefts = [20 + 196 * i for i in range(4)]
    svg.path(through([(400, tops[2] + 123), (400, bus)]), "arrow")
    svg.path(through([(lefts[0] + 86, bus), (lefts[3] + 86, bus)]), "arrow")
    for x, key in zip(lefts, LOWER):
        svg.arrow((x + 86, bus), (x + 86, tops[3]))
        aligned_stage(svg, x, tops[3], key)
    reward = tops[3] + 90 + 25 * 5 + 10
    svg.arrow((lefts[0] + 172, reward), (lefts[1] + 12, reward))
    return svg


# --- a picture in the language model ---


def scene() -> Scene:
    """The picture of the drawing: a cat, a tree and the sun in a meadow."""
    things = [
        Thing("sun", "yellow", "large", 0), Thing("tree", "green", "large", 5),
        Thing("cat", "orange", "large", 7),
    ]
    return Scene("meadow", "day", things, "", 1, "splice")


def picture_paths(pixels: np.ndarray, palette: np.ndarray) -> list[tuple[str, str]]:
    """A picture as paths, one for each color: (color, path), a step a pixel.

    Args:
        pixels: (S, S, 3) uint8.
        palette: (K, 3); each pixel gets the nearest of these colors, so that noise goes.
    """
    distance = ((pixels[:, :, None].astype(int) - palette) ** 2).sum(-1)     # (S, S, K)
    nearest = distance.argmin(-1)                                    # (S, S)
    paths = []
    for k, color in enumerate(palette):
        runs = []
        for y, row in enumerate(nearest == k):
            edges = np.flatnonzero(np.diff(row, prepend=False, append=False))
            for start, stop in zip(edges[::2], edges[1::2]):
                runs.append(f"M{start} {y}h{stop - start}v1H{start}")
        if runs:
            paths.append(("#%02x%02x%02x" % tuple(color), "".join(runs)))
    return paths


def words_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each token, without the space before it."""
    return [tokenizer.decode([i]).strip() for i in ids]


def make_tokenizer() -> Tokenizer:
    """A tokenizer with a token for each word of the drawings."""
    return Tokenizer.train([f" {text}" for text in (QUESTION, CHOSEN, REJECTED)], 1000)


def bars(svg: Svg, x: float, y: float, height: float, numbered: bool = True) -> None:
    """The N vectors of a picture, side by side, 18 pixels each."""
    for k in range(N):
        svg.rect(x + 18 * k + 2, y, 14, height, "image", 2)
        if numbered:
            svg.text(x + 18 * k + 9, y + height / 2 + 4, str(k), "ink mono", 10, "middle")


def module(svg: Svg, x: float, y: float, width: float, name: str, note: str) -> None:
    """A network, with a note below it."""
    svg.rect(x, y, width, 44, "card", 6)
    svg.text(x + width / 2, y + 27, name, "ink bold", 14, "middle")
    svg.text(x + width / 2, y + 60, note, "soft", 11.5, "middle")


def splice() -> Svg:
    """From pixels to image tokens, and the row that the language model reads."""
    tokenizer = make_tokenizer()
    turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{QUESTION}"},
             {"from": "gpt", "value": CHOSEN}]
    batch = collate([render(turns, tokenizer, N)], tokenizer.pad, GPT.block_size)
    idx, targets = batch.idx[0].tolist(), batch.targets[0].tolist()
    svg = Svg(670, "How a picture gets into the language model")
    into_vit(svg)
    into_row(svg, tokenizer, idx, targets)
    return svg


def into_vit(svg: Svg) -> None:
    """The upper half: picture, patches, ViT, projector."""
    pixels = draw(scene())                                           # (S, S, 3)
    S, P = VIT.image_size, VIT.patch_size
    palette = np.array([*COLORS.values(), *LIGHT["meadow", "day"], (38, 36, 48)])
    n = S // P
    paths = picture_paths(pixels, palette)
    svg.lines.append('<defs><g id="picture" shape-rendering="crispEdges">')
    svg.lines += [f'<path fill="{color}" d="{d}"/>' for color, d in paths]
    svg.lines.append("</g>")
    for k in range(N):
        x, y = k % n * P, k // n * P
        svg.lines.append(
            f'<clipPath id="p{k}"><rect x="{x}" y="{y}" width="{P}" height="{P}"/></clipPath>'
        )
    svg.lines.append("</defs>")
    top = 34
    svg.lines.append(f'<use href="#picture" transform="translate(20 {top + 6}) scale(2)"/>')
    svg.text(80, top + 152, "picture", "ink", 12.5, "middle")
    svg.text(80, top + 168, f"(3, {S}, {S})", "soft mono", 11.5, "middle")
    svg.arrow((146, top + 66), (180, top + 66))
    for k in range(N):  # 6 pixels of air between two patches
        x, y = 188 + 6 * (k % n), top + 6 * (k // n)
        svg.lines.append(
            f'<g clip-path="url(#p{k})" transform="translate({x} {y}) scale(2)">'
            '<use href="#picture"/></g>'
        )
        left, low = x + 2 * P * (k % n), y + 2 * P * (k // n)
        svg.rect(left, low, 12, 13, "page")
        svg.text(left + 6, low + 10, str(k), "ink mono", 10, "middle")
    svg.text(254, top + 152, f"N = {N} patches", "ink", 12.5, "middle")
    svg.text(254, top + 168, f"(N, {3 * P * P})", "soft mono", 11.5, "middle")
    svg.arrow((328, top + 66), (362, top + 66))
    module(svg, 368, top + 44, 90, "ViT", "all blocks but the last")
    svg.arrow((464, top + 66), (498, top + 66))
    bars(svg, 506, top + 6, 120)
    svg.text(587, top + 152, "features of the patches", "ink", 12.5, "middle")
    svg.text(587, top + 168, f"feats (N, Cv) = ({N}, {VIT.n_embd})", "soft mono", 11.5, "middle")
    # back to the left, through the projector
    svg.arrow((674, top + 66), (730, top + 66), (730, 254), (692, 254))
    module(svg, 596, 232, 90, "projector", "each patch alone")
    svg.arrow((590, 254), (262, 254))


def into_row(
    svg: Svg, tokenizer: Tokenizer, idx: Sequence[int], targets: Sequence[int]
) -> None:
    """The lower half: tokens, embeddings, language model, targets."""
    words = words_of(idx, tokenizer)
    expected = ["-100" if t == IGNORE_INDEX else tokenizer.decode([t]).strip() for t in targets]
    is_image = [i == tokenizer.image for i in idx]
    learned = [t != IGNORE_INDEX for t in targets]
    size = 11.5
    widths = []
    for word, target, image, answer in zip(words, expected, is_image, learned):
        longest = max(len(word), len(target) if answer else 0)
        widths.append(18 if image else wide("x" * longest, size) + 10)
    gap = (WIDTH - 40 - sum(widths)) / (len(idx) - 1 - (N - 1))  # none between image tokens
    lefts, x = [], 20.0
    for i, width in enumerate(widths):
        lefts.append(x)
        x += width + (0 if is_image[i] and is_image[i + 1] else gap)
    first = is_image.index(True)
    image_left = lefts[first]
    token_top, emb_top, gpt_top, target_top = 340, 424, 520, 600

    # the projected patches, above their placeholders
    bars(svg, image_left, 226, 56)
    svg.text(268, 242, f"img_emb (N, C) = ({N}, {GPT.n_embd})", "soft mono", 11.5)
    # tokens
    svg.text(20, token_top - 10, "idx", "soft mono", 11.5)
    middle = image_left + 9 * N
    svg.text(WIDTH - 20, token_top - 10,
             "projected patches at the placeholders, embeddings of wte elsewhere", "soft", 12,
             "end")
    for i, (word, left, width) in enumerate(zip(words, lefts, widths)):
        if is_image[i]:
            svg.rect(left + 1, token_top, 16, 28, "frozen", 3)
            svg.text(left + 9, token_top + 18, str(i - first), "ink mono", 10, "middle")
            svg.arrow((left + 9, 284), (left + 9, token_top - 2))
            continue
        svg.rect(left, token_top, width, 28, "text", 4)
        svg.text(left + width / 2, token_top + 18, word, "ink mono", size, "middle")
    svg.text(middle, token_top + 46, f"{N} placeholders <|image|>", "ink", 11.5, "middle")
    # embeddings
    for i, (left, width) in enumerate(zip(lefts, widths)):
        center = left + width / 2
        if not is_image[i]:
            svg.arrow((center, token_top + 30), (center, emb_top - 2))
            svg.rect(center - 7, emb_top, 14, 56, "text", 2)
    bars(svg, image_left, emb_top, 56)
    svg.text(20, emb_top - 10, "emb", "soft mono", 11.5)
    svg.text(lefts[0] + widths[0] / 2 + 6, token_top + 46, "wte", "soft mono", 11.5)
    # the language model
    svg.rect(20, gpt_top, WIDTH - 40, 44, "card", 6)
    svg.text(36, gpt_top + 27, "GPT", "ink bold", 14)
    svg.text(WIDTH - 36, gpt_top + 27, "logits[:, t] predicts targets[:, t]", "soft mono", 11.5,
             "end")
    for left, width in zip(lefts, widths):
        center = left + width / 2
        svg.arrow((center, emb_top + 58), (center, gpt_top - 2))
    # targets
    begin = learned.index(True)
    ignored = lefts[begin - 1] + widths[begin - 1] - 20
    svg.rect(20, target_top, ignored, 28, "frozen", 4)
    svg.text(20 + ignored / 2, target_top + 18, f"-100 at {begin} positions: nothing is learned",
             "soft", 12, "middle")
    for i in range(begin, len(idx)):
        center = lefts[i] + widths[i] / 2
        svg.arrow((center, gpt_top + 46), (center, target_top - 2))
        svg.rect(lefts[i], target_top, widths[i], 28, "learns", 4)
        svg.text(center, target_top + 18, expected[i], "on mono", size, "middle")
    svg.text(20, target_top + 50, "targets", "soft mono", 11.5)
    svg.text(WIDTH - 20, target_top + 50,
             "each position predicts the next token; the answer's end is learned too", "soft", 12,
             "end")


# --- two answers behind one prompt ---


def packed_pair(tokenizer: Tokenizer) -> Batch:
    """The pair of the drawing, as train_dpo.py makes it: a batch of one row."""
    prompt = prompt_of(QUESTION, tokenizer, N)
    answers = [spoken(text, tokenizer) + [tokenizer.end] for text in (CHOSEN, REJECTED)]
    row, segments = pack(prompt, answers)
    return collate([row], tokenizer.pad, GPT.block_size, segments=[segments])


def packed() -> Svg:
    """The row with its segments, positions and targets, and the mask as a square."""
    tokenizer = make_tokenizer()
    batch = packed_pair(tokenizer)
    T = batch.idx.shape[1]
    mask = segment_mask(batch.segments)[0, 0]                        # (T, T)
    positions = segment_positions(batch.segments)[0].tolist()
    words = words_of(batch.idx[0].tolist(), tokenizer)
    segments = batch.segments[0].tolist()
    side, left, top = 17, 246, 150
    svg = Svg(top + T * side + 70, "Two answers to one prompt in one row, and its attention mask")
    kinds = ("text", "chosen", "rejected")
    names = ("the prompt", "the chosen answer", "the rejected answer")
    for kind, name, x in zip(kinds, names, (20, 130, 284)):
        svg.rect(x, 18, 16, 16, kind, 3)
        svg.text(x + 23, 31, name, "ink", 12.5)
    heads = (("segment", 56), ("position", 118))
    for name, x in heads:
        svg.text(x, top - 12, name, "soft", 12, "middle")
    svg.text(left - 10, top - 12, "reads", "soft", 12, "end")
    svg.text(left + T * side + 12, top - 12, "predicts", "soft", 12)
    for k, kind in enumerate(kinds):
        n, before = segments.count(k), sum(s < k for s in segments)
        svg.rect(36, top + side * before, 40, side * n - 1, kind, 3)
    for t, word in enumerate(words):
        y = top + side * t
        base = y + 13
        kind = kinds[segments[t]]
        svg.text(56, base, str(segments[t]), "ink mono", 11.5, "middle")
        svg.text(118, base, str(positions[t]), "ink mono", 11.5, "middle")
        svg.text(left - 10, base, word, "ink mono", 11.5, "end")
        svg.text(left + side * t + 13, top - 8, word, "ink mono", 11.5, up=True)
        cells(svg, left, y, side, mask[t], [kinds[s] for s in segments])
        target = int(batch.targets[0, t])
        if target != IGNORE_INDEX:
            x = left + T * side + 12
            shown = tokenizer.decode([target]).strip()
            svg.rect(x - 4, y + 1, wide(shown, 11.5) + 8, side - 2, kind, 3)
            svg.text(x, base, shown, "ink mono", 11.5)
    low = top + T * side
    svg.text(left, low + 24, "A line is a token that reads, a column a token that is read.", "ink",
             12.5)
    svg.text(left, low + 44, "Each answer sees the prompt and itself, and never the other.",
             "ink", 12.5)
    return svg


def cells(
    svg: Svg, left: float, y: float, side: int, sees: torch.Tensor, kinds: Sequence[str]
) -> None:
    """A line of the mask; the squares of one kind are one path, so the file stays small.

    Args:
        sees: (T,) bool, True where the key counts.
        kinds: T, of each key; a style.
    """
    squares: dict[str, str] = {}
    for j, kind in enumerate(kinds):
        if not sees[j]:
            kind = "blank"
        corner = f"M{number(left + side * j)} {number(y)}"
        square = f"{corner}h{side - 1}v{side - 1}h-{side - 1}Z"
        squares[kind] = squares.get(kind, "") + square
    for kind, d in squares.items():
        svg.path(d, kind)


DRAWINGS = {"pipeline": pipeline, "splice": splice, "packed": packed}


def main() -> None:
    """Write the files."""
    for name, make in DRAWINGS.items():
        make().write(DOCS / f"{name}.svg")


if __name__ == "__main__":
    main()
