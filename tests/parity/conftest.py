"""Beside other people's code: every quantity against a peer's, on many random cases.

    python -m pytest tests/parity --large --table docs/parity.md    measures, writes the table

A peer that is not installed skips its tests, and says how to get it: install.sh. Nothing of a peer
is imported that needs torchvision or a network; see peers.py.
"""

import random
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

HEAD = """# Compared with independent implementations

`python -m pytest tests/parity --large --table docs/parity.md` writes this page. It compares each
quantity with an independent implementation, the peer, on many random cases.

- A case is one draw of sizes, weights and inputs. For models of published size it is a text with a
  picture, one position of a text, or one token of an answer. For an exported chatbot it is a
  dialogue or a question.
- The relative error of a tensor is its largest difference from the peer's tensor, divided by the
  largest magnitude in the peer's tensor. The table shows the worst over all cases.
- "equal" means that ids, texts or truth values are the same.

| quantity | peer | cases | worst relative error | allowed |
|---|---|---|---|---|
"""
TAIL = """
What is not in the table:

- Momentum encoders and queues: minivlm does not have them.
- LLaVA's masks, and the counts of POPE, CHAIR and AMBER: no package contains their code.
  `tests/test_conversation.py` and `tests/metrics/test_metrics.py` implement the published rules a
  second time and compare with that. `tests/metrics/test_chair_of_coco.py` has sentences with the
  objects that the published CHAIR finds in them.
- Captions with signs like & or brackets, abbreviations with points, and words like cannot: the COCO
  evaluation's tokenizer reads them differently, see `tokenize` in `minivlm/metrics/captions.py`.
- Properties that need no peer, such as order, padding, shifts, swapped pictures, adapters and
  packed rows: `tests/parity/test_metamorphic.py` tests them.
- gpt2-xl, SmolLM2 beyond 135M, TinyLlama, Llama-3.2-1B, Vicuna-7B, Qwen2.5-7B, the larger SigLIPs,
  LLaVA-1.5-7B: only their tensor names and shapes are compared.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--table FILE`: where the measured errors go; `--large`: true sizes of gigabytes too."""
    parser.addoption("--table", default=None, help="write the table of parity to this file")
    parser.addoption("--large", action="store_true", help="also the largest published sizes")


class Agreement:
    """One line of the table: what is compared with whom, and the worst that was seen.

    Args:
        quantity: what is compared.
        distributions: installed packages whose versions the line names, e.g. "trl", or
            "trl-0.24.0" for a second version, see peers.py.
        function: which function or class of them.
        allowed: largest relative error; 0 demands equality.
    """

    def __init__(self, quantity: str, distributions: str, function: str, allowed: float):
        self.quantity, self.allowed, self.worst, self.n_cases = quantity, allowed, 0.0, 0
        versions = [name.replace("-", " ", 1) if re.search(r"-\d", name)
                    else f"{name} {metadata.version(name)}" for name in distributions.split()]
        self.peer = f"{', '.join(versions)}: `{function}`"

    def cases(self, n: int = 100) -> Iterator[random.Random]:
        """Count n cases; each seeds torch and gives a generator for sizes and choices."""
        for seed in range(self.n_cases, self.n_cases + n):
            torch.manual_seed(seed)
            self.n_cases += 1
            yield random.Random(seed)

    def close(self, ours: Tensor, theirs: Tensor, least: float = 0.0) -> None:
        """Demand that two tensors of one shape differ by no more than is allowed.

        Args:
            least: what the error is measured against if the peer's largest magnitude is below it:
                what should be 0, a key's bias's gradient, say, is rounding noise on both sides.
        """
        ours, theirs = torch.as_tensor(ours).detach(), torch.as_tensor(theirs).detach()
        assert ours.shape == theirs.shape
        if not theirs.numel():
            return
        largest = max(float(theirs.abs().max()), least)
        difference = float((ours.double() - theirs.double()).abs().max())
        error = difference / largest if largest else difference
        assert error <= self.allowed, f"{self.quantity}: {error:.1e} in case {self.n_cases - 1}"
        self.worst = max(self.worst, error)

    def close_with_grads(self, ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
        """Demand that two values agree, and what a random gradient of them pulls back to inputs."""
        self.close(ours, theirs)
        pull = torch.randn_like(theirs)  # a sum would not do: that of whitened numbers is 0
        pulled = (torch.autograd.grad(y, inputs, pull, retain_graph=True, materialize_grads=True)
                  for y in (ours, theirs))
        for a, b in zip(*pulled):
            self.close(a, b)

    def same(self, ours: object, theirs: object) -> None:
        """Demand equality of ids, texts, truth values."""
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs), f"{self.quantity}: case {self.n_cases - 1}"
        else:
            assert ours == theirs, f"{self.quantity}: case {self.n_cases - 1}"

    def line(self) -> str:
        """The table's line."""
        if not self.allowed:
            return f"| {self.quantity} | {self.peer} | {self.n_cases:,} | equal | equal |"
        return (f"| {self.quantity} | {self.peer} | {self.n_cases:,} | {self.worst:.0e} "
                f"| {self.allowed:.0e} |")


@pytest.fixture(scope="session")
def lines(request: pytest.FixtureRequest) -> Iterator[dict[str, Agreement]]:
    """All agreements by quantity, in the order of the tests; written at the end if asked for."""
    seen: dict[str, Agreement] = {}
    yield seen
    table = request.config.getoption("--table", default=None)
    if table:
        text = "".join(a.line() + "\n" for a in seen.values())
        Path(table).write_text(HEAD + text + TAIL)


@pytest.fixture
def large(request: pytest.FixtureRequest) -> None:
    """Skip unless `--large` was given."""
    if not request.config.getoption("--large", default=False):
        pytest.skip("minutes and gigabytes; runs with --large")


@pytest.fixture
def agreement(lines: dict[str, Agreement]):
    """Begin a line of the table, see Agreement."""
    def begin(*of: object) -> Agreement:
        made = Agreement(*of)
        assert made.quantity not in lines, f"{made.quantity} is compared twice"
        lines[made.quantity] = made
        return made

    return begin
