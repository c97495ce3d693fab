"""Three teachers that write dialogues, behind one small interface.

    for request, reply in teacher.write(requests): ...

`template` composes dialogues offline from the known objects of a picture. `openai` asks any
server that speaks the OpenAI chat protocol. `local` lets a GPT of ours continue a text.
Replies arrive in any order. If a request fails for good, its reply has an error instead of
a text.
"""

import json
import os
import random
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from minivlm.engine import template
from minivlm.engine.wording import World
from minivlm.running.files import check_entries, first_line, is_number
from minivlm.running.options import printable


@dataclass
class Request:
    """What a teacher is to write.

    key: the request's name, unique among all requests.
    kind: "conversation", "detail" or "reasoning"; "judge" asks for ratings.
    record: of the picture; for a judge, of the question.
    messages: what a language model reads; templates read the record.
    """

    key: str
    kind: str
    record: dict
    messages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Reply:
    """What a teacher has written.

    text: as it came.
    error: why there is no text, or "".
    cut: whether the text was cut off at the limit of tokens.
    refused: whether the endpoint will never answer this request.
    tokens: how many were read, and how many were written.
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
    """Composes dialogues offline; equal seeds and requests give equal replies.

    Args:
        world: what pictures of the data set can show.
        seed: another seed asks other questions.
    """

    def __init__(self, world: World, seed: int):
        self.world = world
        self.seed = seed

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answer in order; an error says that nothing can be asked about a picture."""
        for r in requests:
            rng = random.Random(f"{self.seed} {r.key}")
            try:
                reply = Reply(template.write(r.kind, r.record, rng, self.world))
            except ValueError as error:
                reply = Reply(error=str(error))
            yield r, reply


