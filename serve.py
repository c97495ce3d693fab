"""Show chatbots in a browser: talk to one, compare several, rank answers.

    ./chat.sh                          sets up and opens the page
    python serve.py                    http://127.0.0.1:8000, for this machine alone
    python serve.py --runs runs/sft,runs/mine

The page draws new scenes, whose truth it knows: it marks what an answer says of a scene and
the scene does not show. Any other picture may be uploaded. Rankings are added to a file of the
data folder as they are made, in the layout of preferences.jsonl; docs/rlhf_by_hand.md trains
from them.

Requests are small texts in JSON. Whatever a request says is checked before it is used: no text
of it names a file, and no picture is kept.

Reads: run folders, or the weights that came with the repository; serve.html; for rankings a
data folder.   Writes: people.jsonl in the data folder.
Needs: pip install -e '.[web]'
"""

import asyncio
import base64
import hashlib
import io
import ipaddress
import json
import os
import random
import re
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from data.book import world
from data.book.prepare import QUESTIONS, make_meta, questions_of, record_of
from minivlm.chatbot import Chatbot, find
from minivlm.conversation import IMAGE_MARK
from minivlm.evaluation.raters import verdicts
from minivlm.loading.images import open_image
from minivlm.preferences.people import RankingTasks
from minivlm.pretrained.weights import load_state
from minivlm.running import machine, options
from minivlm.running.files import first_line
from minivlm.tokenizer import CHATBOTS

