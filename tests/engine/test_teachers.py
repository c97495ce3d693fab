"""minivlm/engine/teachers.py: the openai teacher against a client that fails as told, offline.

test_instruct.py has the same against the official client and a server, where that is installed.
"""

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from minivlm.engine.teachers import OpenAITeacher, Request


class APIConnectionError(Exception):
    pass


class APIStatusError(Exception):
    pass


class RateLimitError(APIStatusError):
    pass


class InternalServerError(APIStatusError):
    pass


class Client:
    """Stands for the official client; `plan` maps a prompt to what its attempts meet, in order."""

    plan: dict[str, list] = {}
    seen: list[str] = []
    options: dict = {}
    at_once = most = 0
    lock = threading.Lock()

    def __init__(self, **options):
        Client.options = options
        self.api_key = options["api_key"]
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, model, messages, temperature, max_tokens):
        prompt = messages[-1]["content"]
        with self.lock:
            attempt = self.seen.count(prompt)
            self.seen.append(prompt)
            Client.at_once += 1
            Client.most = max(self.most, self.at_once)
        time.sleep(0.01)
        with self.lock:
            Client.at_once -= 1
        fate = self.plan.get(prompt, [])[attempt:attempt + 1]
        if fate and isinstance(fate[0], Exception):
            raise fate[0]
        return fate[0] if fate else said("reply to " + prompt)


def said(text: str | None, finish: str = "stop"):
    """A completion as the client returns it."""
    choice = SimpleNamespace(message=SimpleNamespace(content=text), finish_reason=finish)
    return SimpleNamespace(
        choices=[choice], usage=SimpleNamespace(prompt_tokens=7, completion_tokens=3))


@pytest.fixture
def teacher(monkeypatch):
    """The teacher on top of the stub, without waiting between attempts."""
    Client.plan, Client.seen, Client.at_once, Client.most = {}, [], 0, 0
    names = (APIConnectionError, APIStatusError, RateLimitError, InternalServerError)
    stub = SimpleNamespace(OpenAI=Client, **{e.__name__: e for e in names})
    monkeypatch.setitem(sys.modules, "openai", stub)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    return OpenAITeacher("m", "http://here/v1", concurrency=3, retries=2, timeout=5, pause=0)


def asked(*names: str) -> list[Request]:
    return [Request(n, "detail", {}, [{"role": "user", "content": n}]) for n in names]


def test_every_request_is_answered_once_and_no_more_are_under_way_than_allowed(teacher):
    """Catches a request lost or doubled, and a bound on concurrency that does not bind."""
    names = [f"p{i}" for i in range(40)]
    got = {request.key: reply for request, reply in teacher.write(asked(*names))}
    assert sorted(got) == sorted(names) and sorted(Client.seen) == sorted(names)
    assert all(reply.text == "reply to " + key for key, reply in got.items())
    assert all(reply.tokens == (7, 3) and not reply.error for reply in got.values())
    assert 1 < Client.most <= 3
    assert Client.options == {
        "api_key": "sk-secret", "base_url": "http://here/v1", "timeout": 5, "max_retries": 0}


@pytest.mark.parametrize("fault", [RateLimitError("429"), InternalServerError("500"),
                                   APIConnectionError("timed out"), ValueError("no JSON")])
def test_what_may_pass_is_tried_again_and_then_given_up_alone(teacher, fault):
    """Catches one failure that ends the run, no further attempt, and attempts without end."""
    Client.plan = {"once": [fault], "always": [fault] * 9}
    got = {r.key: reply for r, reply in teacher.write(asked("a", "once", "always", "b"))}
    assert got["once"].text == "reply to once" and Client.seen.count("once") == 2
    assert got["always"].error == f"{type(fault).__name__} after 3 attempts"
    assert Client.seen.count("always") == 3 and not got["always"].text
    assert not got["a"].error and not got["b"].error


def test_what_cannot_pass_is_not_tried_again(teacher):
    """Catches a wrong key tried six times, hidden among other errors, or printed."""
    wrong = APIStatusError("401: sk-secret is no key\nmore")
    Client.plan = {"first": [wrong]}
    with pytest.raises(ValueError, match=r"the endpoint refuses: 401: \*\*\* is no key$"):
        list(teacher.write(asked("first")))
    assert Client.seen == ["first"]
    teacher.concurrency = 1
    got = {r.key: reply for r, reply in teacher.write(asked("good", "first", "last"))}
    assert not got["first"].error  # its second attempt: the plan is used up
    Client.plan = {"odd": [wrong] * 2}
    got = {r.key: reply for r, reply in teacher.write(asked("well", "odd", "end"))}
    assert got["odd"].refused and "sk-secret" not in got["odd"].error and not got["end"].error


@pytest.mark.parametrize("message", ["", "\n", " \n "])
def test_a_refusal_without_a_message_is_a_refusal(teacher, message):
    """Catches IndexError for an empty message, and a refusal taken for an empty reply."""
    teacher.concurrency = 1
    Client.plan = {"odd": [APIStatusError(message)]}
    got = {r.key: reply for r, reply in teacher.write(asked("well", "odd"))}
    assert got["odd"].refused and got["odd"].error == "APIStatusError"


def test_nothing_is_waited_for_behind_the_last_attempt(teacher, monkeypatch):
    """Catches a minute lost for each request that fails for good."""
    waits = []
    monkeypatch.setattr(teacher.stopped, "wait", waits.append)
    Client.plan = {"always": [RateLimitError("429")] * 9}
    list(teacher.write(asked("always")))
    assert Client.seen.count("always") == 3 and len(waits) == 2


def test_odd_replies_are_replies(teacher):
    """Catches a crash on no choice or no content, and a reply that was cut off taken for whole."""
    Client.plan = {"none": [SimpleNamespace(choices=[], usage=None)], "null": [said(None)],
                   "cut": [said("Half a", "length")]}
    got = {r.key: reply for r, reply in teacher.write(asked("none", "null", "cut"))}
    assert got["none"].text == got["null"].text == "" and got["none"].tokens == (0, 0)
    assert got["cut"].cut and not got["null"].cut and got["null"].tokens == (7, 3)


def test_a_caller_that_stops_early_asks_no_more(teacher):
    """Catches a killed run that goes on paying in the background."""
    replies = teacher.write(asked(*(f"p{i}" for i in range(200))))
    next(replies)
    replies.close()
    n = len(Client.seen)
    time.sleep(0.1)
    assert len(Client.seen) == n < 20


def test_no_key_and_no_client_are_told(monkeypatch):
    """Catches a traceback where an import or the environment fails."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match="pip install openai"):
        OpenAITeacher("m")
    monkeypatch.setitem(sys.modules, "openai", SimpleNamespace())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAITeacher("m")
