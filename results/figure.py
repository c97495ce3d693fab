"""Draw docs/answers.png: six held-out pictures, with a conversation about each.

    python results/figure.py [runs/sft] [data/book/prepared]

A person chose the pictures and typed the questions. The answers are the chatbot's, right
or wrong; each question is asked after the questions and answers above it.
"""

import sys
import textwrap

from PIL import Image, ImageDraw, ImageFont

from asking import converse, load_answerer
from minivlm.loading.images import Pictures, enlarged
from minivlm.loading.prepared import load_meta

# number of a picture in val.npy -> the questions of a conversation about it
CONVERSATIONS = {
    46: ("Hello!", "Where is the cat?", "And what color is it?"),
    31: ("What is unusual here?", "What is above the bicycle?", "What does a whale eat?"),
    70: ("What is wrong with this picture?", "How many ducks are there?",
         "What color is the dog?"),
    80: ("What is in this room?", "Does the sun belong there?"),
    9: ("What is odd about the cat?", "Is it day or night?", "Tell me a story about it."),
    69: ("Is the clock left of the cat?", "Are you sure?", "Thank you!"),
}
COLUMNS, SIDE, GAP = 3, 300, 24  # pictures in a row; pixels: of a picture, between them
LINE, FONT, LETTERS = 21, 17, 36  # pixels of a line, of its letters; letters in a line
ASKED, SAID = "#1f5fa8", "black"


def lines_of(talk: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines below a picture, each with its color."""
    lines = []
    for question, answer in talk:
        lines += [(line, ASKED) for line in textwrap.wrap(question, LETTERS)]
        for paragraph in answer.splitlines():
            lines += [(line, SAID) for line in textwrap.wrap(paragraph, LETTERS)]
        lines.append(("", SAID))  # air
    return lines


def draw_sheet(
    pictures: list[Image.Image], texts: list[list[tuple[str, str]]]
) -> Image.Image:
    """Put pictures on a sheet, with lines of text below each."""
    tops = [GAP]
    for start in range(0, len(texts), COLUMNS):
        longest = max(len(lines) for lines in texts[start:start + COLUMNS])
        tops.append(tops[-1] + SIDE + 10 + LINE * longest + GAP // 2)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for i, (picture, lines) in enumerate(zip(pictures, texts)):
        row, column = divmod(i, COLUMNS)
        x = GAP + column * (SIDE + GAP)
        sheet.paste(picture, (x, tops[row]))
        y = tops[row] + SIDE + 10
        for line, color in lines:
            draw.text((x, y), line, color, font)
            y += LINE
    return sheet


def main(
    run: str = "runs/sft", data: str = "data/book/prepared", out: str = "docs/answers.png"
) -> None:
    """Hold the conversations and draw them."""
    names = [f"val.npy#{number}" for number in CONVERSATIONS]
    pixels = Pictures(data, load_meta(data)["image_size"]).pixels(names)
    ask = load_answerer(run, data)
    pictures, texts = [], []
    for name, picture, questions in zip(names, pixels, CONVERSATIONS.values()):
        pictures.append(enlarged(picture, SIDE))
        texts.append(lines_of(converse(ask, name, questions)))
    draw_sheet(pictures, texts).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
