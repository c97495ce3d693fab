"""What stage 4 reads: rankings of answers, pairs made from rankings, and prompts.

    rankings.py    reads rankings, and says why one cannot be used.
    people.py      keeps rankings that people make one by one, and compares them.
    pairs.py       reads pairs and makes rows from them; keeps the reference's
                   log-probabilities in a file.
    pairs_from_rankings.py
                   makes pairs from rankings.
    prompts.py     makes prompts for the policy and the reward model from questions.
    agreement.py   measures how well a reward model's scores agree with rankings.
    pool.py        collects several answers to each question, from chatbots or a file.
    judge.py       asks a vision-language model at an endpoint to rate answers.
    layouts.py     reads rankings that others published, and writes pairs for TRL.
"""
