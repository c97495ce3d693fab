"""serve.py: what a request may ask for, what it gets, and what is refused."""

import asyncio
import base64
import dataclasses
import io
import json
import random
import shutil

import pytest
import torch
from PIL import Image

pytest.importorskip("starlette", reason="serve.py needs pip install -e '.[web]'")

import serve  # noqa: E402
from data import preferences  # noqa: E402
from minivlm.chatbot import Chatbot  # noqa: E402
from minivlm.preferences.rankings import load_rankings  # noqa: E402
from minivlm.running import checkpoint  # noqa: E402
from minivlm.running.options import parse_args  # noqa: E402
from minivlm.tokenizer import CHATBOTS  # noqa: E402

HOST = {"host": "127.0.0.1:8000"}
JSON = HOST | {"content-type": "application/json"}


@pytest.fixture
def page(runs, folder, tmp_path) -> serve.Page:
    """A page with two chatbots, and a data folder of its own."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    bots = {name: Chatbot(checkpoint.load(runs / name, CHATBOTS), torch.device("cpu"))
            for name in ("sft", "dpo")}
    return serve.Page(bots, serve.Config(data=str(tmp_path), k=3))


async def send(app, method: str, path: str, body: bytes, headers: dict, leave_after: int = 0):
    """Make a request as a browser does; leave it after some parts of the answer, or never.

    Returns:
        status, headers, and the parts of the body.
    """
    asked = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [
        (k.encode(), v.encode()) for k, v in headers.items()], "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "scheme": "http", "root_path": ""}
    incoming = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    start, parts = {}, []

    async def answered(message: dict) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message.get("body"):
            parts.append(message["body"])
            if len(parts) == leave_after:
                incoming.put_nowait({"type": "http.disconnect"})
                await asyncio.sleep(0.05)

    await app(asked, incoming.get, answered)
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, parts


def ask(page: serve.Page, path: str, fields=None, body: bytes = b"", headers=None, **options):
    """Ask for an /api/ path; return the status, and the JSON of each line of the answer."""
    method = "GET" if fields is None and not body else "POST"
    body = body or (b"" if fields is None else json.dumps(fields).encode())
    asked = send(page.app(), method, f"/api/{path}", body, headers or JSON, **options)
    status, _, parts = asyncio.run(asked)
    return status, [json.loads(line) for line in b"".join(parts).splitlines()]


def question(**changes) -> dict:
    """A question about a scene."""
    return {"run": "sft", "turns": ["What is this?"], "picture": "", "scene": 3,
            "temperature": 0, "seed": 1} | changes


def picture_file(size=(30, 20), kind: str = "PNG") -> bytes:
    """A picture file's content."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def test_the_page_asks_nobody_else_and_runs_only_its_own_script(page):
    """Catches a script from elsewhere, an inline handler, a policy that forbids its own."""
    status, headers, [html] = asyncio.run(send(page.app(), "GET", "/", b"", HOST))
    assert status == 200 and headers["content-type"].startswith("text/html")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and policy.count("sha256-") == 4
    assert "unsafe" not in policy and "connect-src 'self'" in policy
    text = html.decode()
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    markup = text.split("<script>")[0]
    assert not any(f" {name}=" in markup for name in ("onclick", "onload", "style"))


def test_an_answer_comes_in_pieces_and_is_judged_by_the_scene(page, runs):
    """Catches an answer of another chatbot, of another picture, pieces lost on the way."""
    for name in ("sft", "dpo"):
        status, lines = ask(page, "answer", question(run=name))
        assert status == 200 and lines[-1]["end"] and len(lines) > 3
        text = "".join(line.get("text", "") for line in lines)
        bot = Chatbot(checkpoint.load(runs / name, CHATBOTS), torch.device("cpu"))
        image = bot.look(io.BytesIO(serve.scene(3)[0]))
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}]
        assert text == "".join(bot.answer(turns, image, max_new_tokens=page.cfg.max_new_tokens))
        assert "".join(sentence for sentence, _ in lines[-1]["marks"]) == text


