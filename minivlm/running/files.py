"""Files that others have written: read with limits, and with errors that name the file.

A data folder, an annotation file or a tar may come from anybody, and may be damaged or
forged. This module reads texts, JSON, lines of JSON and members of a tar, and checks paths.
What the content must hold is checked where it is used.
"""

import json
import lzma
import math
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_BYTES = 200_000_000  # of one file in a tar: the largest picture has 50 million pixels
# what tarfile raises for a damaged archive; a RecursionError for thousands of headers
BROKEN_TAR = (
    tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError,
    TypeError, LookupError, ArithmeticError, RecursionError,
)


# --- text and JSON ---


def read_text(path: str | Path) -> str:
    """Read a file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is in another encoding.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None


def parse_json(content: str | bytes, name: str):
    """Parse a JSON text.

    Args:
        name: what the error calls it: the file, and the line if it has several.

    Raises:
        ValueError: if it is not JSON, not UTF-8, or nested too deeply.

    >>> parse_json(b'{"id": 1}', "a.json")
    {'id': 1}
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # "[[[[ ..." is a RecursionError
        raise ValueError(f"{name} is no JSON in UTF-8: {error}") from None


def read_json(path: Path) -> dict:
    """Read a JSON object from a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def read_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Read a file with one JSON object a line; yield "file:line" and the object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is not a JSON object.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            name = f"{path}:{number}"
            record = parse_json(line, name)
            if not isinstance(record, dict):
                raise ValueError(f"{name} is no JSON object")
            yield name, record


def check_entries(entries: list, name: str, /, **types: type) -> None:
    """Refuse a published list if an entry lacks one of these keys, or has another type.

    Args:
        name: what the error calls the list: the file and the list in it.
        types: key -> type of its value.

    Raises:
        ValueError: for the first such entry, with its number; the first entry is number 0.

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
                shown = repr(str(value)[:40])  # a forged value may be megabytes long
                raise ValueError(
                    f"{name}, entry {n}: {key} is {shown}, expected {kind.__name__}"
                )


def expect(config: dict, folder: Path, **wanted: object) -> None:
    """Refuse a published model config that asks for what minivlm does not have.

    An entry that the config does not have is accepted.

    Raises:
        ValueError: for the first entry with another value.
    """
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"{folder}: {key} is {config[key]!r}, minivlm has {value!r} only"
            )


def is_number(x) -> bool:
    """Whether a value from JSON is a finite number; True and False are not.

    >>> [is_number(x) for x in (1, 0.5, float("nan"), True, "1", 10**400)]
    [True, True, False, False, False, False]
    """
    # 1e300: math.isfinite raises OverflowError for an int that no float can hold
    return type(x) in (int, float) and abs(x) < 1e300 and math.isfinite(x)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# --- tars and paths ---


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn all that a damaged tar raises into one ValueError that names the file."""
    try:
        yield
    except BROKEN_TAR as error:
        raise ValueError(
            f"{name} is no readable tar archive ({first_line(error)})"
        ) from None


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar in their order; links and devices are left out.

    Raises:
        tarfile.ReadError: if the tar goes on with something that is no member. tarfile
            itself takes that for the end.
    """
    for member in archive:
        if member.isfile():
            yield member
    # a tar ends with zeros, up to a block of 10,240 bytes
    if archive.fileobj.read(10_240).strip(b"\0"):
        raise tarfile.ReadError("what follows is no member of a tar")


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read one file of a tar into memory; nothing is written to the disk under its name.

    Raises:
        ValueError: if it claims to be too large. A sparse file may claim any size at no
            cost.
    """
    if member.size > MAX_BYTES:
        raise ValueError(
            f"{member.name!r} in {archive.name} claims to have {member.size:,} bytes, "
            f"more than {MAX_BYTES:,}"
        )
    return archive.extractfile(member).read()


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file that a record names; the file must lie in `folder`.

    Data folders are shared, so a record must not name other files of this machine. A link
    inside the folder is followed, because people keep large corpora elsewhere and link to
    them.

    Raises:
        ValueError: if the name is no relative path, or leads out of the folder.

    >>> inside("data", "train/0.png").as_posix()
    'data/train/0.png'
    """
    # half a surrogate pair, or a name that is no text, cannot be encoded
    try:
        raw = os.fsencode(name)
    except (TypeError, UnicodeEncodeError):
        raw = b""
    # 255 bytes is the limit of a file name; 2000 stays below Linux's 4096 for a whole path
    longest = max(len(part) for part in raw.split(b"/"))
    if not raw or b"\0" in raw or longest > 255 or len(raw) > 2000:
        raise ValueError(f"{str(name)[:80]!r} is no name of a file in {folder}")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{name!r} leads out of its folder {folder}; "
            "put the file, or a link to it, there and name it from there"
        )
    return Path(folder, name)
