"""Files that others have written: read with a limit, and one clear error that names the file.

A data folder, a published annotation file, a tar may come from anybody, by mistake or by intent
unlike what it should be. Here it is text, JSON, lines of JSON, a tar's member or a path; what the
content must hold is said where it is used.

Used by: whatever reads a file here, and every prepare.py that reads a published data set.
"""

import json
import lzma
import math
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 200_000_000  # of one file in a tar: 50 million pixels, as large as pictures may be
# what a damaged archive makes tarfile raise; RecursionError: a header before a header before ...
BROKEN_TAR = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError,
              TypeError, LookupError, ArithmeticError, RecursionError)


def read_text(path: str | Path) -> str:
    """A file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is in another encoding.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None


def parse_json(content: str | bytes, name: str):
    """What a JSON text holds.

    Args:
        name: the file, and the line if it has several, for the error.

    Raises:
        ValueError: if it is no JSON, nested without end, or not in UTF-8.

    >>> parse_json(b'{"id": 1}', "a.json")
    {'id': 1}
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON in UTF-8: {error}") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    found = parse_json(read_text(path), str(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def read_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """The JSON objects of a file that has one a line, each with "file:line" to call it by.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no JSON object.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            record, name = parse_json(line, f"{path}:{number}"), f"{path}:{number}"
            if not isinstance(record, dict):
                raise ValueError(f"{name} is no JSON object")
            yield name, record


def check_entries(entries: list, name: str, /, **types: type) -> None:
    """Refuse a published list unless each entry has these keys, with values of these types.

    Args:
        name: the file and the list in it, for the error.

    Raises:
        ValueError: if an entry has not, with its number, counted from 0.

    >>> check_entries([{"id": 1}, {"id": "b"}], "a.json, images", id=int)
    Traceback (most recent call last):
    ValueError: a.json, images, entry 1: id is 'b', expected int
    """
    if not isinstance(entries, list):
        raise ValueError(f"{name} is no list")
    for n, entry in enumerate(entries):
        for key, kind in types.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kind):
                raise ValueError(f"{name}, entry {n}: {key} is {str(value)[:40]!r}, expected "
                                 f"{kind.__name__}")


def expect(config: dict, folder: Path, **wanted: object) -> None:
    """Refuse a published config that asks for what minivlm does not have; an entry that is missing
    counts as wanted.

    Raises:
        ValueError: naming the first entry that is another.
    """
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(f"{folder}: {key} is {config[key]!r}, minivlm has {value!r} only")


def is_number(x) -> bool:
    """Whether a value out of JSON is a finite number, no truth value.

    >>> [is_number(x) for x in (1, 0.5, float("nan"), True, "1", 10**400)]
    [True, True, False, False, False, False]
    """
    return type(x) in (int, float) and abs(x) < 1e300 and math.isfinite(x)


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, in order; no links, no devices.

    Raises:
        tarfile.ReadError: if what follows is no member, which tarfile takes for the end.
    """
    yield from (member for member in archive if member.isfile())
    if archive.fileobj.read(10_240).strip(b"\0"):
        raise tarfile.ReadError("what follows is no member of a tar")


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """One file of a tar; nothing is unpacked, so its name leads nowhere.

    Raises:
        ValueError: if it claims to be too large; a sparse file of no bytes may claim any size.
    """
    if member.size > MAX_BYTES:
        raise ValueError(
            f"{member.name!r} in {archive.name} claims to have {member.size:,} bytes, more than "
            f"{MAX_BYTES:,}"
        )
    return archive.extractfile(member).read()


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file that a record names, which must lie in its folder.

    Data folders are shared: a record must not reach for what else is on this machine. A link that
    somebody has put into the folder is followed: so people keep large corpora elsewhere.

    Raises:
        ValueError: if the name is no relative path, or leads out of the folder.

    >>> inside("data", "train/0.png").as_posix()
    'data/train/0.png'
    """
    try:
        raw = os.fsencode(name)
    except (TypeError, UnicodeEncodeError):
        raw = b""
    if not raw or b"\0" in raw or max(map(len, raw.split(b"/"))) > 255 or len(raw) > 2000:
        raise ValueError(f"{str(name)[:80]!r} is no name of a file in {folder}")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} leads out of its folder {folder}; put the file, or a link to "
                         "it, there and name it from there")
    return Path(folder, name)