LEVEL = 1  # of the scenes that the page draws
SIDE = 512  # pixels; a larger upload is made smaller
MAX_TURNS = 40  # of a conversation
MAX_TEXT = 1000  # characters of a question
MAX_JSON = 2_000_000  # bytes of a request; a picture of SIDE pixels has at most 1.1 million
SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+\s*|\n\s*|$)")
HEADERS = {
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# --- config ---


@dataclass
class Config:
    """Options of the page; the comments are the help texts."""

    # chatbots
    runs: str = "runs/sft,runs/ppo,runs/dpo,runs/grpo"  # run folders; missing ones are left out
    max_new_tokens: int = 128  # >= 1; longest answer in tokens
    # rankings
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    questions: str = "prompts"  # file of the data folder with questions to rank answers to
    records: str = "train"  # file of the data folder that describes their pictures
    rankings: str = "people"  # file of the data folder that gets the rankings
    k: int = 4  # 2 .. 9; answers to rank
    # address
    host: str = "127.0.0.1"  # address to listen at; another one lets other machines in
    port: int = 8000  # 1 .. 65535; port to listen at
    open: bool = False  # open the page in a browser
    # limits
    upload: int = 8  # > 0; largest picture file, in MB
    connections: int = 64  # >= 1; connections at once; more are told to come again
    # machine
    seed: int = 0  # >= 0; decides the questions to rank answers to, and the answers
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice


class Refused(ValueError):
    """A request that cannot be served; its text is for whoever made it.

    status: HTTP's number for the reason.
    """

    def __init__(self, text: str, status: int = 400):
        super().__init__(text)
        self.status = status


# --- scenes ---


def scene(number: int) -> tuple[bytes, dict]:
    """A scene of the picture book, always the same: a PNG file's content, and its record."""
    drawn = world.make_scene(f"page {number}", LEVEL)
    pixels = world.draw(drawn)  # first: it also sets the boxes of the things
    return png(Image.fromarray(pixels)), record_of(drawn, f"page-{number}", "")


def png(image: Image.Image) -> bytes:
    """Write a picture as a PNG file of at most SIDE x SIDE pixels; return the file's content."""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def suggestions(record: dict, number: int) -> list[str]:
    """Six questions that suit a scene, "Describe the picture." first."""
    rng = random.Random(f"suggestions {number}")
    asked = [q["question"] for q in questions_of(record, rng, LEVEL)["quiz"] if "before" not in q]
    return ["Describe the picture.", *rng.sample(asked, min(5, len(asked)))]


def marked(answer: str, record: dict) -> list[list]:
    """Cut an answer into sentences, each with whether it is true of a scene.

    Returns:
        [sentence, True, False or None] of each; None where nothing was claimed that can be
        checked. The sentences together are the answer.
    """
    parts = []
    for sentence in SENTENCE.findall(answer):
        if sentence:
            judged, _ = verdicts(sentence, record, make_meta(LEVEL)["phrases"])
            parts.append([sentence, all(true for _, true in judged) if judged else None])
    return parts


# --- requests ---


async def body_of(request: Request, most: int) -> bytes:
    """Read the body of a request, up to a number of bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refused(f"more than {most / 1e6:.0f} MB are not read", 413)
    return bytes(body)


async def fields_of(request: Request, **types: type) -> list:
    """Read a request's JSON object, and return the fields of these names in order.

    Args:
        types: name -> type; a number may be given for a float.
    """
    # a page of another site could send any other type without asking first
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise Refused("a request is application/json", 415)
    try:
        fields = json.loads(await body_of(request, MAX_JSON))
    except (ValueError, RecursionError):
        raise Refused("a request is JSON") from None
    found = []
    for name, kind in types.items():
        value = fields.get(name) if isinstance(fields, dict) else None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:  # type(), because isinstance takes True for an int
            raise Refused(f"{name} is missing, or not of type {kind.__name__}")
        found.append(value)
    return found


def name_of(text: str) -> str:
    """Check the name under which somebody ranks."""
    name = " ".join(text.split())
    if not name or len(name) > 40 or not name.isprintable():
        raise Refused("a name has 1 to 40 letters")
    return name


def turns_of(turns: list, has_picture: bool) -> list[dict]:
    """Check a conversation, and put the picture before its first question."""
    if not turns or len(turns) > MAX_TURNS:
        raise Refused(f"a conversation has 1 to {MAX_TURNS} turns; begin a new one")
    checked = []
    for i, text in enumerate(turns):
        if not isinstance(text, str) or not text.strip():
            raise Refused("a turn is empty, or no text")
        if len(text) > MAX_TEXT and i % 2 == 0:
            raise Refused(f"a question has at most {MAX_TEXT} characters")
        # nobody adds a picture by typing its mark
        text = text.replace(IMAGE_MARK, "image")
        if i == 0 and has_picture:
            text = f"{IMAGE_MARK}\n{text}"
        checked.append({"from": "gpt" if i % 2 else "human", "value": text})
    if len(checked) % 2 == 0:
        raise Refused("a conversation ends with a question")
    return checked


# --- the page ---


class Page:
    """The chatbots, the rankings, and what a browser may ask for.

    Args:
        bots: name -> chatbot; the first one's answers are ranked.
        cfg: the options.
    """

    def __init__(self, bots: dict[str, Chatbot], cfg: Config):
        self.bots = bots
        self.cfg = cfg
        # one thread computes: answers that are written at the same time take turns
        self.worker = ThreadPoolExecutor(1)
        # as text: browsers read any line end as one character, too
        text = Path(__file__).with_name("serve.html").read_text(encoding="utf-8")
        scripts = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
        hashes = [text_of(hashlib.sha256(s.encode()).digest()) for s in scripts]
        sources = " ".join(f"'sha256-{h}'" for h in hashes)
        policy = (f"default-src 'none'; script-src {sources}; style-src {sources}; "
                  "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                  "frame-ancestors 'none'")
        self.html = Response(text, 200, HEADERS | {"Content-Security-Policy": policy}, "text/html")
        self.rankings = f"{cfg.data}/{cfg.rankings}.jsonl"
        self.tasks, self.no_tasks = None, ""
        try:
            bot = next(iter(bots.values()))
            self.tasks = RankingTasks(
                bot, cfg.data, cfg.questions, cfg.records, self.rankings, cfg.k,
                cfg.max_new_tokens, cfg.seed,
            )
        except (ValueError, OSError) as error:
            self.no_tasks = first_line(error)

    def app(self) -> Starlette:
        """What a server runs."""
        routes = [Route("/", self.home)]
        for path, handler, method in (
            ("start", self.start, "GET"), ("scene", self.scene, "POST"),
            ("picture", self.picture, "POST"), ("answer", self.answer, "POST"),
            ("task", self.task, "POST"), ("rank", self.rank, "POST"), ("undo", self.undo, "POST"),
            ("agreement", self.agreement, "POST"),
        ):
            routes.append(Route(f"/api/{path}", self.guarded(handler), methods=[method]))
        return Starlette(routes=routes)

    def guarded(self, handler: Callable) -> Callable:
        """Serve a request of this page alone; say in one line why one is refused."""
        async def serve(request: Request) -> Response:
            host = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]")
            origin = request.headers.get("origin", "")
            try:
                # a foreign page could give a name of its own this machine's address
                if not is_address(host) and host not in ("localhost", self.cfg.host):
                    raise Refused("ask by this machine's address, not by a name", 403)
                if origin and origin.split("://")[-1] != request.headers.get("host"):
                    raise Refused("a page of another site asks", 403)
                return await handler(request)
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status, HEADERS)

        return serve

    async def home(self, request: Request) -> Response:
        """The page itself."""
        return self.html

    async def start(self, request: Request) -> Response:
        """What the page shows first."""
        return said(
            runs=list(self.bots), questions=list(QUESTIONS), no_ranking=self.no_tasks,
            rankings=self.rankings, upload=self.cfg.upload, **self.kept(),
        )

    def kept(self) -> dict:
        """How many rankings there are, and the command that makes training data of them."""
        n = len(self.tasks.file.rankings) if self.tasks else 0
        data = self.cfg.data
        folder = "" if data == Config.data else f" --data {data}"
        command = (f"{os.path.relpath(sys.executable)} data/preferences.py --rater file"
                   f" --ranked {self.rankings}{folder} --n_val {max(1, n // 10)}"
                   f" --out {data}/mine.jsonl")
        return {"ranked": n, "command": command}

    async def scene(self, request: Request) -> Response:
        """Draw the scene of a number."""
        [number] = await fields_of(request, number=int)
        picture, record = scene(number)
        return said(picture=text_of(picture), suggestions=suggestions(record, number))

    async def picture(self, request: Request) -> Response:
        """Check an uploaded picture; return it as a PNG of at most SIDE pixels."""
        content = await body_of(request, self.cfg.upload * 1_000_000)
        picture = await self.compute(decoded, content)
        return said(picture=text_of(picture))

    async def answer(self, request: Request) -> Response:
        """Stream an answer as lines of JSON: {"text"}, ..., {"end", "marks"}."""
        run, turns, picture, number, temperature, seed = await fields_of(
            request, run=str, turns=list, picture=str, scene=int, temperature=float, seed=int,
        )
        if run not in self.bots:
            raise Refused("no such chatbot")
        if temperature and not 0.05 <= temperature <= 2:
            raise Refused("a temperature is 0, or 0.05 to 2")
        bot = self.bots[run]
        content, record = bytes_of(picture), None
        if number >= 0:
            content, record = scene(number)
        turns = turns_of(turns, bool(content))
        image = await self.compute(look, bot, content) if content else None
        pieces = bot.answer(
            turns, image, max_new_tokens=self.cfg.max_new_tokens, temperature=temperature,
            generator=torch.Generator(bot.device).manual_seed(abs(seed) % 2**63),
        )
        first = await self.compute(next, pieces, None)  # before it says that all is well
        return StreamingResponse(
            self.lines(pieces, first, record), 200, HEADERS, "application/x-ndjson"
        )

    async def lines(
        self, pieces: Iterator[str], piece: str | None, record: dict | None
    ) -> AsyncIterator[str]:
        """An answer as lines of JSON. It ends early if the browser stops listening."""
        text = ""
        while piece is not None:
            text += piece
            yield json.dumps({"text": piece}) + "\n"
            piece = await self.compute(next, pieces, None)
        marks = marked(text, record) if record else None
        yield json.dumps({"end": True, "marks": marks}) + "\n"

    async def compute(self, function: Callable, *args):
        """Let the one thread that computes call a function.

        Raises:
            Refused: if the function raises a ValueError or an OSError; with its text.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.worker, partial(function, *args))
        except (ValueError, OSError) as error:
            raise Refused(first_line(error)) from None

    # --- rankings ---

    async def task(self, request: Request) -> Response:
        """The next answers that a person can rank; `after` skips a question."""
        person, after = await fields_of(request, person=str, after=int)
        tasks = self.need_tasks()
        number = await self.compute(tasks.next_for, name_of(person), after)
        if number is None:
            raise Refused("no question is left to which the chatbot has different answers")
        q = tasks.questions[number]
        [pixels] = await self.compute(tasks.pictures.pixels, [q["image"]])
        return said(
            number=number, question=q["question"], answers=tasks.answers[number],
            picture=text_of(png(Image.fromarray(pixels))),
        )

    async def rank(self, request: Request) -> Response:
        """Keep a ranking: a rank for each answer of a question, in the order shown."""
        person, number, answers, ranks = await fields_of(
            request, person=str, number=int, answers=list, ranks=list
        )
        await self.compute(self.need_tasks().add, name_of(person), number, answers, ranks)
        return said(**self.kept())

    async def undo(self, request: Request) -> Response:
        """Take back a person's last ranking."""
        [person] = await fields_of(request, person=str)
        number = await self.compute(self.need_tasks().undo, name_of(person))
        return said(number=number, **self.kept())

    async def agreement(self, request: Request) -> Response:
        """How far people agree with the scenes and with each other: shares, and pairs."""
        await fields_of(request)
        found = await self.compute(self.need_tasks().agreement)
        shares = {name: [a / n, n] for name, (a, n) in found.items() if n}
        return said(agreement=shares)

    def need_tasks(self) -> RankingTasks:
        """What can be ranked."""
        if not self.tasks:
            raise Refused(self.no_tasks)
        return self.tasks


