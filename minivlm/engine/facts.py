"""Kinds of facts about things, and the sentence that tells each.

A data folder's meta.json may hold facts: kind of object -> aspect -> what completes the
aspect's sentence. A language model that has read them can be asked about an object that it
sees: "What does the thing at the left eat?"
"""

# aspect -> its sentence: {a} is the thing with its article, {v} the fact
ASPECTS = {
    "is": "{a} is {v}",
    "does": "{a} {v}",
    "eats": "{a} eats {v}",
    "says": "{a} says {v}",
    "needs": "{a} needs {v}",
    "made": "{a} is made of {v}",
    "has": "{a} has {v}",
    "found": "{a} is found {v}",
    "for": "{a} is good for {v}",
    "comes": "{a} comes {v}",
    "can": "{a} can {v}",
    "near": "{a} is often near {v}",
}
# one more aspect, for other kinds of questions: where a thing belongs
HOME = "home"
