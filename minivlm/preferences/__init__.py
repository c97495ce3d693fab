"""Answers that were compared: rankings, and pairs made from them; for stage 4.

    rankings.py    reads rankings, and says why one cannot be used.
    pairs.py       makes pairs from rankings, and rows from pairs; asks the reference.
    prompts.py     makes questions ready for the policy and the reward model.
    agreement.py   measures how well a reward model's scores agree with rankings.
    pool.py        draws several answers to each question from one chatbot or several.
    judge.py       asks a vision-language model behind an endpoint to rate answers.
    layouts.py     reads rankings that others published, and writes pairs for TRL.
"""