def said(**fields) -> JSONResponse:
    """An answer to the page."""
    return JSONResponse(fields, 200, HEADERS)


def is_address(host: str) -> bool:
    """Whether a host is an address, and no name that somebody could give to another one."""
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False


def text_of(content: bytes) -> str:
    """A file's content as text."""
    return base64.b64encode(content).decode()


def bytes_of(text: str) -> bytes:
    """The content that `text_of` made a text of."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused("a picture is base64") from None


def decoded(content: bytes) -> bytes:
    """Read any picture file, and write it anew: nothing but its pixels is kept."""
    return png(open_image(io.BytesIO(content)))


def look(bot: Chatbot, content: bytes) -> torch.Tensor:
    """A picture as a chatbot sees it: (1, 3, S, S)."""
    return bot.look(io.BytesIO(content))


# --- main ---


def load(cfg: Config) -> dict[str, Chatbot]:
    """Load the chatbots that exist, under the names of their folders.

    Raises:
        FileNotFoundError: if there is none.
    """
    machine.seed_everything(cfg.seed, cfg.threads)
    device = machine.pick_device(cfg.device)
    bots = {}
    for run in filter(None, map(str.strip, cfg.runs.split(","))):
        path = find(run)
        name = Path(run).name + ("" if path == run else " (shipped)")
        try:
            state = load_state(path, CHATBOTS)
        except FileNotFoundError:  # not trained yet, or not to its first checkpoint
            continue
        name = name if name not in bots else run
        bots[name] = Chatbot(state, device, cfg.dtype)
        print(f"{name}: {path}", flush=True)
    if not bots:
        raise FileNotFoundError(f"no run at {cfg.runs}; run ./speedrun.sh first")
    return bots


def main(cfg: Config) -> dict[str, float]:
    """Load the chatbots and serve the page until the user stops it."""
    options.check(cfg)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((cfg.host, cfg.port))
        except OSError as error:
            where = f"port {cfg.port} of {cfg.host}"
            raise OSError(f"{where} cannot be used ({error}); see --port and --host") from None
    page = Page(load(cfg), cfg)
    make_meta(LEVEL)  # takes a second, which no request should wait for
    address = f"http://{cfg.host}:{cfg.port}"
    print(f"{address}   Ctrl-C ends it", flush=True)
    if cfg.open:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    uvicorn.run(page.app(), host=cfg.host, port=cfg.port, log_level="warning",
                limit_concurrency=cfg.connections)
    return {}


if __name__ == "__main__":
    options.cli(main, Config)
