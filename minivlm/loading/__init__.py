"""From files to tensors, and from checkpoints to models.

    prepared.py  reads and writes data folders: records, meta.json, tokenizer, pictures.
    records.py   checks what the keys of a record and of meta.json hold, when they are read.
    images.py    turns picture files into normalized tensors of one size.
    batches.py   turns records and pictures into the batch of a step.
    models.py    checks that a checkpoint's weights fit its config, then rebuilds the model.
"""