class OpenAITeacher:
    """Asks any OpenAI-compatible chat endpoint, through the official client.

    Install the client by pip install -e '.[openai]'. The key comes from OPENAI_API_KEY and
    is written nowhere. After a rate limit (429), a server error (5xx), a time-out or an
    unreadable answer, the request is sent again after about 1, 2, 4, ... seconds, at most
    `retries` times. If the last attempt fails too, this one request gets an error.

    Args:
        model: the endpoint's name for the model.
        base_url: of the endpoint; "" = the client's default.
        concurrency: how many requests are in flight at once.
        timeout: seconds until an attempt counts as failed.
        max_tokens: longest reply.
        pause: about how many seconds to wait before the second attempt.

    Raises:
        ValueError: if the client is not installed, or there is no key.
    """

    def __init__(
        self, model: str, base_url: str = "", concurrency: int = 4, retries: int = 5,
        timeout: float = 60.0, temperature: float = 0.7, max_tokens: int = 800,
        pause: float = 1.0,
    ):
        try:
            import openai
        except ImportError:
            raise ValueError(
                "teacher openai needs the client: pip install openai"
            ) from None
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise ValueError(
                "teacher openai needs a key in the environment: OPENAI_API_KEY"
            )
        self.openai = openai
        # the client's own retries are off: they cannot be stopped, and would multiply ours
        self.client = openai.OpenAI(
            api_key=key, base_url=base_url or None, timeout=timeout, max_retries=0
        )
        self.model = model
        self.concurrency = concurrency
        self.retries = retries
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.pause = pause
        self.stopped = threading.Event()

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Yield replies as they arrive.

        Raises:
            ValueError: if the endpoint refuses a request for good (a wrong key, model or
                option) before it has answered any.
        """
        waiting = iter(requests)
        in_flight: dict[Future, Request] = {}
        any_answered = False
        self.stopped.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            def start_one() -> None:
                request = next(waiting, None)
                if request is not None:
                    in_flight[pool.submit(self._ask, request)] = request

            for _ in range(self.concurrency):
                start_one()
            try:
                while in_flight:
                    for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                        request = in_flight.pop(future)
                        reply = future.result()
                        if reply.refused and not any_answered:
                            raise ValueError(f"the endpoint refuses: {reply.error}")
                        any_answered = any_answered or not reply.error
                        start_one()
                        yield request, reply
            finally:
                # if the caller stops early, attempts in flight end, and none is repeated
                self.stopped.set()

    def _ask(self, request: Request) -> Reply:
        """Send one request until it is answered, refused, or out of attempts."""
        api = self.openai
        reason = "stopped"
        for attempt in range(self.retries + 1):
            if self.stopped.is_set():
                return Reply(error=reason)
            try:
                completion = self.client.chat.completions.create(
                    model=self.model, messages=request.messages,
                    temperature=self.temperature, max_tokens=self.max_tokens,
                )
                return self._read(completion)
            except (
                api.RateLimitError, api.APIConnectionError, api.InternalServerError,
            ) as error:
                reason = type(error).__name__  # a time-out is an APIConnectionError
            except api.APIStatusError as error:
                # a wrong key or model: another attempt would not help; the message may
                # contain the key
                message = first_line(error).replace(self.client.api_key, "***")
                return Reply(error=message[:200], refused=True)
            except Exception as error:  # the client's parser fails on bad JSON in many ways
                reason = type(error).__name__
            if attempt < self.retries:
                # a random factor, so that parallel requests are not repeated at once
                self.stopped.wait(self.pause * 2 ** attempt * random.uniform(0.5, 1.5))
        return Reply(error=f"{reason} after {self.retries + 1} attempts")

    @staticmethod
    def _read(completion) -> Reply:
        """Take text and token counts from a completion; an empty text was paid for, too.

        A server may leave out or misuse any field, so no field is trusted.
        """
        choices = getattr(completion, "choices", None)
        choice = choices[0] if choices else None
        text = getattr(getattr(choice, "message", None), "content", None)
        usage = getattr(completion, "usage", None)
        tokens = []
        for name in ("prompt_tokens", "completion_tokens"):
            n = getattr(usage, name, 0)
            tokens.append(n if type(n) is int and 0 <= n < 10 ** 9 else 0)
        cut = getattr(choice, "finish_reason", "") == "length"
        return Reply(text if isinstance(text, str) else "", cut=cut, tokens=tuple(tokens))


class LocalTeacher:
    """Lets a GPT of ours continue "role: content" lines until its end token.

    A model of the default size writes nothing that passes the checks. The class shows that
    any model fits the interface.

    Args:
        run: run folder of train_lm.py.
        max_tokens: longest reply; at most half of the context is used for it.
    """

    def __init__(
        self, run: str, temperature: float, max_tokens: int, seed: int, device: str
    ):
        # imported here: the other teachers need no torch
        import torch

        from minivlm.loading.models import gpt_from
        from minivlm.running import checkpoint
        from minivlm.running.machine import pick_device
        
        state = checkpoint.load(run, ("lm",))
        self.tokenizer = checkpoint.tokenizer_of(state)
        self.model = gpt_from(state)
        self.model.to(pick_device(device)).eval()
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.generator = torch.Generator(pick_device(device)).manual_seed(seed)

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answer one by one; of messages that are too long, only the end is read."""
        from minivlm.generate import generate

        block_size = self.model.config.block_size
        max_new = min(self.max_tokens, block_size // 2)
        for r in requests:
            # a model without a chat format reads the messages as one text
            text = "".join(f"{m['role']}:\n{m['content']}\n\n" for m in r.messages)
            ids = self.tokenizer.encode(text + "assistant:\n")
            ids = ids[-(block_size - max_new):]
            [new_ids] = generate(
                self.model, None, [ids], max_new_tokens=max_new,
                stop=self.tokenizer.endoftext, temperature=self.temperature,
                generator=self.generator,
            )
            yield r, Reply(
                self.tokenizer.decode(new_ids), cut=len(new_ids) == max_new,
                tokens=(len(ids), len(new_ids)),
            )


# --- the journal: replies that were paid for ---


def journal(path: Path, header: dict) -> dict[str, dict]:
    """Read the replies that a journal holds already, or begin a new journal.

    A half-written last line is cut off.

    Args:
        header: what the replies depend on: the teacher and what it is told. A journal
            begins with it.

    Returns:
        key of a request -> its line of the journal.

    Raises:
        ValueError: if the journal is another teacher's, or a whole line is damaged.
    """
    if not path.is_file():
        path.write_text(json.dumps(header) + "\n")
        return {}
    content = path.read_bytes()
    n_whole = content.rfind(b"\n") + 1  # bytes of complete lines
    if n_whole < len(content):  # the script was killed while it wrote a line
        with path.open("r+b") as f:
            f.truncate(n_whole)
    try:
        text = content[:n_whole].decode("utf-8-sig")
        first, *lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        check_entries(lines, "replies", key=str, raw=str, error=str, cut=bool, tokens=list)
        for line in lines:
            if len(line["tokens"]) != 2 or not all(map(is_number, line["tokens"])):
                raise ValueError("tokens are not two numbers")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); --fresh begins anew") from None
    if first != header:
        raise ValueError(
            f"{path} holds replies by {repr(first)[:300]}, not {header}; "
            "use another --out, or --fresh"
        )
    return {line["key"]: line for line in lines}


def ask(
    teacher: Teacher, requests: Iterable[Request], n: int, path: Path | None
) -> dict[str, dict]:
    """Collect the replies by key, and append each to a journal as it arrives.

    With a journal, replies with an error are left out of both, so that the script asks
    again when it is started again. Without a journal, they are returned.

    Args:
        n: how many requests there are, for the progress bar.
        path: the journal; None = no journal.
    """
    replies = {}
    with path.open("a", encoding="utf-8") if path else nullcontext() as f:
        arriving = tqdm(teacher.write(requests), desc="asking", total=n, disable=None)
        for request, reply in arriving:
            if reply.error and path:
                tqdm.write(printable(f"{request.key}: {reply.error}", keep=""))
                continue
            line = {
                "key": request.key, "kind": request.kind, "raw": reply.text,
                "error": reply.error, "cut": reply.cut, "tokens": list(reply.tokens),
            }
            replies[request.key] = line
            if f:
                f.write(json.dumps(line) + "\n")
                f.flush()  # if the script is killed, no reply that was paid for is lost
    return replies
