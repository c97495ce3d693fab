"""Published weights, read from a local folder; and our weights, written for other programs.

    weights.py       reads CLIP and language models as huggingface/transformers saves them.
    families.py      tells what a language model's config.json means, in both directions.
    weight_names.py  tells which of our tensors belongs to which published ones.
    tokenizers.py    reads tokenizers: GPT-2's, CLIP's, and ours as export.py writes it.
    export.py        writes a run as a folder that transformers loads.
"""

from minivlm.pretrained.weights import load_state, read_lm, read_vision, read_vlm

__all__ = ["load_state", "read_lm", "read_vision", "read_vlm"]