def test_sentences_are_marked_by_what_the_scene_shows():
    """Catches a thing that is not there left unmarked, one that is there marked, text lost."""
    for number in range(20):
        _, record = serve.scene(number)
        seen = next((o for o in record["objects"] if not o["hidden"]), None)
        if seen is None:
            continue
        color, place = seen["attributes"]["color"], seen["place"]
        where = "in the center" if place == "center" else f"at the {place}"
        answer = (f"There is a {color} {seen['name']} {where}. Well, well! "
                  f"There is a striped {seen['name']} {where}.\nThere is no {seen['name']}.")
        parts = serve.marked(answer, record)
        assert "".join(part for part, _ in parts) == answer
        [first, second, _, last] = [is_true for _, is_true in parts]
        assert first is True and second is None and last is False


def test_a_conversation_goes_on_and_an_uploaded_picture_is_seen(page):
    """Catches turns in the wrong order, a picture before each question, one that is not seen."""
    status, [read] = ask(page, "picture", body=picture_file(), headers=HOST)
    assert status == 200
    image = Image.open(io.BytesIO(base64.b64decode(read["picture"])))
    assert image.format == "PNG" and image.size == (30, 20)
    turns = ["What is this?", "A thing.", "Sure? <image>"]
    with_picture = ask(page, "answer", question(turns=turns, picture=read["picture"], scene=-1))
    without = ask(page, "answer", question(turns=turns, scene=-1))
    assert with_picture[0] == without[0] == 200 and with_picture != without
    assert with_picture[1][-1]["marks"] is None


@pytest.mark.parametrize("size, kind", [
    ((2000, 100), "JPEG"), ((600, 600), "WEBP"), ((9, 9), "GIF"),
])
def test_an_uploaded_picture_is_written_anew_and_not_large(page, size, kind):
    """Catches bytes of the upload that come back, and pictures that no request could carry."""
    _, [read] = ask(page, "picture", body=picture_file(size, kind), headers=HOST)
    content = base64.b64decode(read["picture"])
    assert content.startswith(b"\x89PNG")
    assert max(Image.open(io.BytesIO(content)).size) <= serve.SIDE


def test_who_leaves_ends_the_answer(page):
    """Catches an answer that is written on and on for nobody."""
    page.bots["sft"].answer = lambda *_, **__: iter(lambda: "on ", None)  # without an end
    body = json.dumps(question()).encode()
    request = send(page.app(), "POST", "/api/answer", body, JSON, leave_after=3)
    status, _, parts = asyncio.run(asyncio.wait_for(request, 30))
    assert status == 200 and len(parts) >= 3
    assert ask(page, "answer", question(run="dpo"))[0] == 200, "the next one is served"


def hostile() -> list[tuple[str, dict]]:
    """Requests that no browser makes of this page: path, and what `ask` takes."""
    rng = random.Random(0)
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    bad = [
        ("answer", {"fields": question(run=run)}) for run in
        ("../sft", "/etc/passwd", "sft/../../dpo", "", "SFT", "sft\0", "%2e%2e/sft", "a" * 10_000)
    ] + [
        ("answer", {"fields": question(turns=turns)}) for turns in
        ([], [""], [" "], [1], [None], [["What?"]], ["a"] * 2, ["a"] * 99, ["x" * 5000],
         [{"from": "human"}], ["?"] + ["y" * 900] * 6)
    ] + [
        ("answer", {"fields": question(picture=picture, scene=-1)}) for picture in
        ("!", "AAAA", "a", text_of(b"GIF89a" + bytes(20)), text_of(picture_file()[:40]), "é",
         text_of(b"<svg onload='alert(1)'/>"), text_of(b"%!PS-Adobe"), "../../etc/passwd")
    ] + [
        ("answer", {"fields": question(temperature=t)}) for t in
        (-1, 3, 1e9, 1e-300, float("nan"), "1", None, True)
    ] + [
        ("answer", {"fields": question(scene=s)}) for s in ("1", None, 1.5, [], True)
    ] + [
        ("answer", {"fields": question(seed=s)}) for s in ("1", None, 1.5, {})
    ] + [
        (path, {"body": body}) for path in ("answer", "scene", "rank", "task", "undo") for body in
        (b"{", b"[]", b"null", b"\xff\xfe", b'{"a"', deep, b"1" * 3_000_000)
    ] + [
        ("picture", {"body": body, "headers": HOST}) for body in
        (b"x", b"GIF89a", picture_file()[:45], b"BM" + bytes(60), b"%!PS-Adobe-3.0 EPSF-3.0\n",
         b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(9_000_000), rng.randbytes(5000))
    ] + [
        ("task", {"fields": {"person": person, "after": -1}}) for person in
        ("", " ", "a" * 41, "a\0b", "\u202eb", 5, None)
    ] + [
        ("rank", {"fields": {"person": "Ann", "number": number, "answers": ["a", "b"],
                             "ranks": [1, 2]}}) for number in (-1, 0, 10**9, "0", None, 1.0)
    ] + [
        ("undo", {"fields": {"person": "Nobody"}}),
        ("scene", {"fields": {"number": "5"}}), ("scene", {"fields": {}}),
        ("scene", {"fields": {"number": 1}, "headers": HOST}),
        ("scene", {"fields": {"number": 1}, "headers": HOST | {"content-type": "text/plain"}}),
        ("scene", {"fields": {"number": 1}, "headers": JSON | {"host": "evil.example"}}),
        ("scene", {"fields": {"number": 1}, "headers": JSON | {"origin": "http://evil.example"}}),
        ("scene", {"fields": {"number": 1}, "headers": JSON | {"origin": "null"}}),
        ("start", {"headers": {"host": "evil.example:8000"}}),
    ]
    return bad


