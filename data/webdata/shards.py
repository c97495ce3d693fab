"""Tar shards as img2dataset and webdataset write them: key.jpg|png|webp, key.txt, key.json.

A sample is a run of members, side by side, that share their key: the name up to the first dot
behind the last slash. Reading streams: nothing is unpacked, and a shard that breaks off gives what
came before the break.

Used by: prepare.py.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from minivlm.running.files import BROKEN_TAR, MAX_BYTES, members_of, read_member
from minivlm.running.options import printable

PICTURES = ("jpg", "jpeg", "png", "webp")
MAX_TEXT = 1_000_000  # bytes of a text or of JSON; more is no caption
TOO_LARGE = "too large"  # stands for the ending of a member that is not read


@dataclass
class Sample:
    """One picture with its text; `ending` is the picture's, `info` what key.json holds."""

    key: str
    picture: bytes
    ending: str
    text: str
    info: dict = field(default_factory=dict)


def refuse(skipped: Counter, named: list[str], key: str, reason: str) -> None:
    """Count what is left out by its reason, and name it, on a line of its own whatever it is."""
    skipped[reason] += 1
    named.append(printable(f"{key}: {reason}", keep=""))


def read_shard(
    path: str | Path, skipped: Counter, named: list[str] | None = None
) -> Iterator[Sample]:
    """The usable samples of a shard, in its order.

    Args:
        skipped: counts by reason what is not given.
        named: gets a line "shard/key: reason" for each.

    Raises:
        FileNotFoundError: if there is no such shard.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no shard at {path}")

    def skip(key: str, reason: str) -> None:
        refuse(skipped, [] if named is None else named, f"{path.name}/{key}", reason)

    seen: set[str] = set()
    for key, parts, broken in _groups(path):
        if broken:
            skip(key or "?", "shard breaks off here")
        if not parts:
            continue
        reason = _fault(key, parts, seen)
        seen.add(key)
        if reason:
            skip(key, reason)
            continue
        ending = next(e for e in PICTURES if e in parts)
        yield Sample(key, parts[ending], ending, parts["txt"].decode().strip(),
                     json.loads(parts["json"]) if "json" in parts else {})


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes], bool]]:
    """(key, {ending: content}, does the shard break off here) of each run of members of one key."""
    key, parts = "", {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in members_of(archive):
                if not member.issparse() and member.size > 1000 * path.stat().st_size:
                    raise EOFError  # gzip shrinks a thousandfold at most: the rest is not there
                head, slash, tail = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = tail.partition(".")
                if head + slash + stem != key and parts:
                    yield key, parts, False
                    parts = {}
                key = head + slash + stem
                # a second member of the same name is kept under a name that gives it away
                ending = ending.lower() + "#" * (ending.lower() in parts)
                used = ending in (*PICTURES, "txt", "json")
                if used and member.size > (MAX_BYTES if ending in PICTURES else MAX_TEXT):
                    ending, used = TOO_LARGE, False
                parts[ending] = read_member(archive, member) if used else b""
    except BROKEN_TAR:
        yield key, {}, True                       # the sample it broke off in may lack its end
        return
    if parts:
        yield key, parts, False


def _fault(key: str, parts: dict[str, bytes], seen: set[str]) -> str:
    """Why a sample cannot be used, or nothing."""
    if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts or (
            printable(key, keep="") != key):
        return "strange name"
    if TOO_LARGE in parts:
        return "part too large"
    if key in seen or any(ending.endswith("#") for ending in parts):
        return "key stands twice"
    if not any(ending in parts for ending in PICTURES):
        return "no picture"
    if "txt" not in parts:
        return "no text"
    try:
        parts["txt"].decode()
    except UnicodeDecodeError:
        return "text is not UTF-8"
    if "json" in parts:
        try:
            if not isinstance(json.loads(parts["json"]), dict):
                return "json is no object"
        except (ValueError, RecursionError):
            return "json is unreadable"
    return ""


def write_shards(
    folder: str | Path, samples: Iterable[Sample], per_shard: int = 1000
) -> list[Path]:
    """Write samples as 00000.tar, ... that `read_shard` and webdataset read; return the paths.

    Equal samples give equal bytes: times, owners and rights are fixed. Tars that the folder holds
    already are removed first, so never write where the samples are read from.

    Raises:
        ValueError: if per_shard < 1, or a key or ending would not survive reading, or a key comes
            twice.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard {per_shard} is below 1")
    folder, paths, archive, seen = Path(folder), [], None, set()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar"):
        old.unlink()
    try:
        for n, sample in enumerate(samples):
            if (
                "." in sample.key.rpartition("/")[2] or not sample.key
                or sample.ending not in PICTURES or printable(sample.key, keep="") != sample.key
            ):
                raise ValueError(
                    f"sample {sample.key!r} with a picture .{sample.ending} cannot be read back"
                )
            if sample.key in seen:
                raise ValueError(f"two samples have the key {sample.key!r}")
            seen.add(sample.key)
            if n % per_shard == 0:
                if archive:
                    archive.close()
                paths.append(folder / f"{n // per_shard:05d}.tar")
                archive = tarfile.open(paths[-1], "w")
            info = json.dumps(sample.info, sort_keys=True).encode()
            for ending, content in (
                (sample.ending, sample.picture), ("txt", sample.text.encode()), ("json", info),
            ):
                member = tarfile.TarInfo(f"{sample.key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    finally:
        if archive:
            archive.close()
    return paths
