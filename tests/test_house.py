"""The layout: imports go one way, rooms say what is in them, training loops are not copied."""

import ast
import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("lm", "clip", "caption", "align", "sft", "reward", "ppo", "grpo", "dpo")
ROOMS = ("loading", "metrics", "evaluation", "preferences", "engine", "pretrained", "running")
MATHEMATICS = {"losses", "rl"}
NETWORKS = {"transformer", "rotary", "attention_masks", "cache", "vit", "gpt", "clip", "projector",
            "vlm", "captioner", "heads", "lora", "flops"}
# what each part of minivlm may import from minivlm, besides itself
MAY_IMPORT = {
    "mathematics": set(),
    "networks": {"mathematics"},
    "optim": {"networks"},
    "words": {"mathematics", "networks", "loading", "running"},
    # the type of the tokenizer, whose text checkpoints hold; what a model computes
    "running": {"words", "networks"},
    "loading": {"mathematics", "networks", "words", "running", "metrics"},
    "metrics": set(),
    "evaluation": {"mathematics", "networks", "words", "running", "loading", "metrics"},
    "preferences": {"mathematics", "networks", "words", "running", "loading", "metrics",
                    "evaluation", "engine", "pretrained"},
    "engine": {"words", "running", "loading", "metrics", "evaluation"},
    "pretrained": {"networks", "words", "running", "loading"},
}


# the type of what blip_losses reads
EXCEPTIONS = {("minivlm.captioner", "minivlm.loading.batches")}


def part_of(module: str) -> str:
    """The part of minivlm that a module belongs to: "minivlm.gpt" -> "networks"."""
    name = module.split(".")[1]
    if name in MATHEMATICS:
        return "mathematics"
    if name in NETWORKS:
        return "networks"
    return name if name in MAY_IMPORT else "words"


def imports_of(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ("minivlm", "minivlm.running"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in ("minivlm", "data")
            or name.startswith("train_")}


def test_imports_go_one_way():
    """Catches a model file that reads files, a loss that knows a model, a package that imports data
    sets or scripts: whoever reads a room needs only the rooms that it stands on.
    """
    wrong = []
    for path in (ROOT / "minivlm").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module in ("minivlm.__init__", "minivlm.export"):
            continue
        own = part_of(module)
        for name in imports_of(path):
            allowed = name.startswith("minivlm.") and (
                part_of(name) == own or part_of(name) in MAY_IMPORT[own])
            if not allowed and (module, name) not in EXCEPTIONS:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_file_patches_the_search_path():
    """Catches a script that only runs from where its author stood: the checkout is installed."""
    done = subprocess.run(["git", "grep", "-l", r"sys\.path\b", "--", "*.py"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.stdout.split() in (["tests/test_house.py"], [])  # or no git


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it(room):
    """Catches a file that the room's own map does not name, and one that is gone."""
    folder = ROOT / "minivlm" / room
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    files = {p.name for p in folder.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^ *(\w+\.py)(?: |$)", doc, flags=re.MULTILINE)) == files


def lines_of_main(name: str) -> list[str]:
    """The non-blank lines of a training script's main."""
    text = (ROOT / f"train_{name}.py").read_text()
    main = next(n for n in ast.parse(text).body if getattr(n, "name", "") == "main")
    lines = text.splitlines()[main.lineno - 1:main.end_lineno]
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("a, b", list(itertools.combinations(SCRIPTS, 2)))
def test_no_two_loops_are_copies(a, b):
    """Catches machinery that is copied from script to script, where a mistake is copied too: no run
    of 12 equal lines.
    """
    ours, theirs = lines_of_main(a), lines_of_main(b)
    longest = 0
    for i, j in itertools.product(range(len(ours)), range(len(theirs))):
        n = 0
        while i + n < len(ours) and j + n < len(theirs) and ours[i + n] == theirs[j + n]:
            n += 1
        longest = max(longest, n)
    assert longest < 12
