"""Ask a trained model questions about pictures of a data folder, as evaluate.py does."""

from collections.abc import Sequence
from pathlib import Path

from minivlm.evaluation.measure import Answerer, EvalData, make_answerer
from minivlm.loading.images import Pictures
from minivlm.loading.models import fit_of, vlm_from
from minivlm.loading.prepared import load_meta
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint
from minivlm.tokenizer import CHATBOTS

LONGEST, BATCH = 96, 16  # tokens of an answer, answers written at a time


def load_answerer(run: str | Path, data: str | Path) -> Answerer:
    """Load a captioner or chatbot: questions with their "image" -> answers."""
    state = load_state(run, ("caption", *CHATBOTS))
    model = vlm_from(state).eval()
    tokenizer = checkpoint.tokenizer_of(state)
    pictures = Pictures(data, model.vit.config.image_size, fit_of(state))
    seen = EvalData(str(data), load_meta(data), tokenizer, pictures)
    return make_answerer(model, seen, tokenizer.stop(state["stage"]), LONGEST, BATCH)


def converse(ask: Answerer, image: str, questions: Sequence[str]) -> list[tuple[str, str]]:
    """Ask the questions of one conversation in turn; return them with their answers."""
    before = []
    for question in questions:
        [answer] = ask([{"image": image, "question": question, "before": before}])
        before.append({"from": "human", "value": question})
        # an empty answer is no turn, as in chat.py
        before.append({"from": "gpt", "value": answer.strip() or "..."})
    texts = [turn["value"] for turn in before]
    return list(zip(texts[::2], texts[1::2]))