def text_of(content: bytes) -> str:
    """As the page writes a picture."""
    return base64.b64encode(content).decode()


def test_more_than_a_hundred_hostile_requests_are_each_refused_in_a_line(page, tmp_path):
    """Catches a traceback for a stranger, a path that is followed, a body without an end."""
    files = sorted(tmp_path.iterdir())
    requests = hostile()
    assert len(requests) >= 100
    for path, asked in requests:
        status, lines = ask(page, path, **asked)
        assert 400 <= status < 500 and len(lines) == 1, (path, asked)
        error = lines[0]["error"]
        assert 0 < len(error) < 200 and "Traceback" not in error and "\n" not in error, error
    assert sorted(tmp_path.iterdir()) == files, "a request wrote a file"
    assert ask(page, "answer", question())[0] == 200, "the page still works"


def rank(page: serve.Page, person: str, after: int = -1, ranks=(1, 2, 3)) -> dict:
    """Rank the next answers; return the task."""
    status, [task] = ask(page, "task", {"person": person, "after": after})
    assert status == 200
    ranks = list(ranks[:len(task["answers"])])
    status, [kept] = ask(page, "rank", ranking(task, ranks, person))
    assert status == 200, kept
    return task


def ranking(task: dict, ranks: list, person: str = "Ann") -> dict:
    """What the page sends."""
    return {"person": person, "number": task["number"], "answers": task["answers"], "ranks": ranks}


def test_two_people_rank_the_same_answers_and_are_compared(page, tmp_path):
    """Catches answers in another order for the second, and other answers after a new start."""
    ours = [rank(page, "Ann") for _ in range(4)]
    again = serve.Page(page.bots, page.cfg)  # as after a new start
    theirs = [rank(again, "Bob") for _ in range(4)]
    assert ours == theirs and len({task["question"] for task in ours}) > 1
    status, [found] = ask(again, "agreement", {})
    share, pairs = found["agreement"]["Ann and Bob"]
    assert status == 200 and share == 1 and pairs >= 4
    rankings = load_rankings(tmp_path, "people")
    assert len(rankings) == 8 and rankings[0]["responses"] == ours[0]["answers"]
    assert rankings[0]["question"] == ours[0]["question"] and rankings[0]["person"] == "Ann"


