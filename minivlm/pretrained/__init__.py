"""Published weights: read from a local folder as ours, written as huggingface/transformers has them.

    weights.py       read_clip, read_gpt2: a folder -> what train_align.py starts from
    weight_names.py  which of our weights is which of the published ones
    tokenizers.py    published tokenizers
    export.py        our runs -> folders that transformers loads
"""

from minivlm.pretrained.weights import read_clip, read_gpt2

__all__ = ["read_clip", "read_gpt2"]
