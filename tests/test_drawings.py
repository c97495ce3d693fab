"""docs/*.svg as results/drawings.py draws them: the committed bytes, XML, texts in their place."""

import doctest
import importlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from minivlm.chatbot import SHIPPED
from minivlm.running import checkpoint
from minivlm.tokenizer import CHATBOTS

ROOT = Path(__file__).parents[1]
NAMES = ("pipeline", "splice", "packed")
SVG = "{http://www.w3.org/2000/svg}"
# in font sizes: the mean letter of a wide font without serifs; every letter of a monospaced one
LETTER, MONO = 0.56, 0.61


@pytest.fixture
def drawings(monkeypatch):
    """The script, imported as it imports its neighbors when it is run."""
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module("drawings")


def tree_of(name: str) -> ET.Element:
    """A committed drawing, parsed."""
    return ET.parse(ROOT / "docs" / f"{name}.svg").getroot()


def texts_of(root: ET.Element) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Each text, and the estimated box of its letters: left, top, right, bottom."""
    boxes = []
    for element in root.iter(f"{SVG}text"):
        words, size = element.text, float(element.get("font-size"))
        is_mono = "mono" in element.get("class").split()
        width = (MONO if is_mono else LETTER) * size * len(words)
        before = {"start": 0, "middle": 0.5, "end": 1}[element.get("text-anchor", "start")]
        x, y = float(element.get("x")), float(element.get("y"))
        left, right, top, bottom = -width * before, width * (1 - before), -0.75 * size, 0.2 * size
        box = (x + left, y + top, x + right, y + bottom)
        if element.get("transform"):  # a quarter turn: to the right becomes up
            box = (x + top, y - right, x + bottom, y - left)
        boxes.append((words, box))
    return boxes


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_drawing_is_what_the_script_draws(drawings, name):
    """Catches a drawing of code that has changed since, and one that was edited by hand."""
    text = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    assert text == str(drawings.DRAWINGS[name]())
    assert str(drawings.DRAWINGS[name]()) == str(drawings.DRAWINGS[name]())
    assert len(text) < 40_000 and set(NAMES) == drawings.DRAWINGS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_well_formed_and_loads_nothing(name):
    """Catches a sign that was not escaped, a color without its dark one, a font from elsewhere."""
    root = tree_of(name)
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title").text
    style = root.find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    named = {c for e in root.iter() for c in e.get("class", "").split()}
    colored = set(re.findall(r"^\.(\w+) \{.*(?:fill|stroke): ", light, flags=re.MULTILINE))
    assert colored == set(re.findall(r"^\.(\w+) \{", dark, flags=re.MULTILINE)) <= named
    text = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_outside_of_the_view_box(name):
    """Catches a word that is cut off at the edge."""
    root = tree_of(name)
    _, _, width, height = map(float, root.get("viewBox").split())
    texts = texts_of(root)
    assert len(texts) > 30 and width == 800
    for words, (left, top, right, bottom) in texts:
        assert 4 <= left and right <= width - 4 and 4 <= top and bottom <= height - 4, words


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_on_another(name):
    """Catches two texts that run into each other."""
    texts = texts_of(tree_of(name))
    for i, (words, (left, top, right, bottom)) in enumerate(texts):
        for others, box in texts[i + 1:]:
            apart = box[0] >= right or box[2] <= left or box[1] >= bottom or box[3] <= top
            assert apart, (words, others)


@pytest.mark.parametrize("name", ["splice", "pipeline"])
def test_no_text_is_wider_than_its_box(name):
    """Catches a part's name that sticks out of its box."""
    root = tree_of(name)
    boxes = []
    for e in root.iter(f"{SVG}rect"):
        if e.get("class"):
            x, y, w, h = (float(e.get(key)) for key in ("x", "y", "width", "height"))
            boxes.append((x, y, x + w, y + h))
    for words, (left, top, right, bottom) in texts_of(root):
        x, y = (left + right) / 2, (top + bottom) / 2
        around = [b for b in boxes if b[0] <= x <= b[2] and b[1] <= y <= b[3]]
        inner = min(around, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        assert inner[0] <= left and right <= inner[2], words


def test_the_drawn_mask_is_that_of_training(drawings):
    """Catches a drawing in which an answer sees the other one."""
    segments = drawings.packed_pair(drawings.make_tokenizer()).segments[0].tolist()
    drawn = {"text": 0, "chosen": 0, "rejected": 0, "blank": 0}
    for path in tree_of("packed").iter(f"{SVG}path"):
        drawn[path.get("class")] += path.get("d").count("M")
    n, a, b = (segments.count(k) for k in (0, 1, 2))
    assert drawn["chosen"] == a * (a + 1) // 2 and drawn["rejected"] == b * (b + 1) // 2
    assert drawn["text"] == n * (n + 1) // 2 + (a + b) * n
    assert sum(drawn.values()) == len(segments) ** 2


def test_the_words_are_the_tokens_of_the_shipped_chatbot(drawings):
    """Catches a drawing that cuts words where the real tokenizer does not."""
    if not (SHIPPED / "sft.pt").is_file():
        pytest.skip("chatbots/sft.pt is missing")
    real = checkpoint.tokenizer_of(checkpoint.load(SHIPPED / "sft.pt", CHATBOTS))
    stand_in = drawings.make_tokenizer()
    for text in (drawings.QUESTION, drawings.CHOSEN, drawings.REJECTED):
        ours, theirs = stand_in.encode(f" {text}"), real.encode(f" {text}")
        assert drawings.words_of(ours, stand_in) == drawings.words_of(theirs, real)


def test_the_checkpoints_are_those_that_the_scripts_write_and_read(drawings):
    """Catches a stage that starts elsewhere than its arrow says."""
    stages = drawings.UPPER | drawings.LOWER
    for _, script, _, folder, _ in stages.values():
        assert importlib.import_module(script.removesuffix(".py")).Config().out == folder
    for name in ("train_reward", "train_ppo", "train_dpo", "train_grpo"):
        assert importlib.import_module(name).Config().init == "runs/sft"
    assert importlib.import_module("train_ppo").Config().reward == "runs/reward"
    assert importlib.import_module("train_sft").Config().init == "runs/caption"


def test_the_examples_of_the_script_hold(drawings):
    """Catches a worked example that no longer comes out."""
    done = doctest.testmod(drawings)
    assert done.attempted and not done.failed
