"""Talk that no picture decides: greetings, thanks, who are you, and what cannot be done.

The answers are the same for every picture. Whatever else is asked, the offline teacher
answers with an offer of what the chatbot can do, which is no refusal.
"""

from random import Random

from minivlm.engine.questions import Draft
from minivlm.engine.wording import REFUSE, UNKNOWN

ABLE = "what is in the picture, where things are and what is unusual"
# kind -> its answers, one of which is drawn
ANSWERS = {
    "greeting": ("Hello! What would you like to know about the picture?",),
    "thanks": ("You are welcome!",),
    "bye": ("Goodbye!",),
    "who": (f"I am a small chatbot that looks at pictures. Ask me {ABLE}.",),
    "able": (f"You can ask me {ABLE}.",),
    "offer": (f"That is not in my book. But you can ask me {ABLE}.",),
    "unknowable": (UNKNOWN,),
    "unsafe": (REFUSE,),
}
# what a right answer contains
SIGNS = {
    "greeting": ("hello",), "thanks": ("welcome",), "bye": ("goodbye",),
    "who": ("chatbot",), "able": ("you can ask me",), "offer": ("you can ask me",),
    "unknowable": ("not sure",), "unsafe": (),
}


def say(kind: str, rng: Random) -> Draft:
    """A question of a kind that no picture decides, with its answer."""
    return Draft(kind, {}, "", rng.choice(ANSWERS[kind]), SIGNS[kind])
