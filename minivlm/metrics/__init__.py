"""The formulas of the evaluation: pure functions of predictions and truth.

    retrieval.py      recall_at_k, clip_score: How well do pictures and texts fit?
    captions.py       bleu, rouge_l, cider: How similar is a caption to people's captions?
    answers.py        answer_ok, style_ok, vqa_accuracy: Is a short answer right?
                      calibration_error: Is a model right as often as it is confident?
    hallucination.py  pope, chair: Does a model invent objects?
"""

from minivlm.metrics.answers import (
    answer_ok, calibration_error, is_unsure, normalize_answer, style_ok, vqa_accuracy,
    words_of,
)
from minivlm.metrics.captions import bleu, cider, rouge_l, tokenize
from minivlm.metrics.hallucination import (
    Phrases, chair, mentions, pope, pope_questions, says_yes,
)
from minivlm.metrics.retrieval import clip_score, recall_at_k, recall_by_chance

__all__ = [
    "Phrases", "answer_ok", "bleu", "calibration_error", "chair", "cider", "clip_score",
    "is_unsure", "mentions", "normalize_answer", "pope", "pope_questions", "recall_at_k",
    "recall_by_chance", "rouge_l", "says_yes", "style_ok", "tokenize", "vqa_accuracy",
    "words_of",
]
