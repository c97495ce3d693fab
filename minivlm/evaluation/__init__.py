"""This room decides whether an answer is right, and how good a model is.

    scene.py        says what a picture shows, and whether a sentence about it is true.
    english.py      makes articles and plurals, for code that reads or writes sentences.
    refusals.py     says when a refusal is right.
    correctness.py  says whether an answer is right, and of the kind that was asked for.
    raters.py       rates answers: by the scene itself, as simulated people or judges.
    measure.py      measures a CLIP, a VLM or a captioner on held-out records.
    axes.py         sums up a chatbot on five axes, and counts wins against another run.
    held_out.py     computes the loss on held-out batches, which training scripts log.

The formulas of the figures stand in minivlm/metrics.
"""