def test_a_ranking_is_undone_and_its_question_comes_again(page, tmp_path):
    """Catches an undo that only the page believes, and a skipped question that is lost."""
    first = rank(page, "Ann")
    second = rank(page, "Ann", ranks=(2, 1, 1))
    status, [undone] = ask(page, "undo", {"person": "Ann"})
    assert status == 200 and (undone["ranked"], undone["number"]) == (1, second["number"])
    assert [r["question"] for r in load_rankings(tmp_path, "people")] == [first["question"]]
    _, [task] = ask(page, "task", {"person": "Ann", "after": undone["number"] - 1})
    assert task == second
    _, [other] = ask(page, "task", {"person": "Ann", "after": second["number"]})
    assert other["number"] > second["number"]
    assert ask(page, "task", {"person": "Ann", "after": -1})[1] == [second]


@pytest.mark.parametrize("ranks, words", [([1, 1, 1], "all ties"), ([1, 2], "as many ranks"),
                                          ([1, 2, "3"], "no number"), ([1, 2, 3.0], "no number")])
def test_a_ranking_that_says_nothing_is_refused(ranks, words, page, tmp_path):
    """Catches a line in the file that no training could read."""
    _, [task] = ask(page, "task", {"person": "Ann", "after": -1})
    ranks = ranks[:len(task["answers"])] if words == "all ties" else ranks
    status, [kept] = ask(page, "rank", ranking(task, ranks))
    assert status == 400 and words in kept["error"] and not (tmp_path / "people.jsonl").exists()


def test_a_tab_that_was_open_while_the_server_changed_ranks_nothing_else(page, runs, tmp_path):
    """Catches ranks that are kept for other answers than those that the person saw."""
    _, [task] = ask(page, "task", {"person": "Ann", "after": -1})
    again = serve.Page(page.bots, page.cfg)  # started anew: nobody was asked yet
    other = serve.Page(page.bots, dataclasses.replace(page.cfg, seed=1))
    status, [kept] = ask(other, "rank", ranking(task, [1, 2, 3][:len(task["answers"])]))
    assert status == 400 and "load the page again" in kept["error"]
    assert ask(again, "rank", ranking(task, [1, 2, 3][:len(task["answers"])]))[0] == 200
    assert [r["responses"] for r in load_rankings(tmp_path, "people")] == [task["answers"]]


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("192.168.0.7:8000", 200),
    ("rebound.example:8000", 403), ("", 403), ("127.0.0.1.example", 403),
])
def test_the_page_is_asked_by_address(host, status, page):
    """Catches a foreign page whose own name leads to this machine."""
    assert ask(page, "start", headers={"host": host})[0] == status


def test_the_printed_command_makes_training_data(page, tmp_path):
    """Catches a command that fails as it is printed."""
    for _ in range(12):
        rank(page, "Ann")
    _, [start] = ask(page, "start")
    assert start["ranked"] == 12 and "--n_val 1 " in start["command"]
    program, *words = start["command"].split()
    preferences.main(parse_args(preferences.Config, words[1:]))
    n_kept = [len(load_rankings(tmp_path, name)) for name in ("mine", "mine_val")]
    assert sum(n_kept) == 12 and min(n_kept) >= 1


def test_without_a_data_folder_the_page_says_how_to_get_one(runs, tmp_path):
    """Catches a page that does not start in a fresh clone."""
    bots = {"sft": Chatbot(checkpoint.load(runs / "sft", CHATBOTS), torch.device("cpu"))}
    page = serve.Page(bots, serve.Config(data=str(tmp_path / "none")))
    assert "data/book/prepare.py" in ask(page, "start")[1][0]["no_ranking"]
    assert ask(page, "answer", question())[0] == 200
    for path, fields in (("task", {"person": "Ann", "after": -1}), ("undo", {"person": "Ann"})):
        status, [reply] = ask(page, path, fields)
        assert status == 400 and "data/book/prepare.py" in reply["error"]


def test_runs_that_are_missing_are_left_out_and_none_is_an_error(runs, tmp_path):
    """Catches a page without chatbots, two chatbots under one name."""
    shutil.copytree(runs / "dpo", tmp_path / "sft")
    bots = serve.load(serve.Config(runs=f"{runs}/sft, {tmp_path}/sft,runs/of/nobody"))
    assert list(bots) == ["sft", f"{tmp_path}/sft"]
    with pytest.raises(FileNotFoundError, match="speedrun.sh"):
        serve.load(serve.Config(runs="runs/of/nobody"))
