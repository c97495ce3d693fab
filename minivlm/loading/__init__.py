"""From files to tensors, and from checkpoints to models.

    prepared.py  reads and writes data folders: records, meta.json, tokenizer, packed pictures.
    images.py    turns picture files into normalized tensors of one size.
    batches.py   turns records and pictures into the batch of a step.
    models.py    rebuilds models from checkpoints, once their weights are known to fit.
"""
