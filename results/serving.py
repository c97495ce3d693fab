"""Run serve.py in a process of its own, for scripts and tests that use its page."""

import json
import os
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Server:
    """serve.py at a free port of this machine.

    Args:
        options: of its command line.

    Raises:
        SystemExit: if it ends before it listens.
    """

    def __init__(self, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "serve.py", "--port", str(self.port), *options]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=environment)
        while self.process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit("serve.py ended before it listened")

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.process.kill()
        self.process.wait()

    def connect(self) -> HTTPConnection:
        """A new connection to it."""
        return HTTPConnection("127.0.0.1", self.port)

    def peak_mb(self) -> float:
        """The most memory that it has had, in MB, as Linux counts it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def ask(connection: HTTPConnection, path: str, **fields) -> list[dict]:
    """Make a request as the page's script does; return the JSON of each line of the reply.

    Raises:
        SystemExit: if the request is refused.
    """
    body = json.dumps(fields)
    connection.request("POST", f"/api/{path}", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    lines = [json.loads(line) for line in reply.read().splitlines()]
    if reply.status != 200:
        raise SystemExit(f"refused: {lines[0]['error']}")
    return lines
