"""chatbots/: the weights that come with the repository are those of its recipe, and they answer."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import train_dpo
import train_sft
from minivlm.chatbot import SHIPPED, Chatbot
from minivlm.running import checkpoint, options
from minivlm.tokenizer import CHATBOTS
from results import ship

MADE = json.loads((SHIPPED / "made.json").read_text())["chatbots"]
SCRIPTS = {"sft": train_sft, "dpo": train_dpo}
# options that name files, which differ from place to place
PLACES = ("data", "out", "ref_logps", *options.SOURCES)


@pytest.mark.parametrize("stage", SCRIPTS)
def test_shipped_weights_answer_as_recorded(stage):
    """Catches weights that do not load, half of a model, a change of how chatbots are asked.

    On another machine the rounding may turn a word where two are nearly equally likely.
    """
    state = checkpoint.load(SHIPPED / f"{stage}.pt", CHATBOTS)
    assert {w.dtype for w in state["model"].values()} == {torch.float16}
    said = ship.answers(Chatbot(state, torch.device("cpu")))
    recorded = MADE[stage]["answers"]
    assert len(said) == len(recorded) == len(ship.SCENES) * len(ship.QUESTIONS)
    assert sum(a != b for a, b in zip(said, recorded)) <= 2


@pytest.mark.parametrize("stage", SCRIPTS)
def test_shipped_weights_are_those_of_the_default_recipe(stage):
    """Catches weights of other options, and a recipe that went on without its weights."""
    defaults = dataclasses.asdict(SCRIPTS[stage].Config())
    config = MADE[stage]["config"]
    different = {name for name, value in config.items() if defaults.get(name) != value}
    assert different <= set(PLACES)
    saved = checkpoint.load(SHIPPED / f"{stage}.pt", CHATBOTS)["configs"]
    names = (config.keys() & saved.keys()) - set(PLACES)  # the checkpoint has fingerprints there
    assert len(names) > 10 and all(saved[name] == config[name] for name in names)
    assert MADE[stage]["environment"]["command"].startswith(f"train_{stage}.py")
    assert len(MADE[stage]["environment"]["commit"].split()[0]) >= 7


def test_shipped_files_are_small():
    """Catches optimizers and generators that are shipped too."""
    sizes = {path.name: path.stat().st_size for path in Path(SHIPPED).iterdir()}
    assert sizes.keys() == {"sft.pt", "dpo.pt", "made.json"} and sum(sizes.values()) < 10e6
