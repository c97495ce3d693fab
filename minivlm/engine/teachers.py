"""Who writes the dialogues: three teachers behind one small interface.

    for request, reply in teacher.write(requests): ...

`template` composes offline from what is known of a picture; `openai` asks any server that speaks
the OpenAI chat protocol; `local` lets a GPT of ours continue the prompt. Replies come in any order;
one that failed for good carries its error instead of a text.

Used by: instruct.py; its judge, preferences.py.
"""

import json
import os
import random
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from minivlm.engine import template
from minivlm.running.files import check_entries, is_number
from minivlm.running.options import printable


@dataclass
class Request:
    """What is to be written: its key, type, the record, and the messages for a language model."""

    key: str
    kind: str
    record: dict
    messages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Reply:
    """What came back: the raw text, or an error; whether it was cut off; tokens in and out.

    refused: the endpoint will not answer such a request at any time.
    """

    text: str = ""
    error: str = ""
    cut: bool = False
    refused: bool = False
    tokens: tuple[int, int] = (0, 0)


class Teacher(Protocol):
    """Anything that answers requests."""

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answer each request once, in any order."""


class TemplateTeacher:
    """Offline and deterministic: an answer depends on the seed and the request's key alone.

    Args:
        world: names of things that pictures of the data set can show.
        seed: another seed asks other questions.
    """

    def __init__(self, world: tuple[str, ...], seed: int):
        self.world, self.seed = world, seed

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answer in order; a picture of which nothing can be asked gets an error."""
        for r in requests:
            rng = random.Random(f"{self.seed} {r.key}")
            try:
                text = template.write(r.kind, r.record, rng, self.world)
                yield r, Reply(text)
            except ValueError as error:
                yield r, Reply(error=str(error))


