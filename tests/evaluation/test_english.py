"""minivlm/evaluation/english.py: plurals."""

import pytest

from minivlm.evaluation.english import plural


@pytest.mark.parametrize("one, many", [
    ("human", "humans"), ("German", "Germans"), ("ottoman", "ottomans"), ("doberman", "dobermans"),
    ("woman", "women"), ("policeman", "policemen"), ("snowman", "snowmen"), ("man", "men"),
    ("mongoose", "mongooses"), ("goose", "geese"), ("foot", "feet"), ("lens", "lenses"),
    ("iris", "irises"), ("canvas", "canvases"), ("bus", "buses"), ("glass", "glasses"),
    ("jeans", "jeans"), ("scissors", "scissors"), ("skis", "skis"), ("tomato", "tomatoes"),
    ("waltz", "waltzes"), ("fish", "fish"), ("red fish", "red fish"), ("dish", "dishes"),
    ("red ring", "red rings"), ("salesperson", "salespeople"),
])
def test_plurals_are_english(one, many):
    """Catches "humen", a plural of a plural, and an ending that cannot be said."""
    assert plural(one) == many
