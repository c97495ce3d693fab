"""minivlm/loading/prepared.py: packed pictures are read from the disk unchanged, and a
vocabulary has room for all bytes.
"""

import importlib

import numpy as np
import pytest

from minivlm.loading.prepared import Pack
from minivlm.running.options import help_of
from minivlm.tokenizer import SPECIALS


@pytest.mark.parametrize("n", [1, 999, 1000, 2001])
def test_a_pack_gives_back_what_was_put_in_and_leaves_nothing_else(n, tmp_path):
    """Catches a block lost or doubled at 1,000 pictures, another order, a file left behind."""
    pictures = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    pack = Pack(tmp_path / "new")
    for i, picture in enumerate(pictures):
        assert len(pack) == i
        pack.append(picture)
    assert not list((tmp_path / "new").iterdir())  # what waits has no name
    pack.save(tmp_path / "new" / "train.npy")
    assert (np.load(tmp_path / "new" / "train.npy") == pictures).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["train.npy"]


def test_other_pictures_and_none_are_refused(tmp_path):
    """Catches pixels of two sizes, or of floats, written over each other."""
    pack = Pack(tmp_path)
    with pytest.raises(ValueError, match="no picture for"):
        pack.save(tmp_path / "train.npy")
    pack.append(np.zeros((4, 4, 3), np.uint8))
    for other in (np.zeros((5, 4, 3), np.uint8), np.zeros((4, 4, 3))):
        with pytest.raises(ValueError, match=r"among \(4, 4, 3\) of uint8"):
            pack.append(other)


@pytest.mark.parametrize("name", ["book", "nlvr", "coco", "cifar10", "llava", "webdata"])
def test_the_smallest_vocabulary_holds_all_bytes_and_special_tokens(name):
    """Catches a bound in a comment that stays behind when a special token is added."""
    module = importlib.import_module(f"data.{name}.prepare")
    assert help_of(module.Config)["vocab_size"].rule == f">= {256 + len(SPECIALS)}"
