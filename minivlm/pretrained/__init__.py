"""Published weights: read from a local folder, and ours written for other programs.

    weights.py       reads CLIP and GPT-2 as huggingface/transformers saves them.
    weight_names.py  tells which of our tensors is which published one, in both directions.
    tokenizers.py    reads published tokenizers: GPT-2's, ours and CLIP's.
    export.py        writes our runs as folders that transformers loads.
"""

from minivlm.pretrained.weights import read_clip, read_gpt2

__all__ = ["read_clip", "read_gpt2"]
