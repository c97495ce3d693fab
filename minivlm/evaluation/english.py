"""Articles, lists and plurals in English, which all data sets share."""

from functools import lru_cache

# how words end -> how their plurals end
IRREGULAR = {
    "person": "people", "child": "children", "mouse": "mice", "goose": "geese",
    "sheep": "sheep", "fish": "fish", "skis": "skis", "woman": "women",
    "man": "men", "thief": "thieves", "foot": "feet", "tooth": "teeth", "lens": "lenses",
    "potato": "potatoes", "tomato": "tomatoes",
}
# words that end like these, but are neither men nor geese
REGULAR = (
    "human", "german", "roman", "norman", "ottoman", "shaman", "talisman", "caiman",
    "brahman", "doberman", "mongoose",
)


def article(phrase: str) -> str:
    """Put "a" or "an" before a phrase in lower case; the first letter decides."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def join(parts: list[str]) -> str:
    """Join parts as in "a, b and c"; at least one part."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


@lru_cache(maxsize=None)
def plural(phrase: str) -> str:
    """Return the plural of a phrase: its last word becomes plural.

    >>> [plural(p) for p in ("hot dog", "wine glass", "puppy", "knife", "snowman")]
    ['hot dogs', 'wine glasses', 'puppies', 'knives', 'snowmen']
    >>> [plural(p) for p in ("giraffe", "human", "scissors", "iris")]
    ['giraffes', 'humans', 'scissors', 'irises']
    """
    *before, noun = phrase.split()
    irregular = next((word for word in IRREGULAR if noun.endswith(word)), "")
    if irregular and not noun.lower().endswith(REGULAR):
        noun = noun.removesuffix(irregular) + IRREGULAR[irregular]
    elif noun.endswith(("ss", "us", "is", "as", "sh", "ch", "x", "z")):
        noun += "es"
    elif noun.endswith("s"):
        pass  # a plural already: scissors, jeans
    elif noun.endswith("y") and noun[-2:-1] not in "aeiou":
        noun = noun[:-1] + "ies"
    elif noun.endswith(("ife", "lf", "eaf")):
        noun = noun.removesuffix("e")[:-1] + "ves"  # knife and leaf lose their f
    else:
        noun += "s"
    return " ".join([*before, noun])
