"""Ask serve.py 200 questions over 20 connections; write results/serve.json.

    python results/load.py [runs/sft]

Each connection asks ten questions, one after the other, about scenes of its own. Measured are
the seconds from a question to the end of its answer, and the server's memory: its peak after the
first 20 questions and after all.
"""

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minivlm.running.machine import provenance
from serving import Server, ask

QUESTIONS = ("Describe the picture in detail.", "Is it day or night?", "Is there a cat?",
             "What is unusual here, and why?", "How many things are there?")


@dataclass
class Settings:
    """What is asked."""

    run: str = "chatbots/sft.pt"
    connections: int = 20
    each: int = 10  # questions of a connection


def talk(server: Server, run: str, first: int, n: int) -> list[float]:
    """Ask n questions over one connection; return the seconds that each answer took."""
    connection = server.connect()
    took = []
    for i in range(first, first + n):
        began = time.perf_counter()
        lines = ask(connection, "answer", run=run, turns=[QUESTIONS[i % len(QUESTIONS)]],
                    picture="", scene=i, temperature=0, seed=i)
        took.append(time.perf_counter() - began)
        assert lines[-1]["end"] and any(line.get("text") for line in lines)
    return took


def main(cfg: Settings) -> None:
    """Measure, and write the file."""
    began = time.time()
    server = Server("--runs", cfg.run)
    name = Path(cfg.run).name
    try:
        talk(server, name, 0, 20)
        before = server.peak_mb()
        start = time.perf_counter()
        with ThreadPoolExecutor(cfg.connections) as pool:
            firsts = range(0, cfg.connections * cfg.each, cfg.each)
            took = [t for part in pool.map(lambda i: talk(server, name, i, cfg.each), firsts)
                    for t in part]
        seconds = time.perf_counter() - start
        after = server.peak_mb()
    finally:
        server.kill()
    took.sort()
    figures = {
        "answers": len(took), "seconds": seconds, "answers_per_second": len(took) / seconds,
        "p50_seconds": statistics.median(took), "p95_seconds": took[int(0.95 * len(took))],
        "peak_mb_before": before, "peak_mb": after,
    }
    figures = {key: round(value, 2) for key, value in figures.items()}
    report = {**provenance(cfg, began), "figures": figures}
    (Path(__file__).parent / "serve.json").write_text(json.dumps(report, indent=1) + "\n")
    print(figures)


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
