"""docs/tour.ipynb and results/tour.py: the same cells, a valid notebook, outputs that come out."""

import base64
import doctest
import importlib
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from minivlm.chatbot import SHIPPED

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
# the cells of CLIP's training, which takes half a minute; no later cell needs them
TRAINS = ("clip", "similarities", "train-clip", "heat-maps")


@pytest.fixture
def tour(monkeypatch):
    """The script, imported as it imports its neighbors when it is run."""
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module("tour")


@pytest.fixture
def stored() -> dict:
    """The notebook."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_the_notebook_has_the_cells_of_the_script(tour, stored):
    """Catches a cell that was changed in one of them only."""
    held = [(c["id"], c["cell_type"], "".join(c["source"])) for c in stored["cells"]]
    assert held == [tuple(cell) for cell in tour.CELLS]


def test_the_notebook_is_valid_in_format_4_5(stored):
    """Catches what Jupyter would refuse or repair: keys, ids, types of outputs."""
    assert stored.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert {"name", "display_name"} <= stored["metadata"]["kernelspec"].keys()
    ids = [cell["id"] for cell in stored["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    counts = []
    for cell in stored["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            counts.append(cell["execution_count"])
        assert cell.keys() == keys and cell["cell_type"] in ("code", "markdown")
        assert all(type(line) is str for line in cell["source"]) and cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    assert counts == list(range(1, len(counts) + 1))


def test_every_output_can_be_shown(stored):
    """Catches a damaged picture, an unknown output, a notebook too large to open."""
    n_pictures = 0
    for output in [o for cell in stored["cells"] for o in cell.get("outputs", [])]:
        if output["output_type"] == "stream":
            assert output.keys() == {"name", "output_type", "text"} and output["name"] == "stdout"
            continue
        assert output.keys() == {"data", "metadata", "output_type"}
        assert output["output_type"] == "display_data"
        picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
        picture.load()
        assert picture.width <= 960
        n_pictures += 1
    assert n_pictures >= 5 and NOTEBOOK.stat().st_size < 600_000


def test_a_cell_can_be_read_at_a_glance(tour):
    """Catches a cell that has grown over 25 lines, or that is no Python."""
    for cell in tour.CELLS:
        if cell.kind == "code":
            compile(cell.source, cell.name, "exec")
            assert cell.source.count("\n") < 25, cell.name


def test_the_cells_print_what_the_notebook_shows(tour, stored):
    """Catches outputs that no longer come out, but for those of CLIP's training."""
    missing = [n for n in ("sft.pt", "dpo.pt") if not (SHIPPED / n).is_file()]
    if missing:
        pytest.skip(f"chatbots/{missing[0]} is missing")
    cells = [cell for cell in tour.CELLS if cell.name not in TRAINS]
    assert len(tour.CELLS) - len(cells) == len(TRAINS)
    assert not tour.differences(stored, tour.execute(cells))


def test_a_cell_that_raises_is_named(tour, capsys):
    """Catches a failure that does not say where, and output that bypasses the notebook."""
    cells = [tour.code("good", "print('a')\nx = 1"), tour.code("bad", "x / 0")]
    with pytest.raises(RuntimeError, match="cell bad: ZeroDivisionError"):
        tour.execute(cells)
    assert capsys.readouterr().out == ""
    outputs = tour.execute([cells[0], tour.code("next", "print('b', x)")])
    assert [tour.printed(outputs[name]) for name in ("good", "next")] == ["a\n", "b 1\n"]


def test_pictures_stand_between_the_lines_that_surround_them(tour):
    """Catches a picture that is moved behind all text of its cell."""
    source = "from PIL import Image\nprint('a')\ndisplay(Image.new('RGB', (2, 2)))\nprint('b')"
    outputs = tour.execute([tour.code("one", source)])["one"]
    assert [o["output_type"] for o in outputs] == ["stream", "display_data", "stream"]


def test_other_words_differ_and_times_and_last_digits_do_not(tour):
    """Catches a check that passes whatever is printed, and one that fails on a slower machine."""
    stored = {"cells": [{"id": "one", "outputs": [
        {"output_type": "stream", "text": ["loss 1.30\n", "in 7 s\n"]}]}]}

    def differs(text: str) -> bool:
        outputs = {"one": [{"output_type": "stream", "text": text}]}
        return tour.differences(stored, outputs) == ["one"]

    assert not differs("loss 1.30\nin 7 s\n") and not differs("loss 1.34\nin 19 s\n")
    assert differs("loss 1.60\nin 7 s\n") and differs("gain 1.30\nin 7 s\n") and differs("")
    done = doctest.testmod(tour)
    assert done.attempted and not done.failed
