"""Tar shards as img2dataset and webdataset write them: key.jpg|png|webp, key.txt, key.json.

A sample is a group of neighboring members with the same key. A member's key is its name up
to the first dot after the last slash. As in webdataset, a name without a dot or with
nothing before it ("._0.png") is no part of a sample. A shard is read as a stream, and
nothing is unpacked. If a shard breaks off, the samples before the break are read.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from minivlm.running.files import (
    BROKEN_TAR, MAX_BYTES, members_of, parse_json, read_member,
)
from minivlm.running.options import printable

PICTURES = ("jpg", "jpeg", "png", "webp")
USED = (*PICTURES, "txt", "json")  # other members are not read
MAX_TEXT = 1_000_000  # bytes of a text or of JSON; a larger one is no caption
TOO_LARGE = "too large"  # takes the place of the ending of a part that is too large


@dataclass
class Sample:
    """One picture with its text."""

    key: str
    picture: bytes
    ending: str  # the picture's: "jpg", "png", ...
    text: str
    info: dict = field(default_factory=dict)  # what key.json holds


def refuse(
    skipped: Counter, named: list[str], key: str, reason: str, detail: str = ""
) -> None:
    """Count a refused sample by its reason, and note its key on a line of its own.

    Args:
        skipped: counts refused samples by reason.
        named: gets the line "key: reason", or "key: detail" if there is a detail.
    """
    skipped[reason] += 1
    # a key may hold line ends and other control characters
    named.append(printable(f"{key}: {detail or reason}", keep=""))


# --- reading ---


def read_shard(
    path: str | Path, skipped: Counter, named: list[str] | None = None
) -> Iterator[Sample]:
    """Yield the usable samples of a shard in their order.

    Args:
        skipped: counts the samples that cannot be used, by reason.
        named: gets a line "shard/key: reason" for each of these.

    Raises:
        FileNotFoundError: if there is no such shard.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no shard at {path}")
    if named is None:
        named = []
    keys = set()
    for key, parts, breaks_off in _groups(path):
        if breaks_off:
            # without a key, the shard breaks off in its first member
            refuse(skipped, named, f"{path.name}/{key or '?'}", "shard breaks off here")
            return
        try:
            sample = _sample(key, parts, keys)
        except ValueError as reason:
            refuse(skipped, named, f"{path.name}/{key}", str(reason))
        else:
            yield sample
        keys.add(key)


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes], bool]]:
    """Yield key and {ending: content} of each sample, and whether the shard breaks off.

    The sample in which a shard breaks off may lack some parts, so it is yielded with none.
    """
    key = ""
    parts = {}
    try:
        # "|" reads forward only, as from a pipe; "*" unpacks gzip and others
        with tarfile.open(path, "r|*") as archive:
            for member in members_of(archive):
                # gzip makes a file at most a thousand times smaller, so a member that
                # claims to be larger cannot be complete
                if not member.issparse() and member.size > 1000 * path.stat().st_size:
                    raise EOFError
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = name.partition(".")
                if not ending:
                    continue
                if folder + slash + stem != key and parts:
                    yield key, parts, False
                    parts = {}
                key = folder + slash + stem
                ending = ending.lower()
                if ending in parts:
                    ending += "#"  # a second member: `_sample` refuses the sample
                largest = MAX_BYTES if ending in PICTURES else MAX_TEXT
                if ending not in USED:
                    parts[ending] = b""
                elif member.size > largest:
                    parts[TOO_LARGE] = b""
                else:
                    parts[ending] = read_member(archive, member)
    except BROKEN_TAR:
        yield key, {}, True
        return
    if parts:
        yield key, parts, False


def _sample(key: str, parts: dict[str, bytes], keys: set[str]) -> Sample:
    """Make a sample of its parts.

    Args:
        keys: of the samples before it.

    Raises:
        ValueError: if it cannot be used; the error is the reason.
    """
    if not is_plain(key):
        raise ValueError("strange name")
    if TOO_LARGE in parts:
        raise ValueError("part too large")
    # "#" marks a second member of the same name, see `_groups`
    if key in keys or any(ending.endswith("#") for ending in parts):
        raise ValueError("key stands twice")
    ending = next((ending for ending in PICTURES if ending in parts), "")
    if not ending:
        raise ValueError("no picture")
    if "txt" not in parts:
        raise ValueError("no text")
    try:
        text = parts["txt"].decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("text is not UTF-8") from None
    try:
        info = parse_json(parts.get("json", b"{}"), key)
    except ValueError:
        raise ValueError("json is unreadable") from None
    if not isinstance(info, dict):
        raise ValueError("json is no object")
    return Sample(key, parts[ending], ending, text, info)


def is_plain(key: str) -> bool:
    """Whether a key is a relative path that stays in its folder and can be printed."""
    path = PurePosixPath(key)
    stays = not path.is_absolute() and ".." not in path.parts
    return stays and printable(key, keep="") == key


# --- writing ---


def write_shards(
    folder: str | Path, samples: Iterable[Sample], per_shard: int = 1000
) -> list[Path]:
    """Write samples as 00000.tar, 00001.tar, ... that `read_shard` and webdataset read.

    Equal samples give equal bytes: times, owners and rights are fixed. Old tars in the
    folder are removed first, so never write into the folder that the samples are read from.

    Returns:
        the paths of the tars.

    Raises:
        ValueError: if per_shard < 1, if a sample's key or ending could not be read back, or
            if two samples have the same key.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard {per_shard} is below 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar"):
        old.unlink()
    paths = []
    archive = None
    keys = set()
    try:
        for n, sample in enumerate(samples):
            _check(sample, keys)
            keys.add(sample.key)
            if n % per_shard == 0:
                if archive:
                    archive.close()
                paths.append(folder / f"{n // per_shard:05d}.tar")
                archive = tarfile.open(paths[-1], "w")
            # equal bytes: a new TarInfo has no time and no owner, and the keys are sorted
            info = json.dumps(sample.info, sort_keys=True).encode()
            text = sample.text.encode()
            parts = {sample.ending: sample.picture, "txt": text, "json": info}
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{sample.key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    finally:
        if archive:
            archive.close()
    return paths


def _check(sample: Sample, keys: set[str]) -> None:
    """Refuse a sample that could not be read back, with a ValueError."""
    key = sample.key
    # a dot in the name would end the key when the shard is read
    name = key.rpartition("/")[2]
    is_bad = not key or "." in name or printable(key, keep="") != key
    if is_bad or sample.ending not in PICTURES:
        raise ValueError(
            f"sample {key!r} with a picture .{sample.ending} cannot be read back"
        )
    if key in keys:
        raise ValueError(f"two samples have the key {key!r}")
