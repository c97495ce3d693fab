"""Published weights, read from a local folder; and our weights, written for other programs.

    weights.py       reads CLIP and GPT-2 as huggingface/transformers saves them.
    weight_names.py  tells which of our tensors belongs to which published ones.
    tokenizers.py    reads tokenizers: GPT-2's, CLIP's, and ours as export.py writes it.
    export.py        writes a run as a folder that transformers loads.
"""

from minivlm.pretrained.weights import read_clip, read_gpt2

__all__ = ["read_clip", "read_gpt2"]