class OpenAITeacher:
    """Any OpenAI-compatible chat endpoint, through the official client: pip install -e '.[openai]'.

    The key comes from OPENAI_API_KEY and is written nowhere. Rate limits (429), server errors (5xx)
    and time-outs are tried again after 1, 2, 4, ... seconds, at most `retries` times; what fails
    then is an error of that request alone. At most `concurrency` requests are under way.

    Raises:
        ValueError: if the client is not installed, or there is no key.
    """

    def __init__(
        self, model: str, base_url: str = "", concurrency: int = 4, retries: int = 5,
        timeout: float = 60.0, temperature: float = 0.7, max_tokens: int = 800, pause: float = 1.0,
    ):
        try:
            import openai
        except ImportError:
            raise ValueError("teacher openai needs the client: pip install openai") from None
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise ValueError("teacher openai needs a key in the environment: OPENAI_API_KEY")
        self.openai = openai
        self.client = openai.OpenAI(
            api_key=key, base_url=base_url or None, timeout=timeout, max_retries=0
        )
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.concurrency, self.retries, self.pause = concurrency, retries, pause
        self.stopped = threading.Event()

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answer as replies arrive.

        Raises:
            ValueError: if the endpoint refuses a request for good (a wrong key, model or option)
                before it has answered any.
        """
        waiting, under_way, answered = iter(requests), {}, False
        self.stopped.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            def start() -> None:
                r = next(waiting, None)
                if r is not None:
                    under_way[pool.submit(self._ask, r)] = r

            for _ in range(self.concurrency):
                start()
            try:
                while under_way:
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        request, reply = under_way.pop(future), future.result()
                        if reply.refused and not answered:
                            raise ValueError(f"the endpoint refuses: {reply.error}")
                        answered = answered or not reply.error
                        start()
                        yield request, reply
            finally:  # a caller that stops early waits for the attempts under way, not for more
                self.stopped.set()

    def _ask(self, request: Request) -> Reply:
        """One request with its further attempts."""
        e, reason = self.openai, "stopped"
        for attempt in range(self.retries + 1):
            if self.stopped.is_set():
                return Reply(error=reason)
            try:
                made = self.client.chat.completions.create(
                    model=self.model, messages=request.messages, temperature=self.temperature,
                    max_tokens=self.max_tokens,
                )
                return self._read(made)
            except (e.RateLimitError, e.APIConnectionError, e.InternalServerError) as error:
                reason = type(error).__name__  # a time-out is an APIConnectionError
            except e.APIStatusError as error:  # a wrong key or model: trying again does not help
                said = str(error).replace(self.client.api_key, "***").splitlines()[0][:200]
                return Reply(error=said, refused=True)
            except Exception as error:  # what no JSON reader can read
                reason = type(error).__name__
            self.stopped.wait(self.pause * 2 ** attempt * random.uniform(0.5, 1.5))
        return Reply(error=f"{reason} after {self.retries + 1} attempts")

    @staticmethod
    def _read(made) -> Reply:
        """The text of a completion; none at all is a reply too, and was paid for."""
        choice = made.choices[0] if getattr(made, "choices", None) else None
        text = getattr(getattr(choice, "message", None), "content", None)
        usage = getattr(made, "usage", None)
        spent = (getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
        tokens = tuple(n if type(n) is int and 0 <= n < 10 ** 9 else 0 for n in spent)
        cut = getattr(choice, "finish_reason", "") == "length"
        return Reply(text if isinstance(text, str) else "", cut=cut, tokens=tokens)


class LocalTeacher:
    """A GPT of ours: it continues "role: content" lines until its end token.

    A model as small as the default writes nothing that passes; the interface is what is here.

    Args:
        run: run folder of train_lm.py.
    """

    def __init__(self, run: str, temperature: float, max_tokens: int, seed: int, device: str):
        import torch

        from minivlm.loading.models import gpt_from
        from minivlm.running import checkpoint
        from minivlm.running.machine import pick_device
        from minivlm.tokenizer import Tokenizer

        state = checkpoint.load(run, ("lm",))
        self.tokenizer = Tokenizer.from_text(state["tokenizer"])
        self.model = gpt_from(state)
        self.model.to(pick_device(device)).eval()
        self.temperature, self.max_tokens = temperature, max_tokens
        self.generator = torch.Generator(pick_device(device)).manual_seed(seed)

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answer one by one; of a prompt longer than the context the end is read."""
        from minivlm.generate import generate

        room = self.model.config.block_size
        for r in requests:
            ids = self.tokenizer.encode(messages_as_text(r.messages))
            new = min(self.max_tokens, room // 2)
            ids = ids[-(room - new):]
            made = generate(
                self.model, None, [ids], max_new_tokens=new, stop=self.tokenizer.endoftext,
                temperature=self.temperature, generator=self.generator,
            )[0]
            yield r, Reply(self.tokenizer.decode(made), cut=len(made) == new,
                           tokens=(len(ids), len(made)))


def messages_as_text(messages: list[dict[str, Any]]) -> str:
    """Messages as one text, for a model without a chat format of its own."""
    return "".join(f"{m['role']}:\n{m['content']}\n\n" for m in messages) + "assistant:\n"


# --- replies that were paid for ---


def journal(path: Path, header: dict) -> dict[str, dict]:
    """The replies that earlier runs have left, by key; a half-written last line is cut off.

    A new journal begins with `header`: who writes, and what it is told.

    Raises:
        ValueError: if the journal is another teacher's, or a line before the last is no JSON.
    """
    if not path.is_file():
        path.write_text(json.dumps(header) + "\n")
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):  # killed while writing
        with path.open("r+b") as f:
            f.truncate(whole)
    try:
        first, *lines = map(json.loads, content[:whole].decode().splitlines())
        check_entries(lines, "replies", key=str, raw=str, error=str, cut=bool, tokens=list)
        replies = {line["key"]: line for line in lines}
        if not all(len(r["tokens"]) == 2 and all(map(is_number, r["tokens"])) for r in lines):
            raise ValueError("tokens are not two numbers")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); --fresh begins anew") from None
    if first != header:
        raise ValueError(
            f"{path} holds replies by {first}, not {header}; use another --out, or --fresh"
        )
    return replies


def ask(
    teacher: Teacher, requests: Iterable[Request], n: int, path: Path | None
) -> dict[str, dict]:
    """The replies by key, each written to `path` as it arrives; those with an error are left out.

    So the next run asks these again.
    """
    replies = {}
    with path.open("a", encoding="utf-8") if path else nullcontext() as f:
        for request, reply in tqdm(teacher.write(requests), desc="asking", total=n, disable=None):
            if reply.error and path:
                tqdm.write(printable(f"{request.key}: {reply.error}", keep=""))
                continue
            replies[request.key] = line = {
                "key": request.key, "kind": request.kind, "raw": reply.text, "error": reply.error,
                "cut": reply.cut, "tokens": list(reply.tokens),
            }
            if f:  # what was paid for must not lie in a buffer
                f.write(json.dumps(line) + "\n")
                f.flush()
    return replies
