"""LLaVA's data engine: a teacher that sees no picture writes dialogues about it.

    teachers.py   Three teachers behind one interface: a language model at an endpoint, a
                  GPT of ours, and templates. Keeps a journal of replies that cost money.
    template.py   The offline teacher: composes dialogues from the objects of a picture.
    phrasings.py  The many ways in which the offline teacher words one question.
    checks.py     Reads a teacher's reply and finds what is wrong with it.

`data/instruct.py` puts them together and writes a split that `train_sft.py` can read.
"""
