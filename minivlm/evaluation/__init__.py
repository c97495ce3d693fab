"""Is an answer right, and how good is a model? This room decides it.

    scene.py        What does a picture show, and is a sentence about it true?
    english.py      Articles and plurals, for code that reads or writes sentences.
    refusals.py     The rule of when a refusal is right.
    correctness.py  Is an answer right, and is it the kind of answer that was asked for?
    raters.py       Ratings by the scene itself, by simulated people, by a simulated judge.
    measure.py      The figures of a CLIP, a VLM or a captioner on held-out records.
    axes.py         A chatbot's figures on five axes, and its wins against another run.
    held_out.py     The loss on held-out batches, which training scripts log.

The formulas behind the figures stand in minivlm/metrics.
"""
