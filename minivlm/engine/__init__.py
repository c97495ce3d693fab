"""LLaVA's data engine: a teacher that sees no picture writes dialogues about it.

    teachers.py   Three teachers behind one interface: a language model at an endpoint, a
                  GPT of ours, and templates. Keeps a journal of replies that cost money.
    template.py   The offline teacher: composes dialogues from what is known of a picture.
    questions.py  Its questions about objects, each with what a right answer contains.
    scenes.py     Its questions about the whole picture, and about what is usual.
    talk.py       Greetings, thanks, requests that no picture decides.
    references.py Ways to speak of one object.
    facts.py      Kinds of facts about things.
    wording.py    Words that all of these share; what a data set's pictures can show.
    phrasings.py  The many ways in which the offline teacher words one question.
    dialogues.py  From questions and answers to turns.
    quiz.py       The same questions as a measure of a chatbot.
    checks.py     Reads a teacher's reply and finds what is wrong with it.

`data/instruct.py` puts them together and writes a split that `train_sft.py` can read.
"""
