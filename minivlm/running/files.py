"""Read files that others have written, with limits, and with errors that name the file.

A data folder, an annotation file or a tar may come from anybody, and may be damaged or
forged. This module reads texts, JSON, lines of JSON and members of a tar, and checks paths.
The modules that use a file check what it says.
"""

import codecs
import json
import lzma
import math
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

# most bytes of one file in a tar; an uncompressed picture of 50 million pixels has 150 MB
MAX_BYTES = 200_000_000
# tarfile raises these for damaged archives; RecursionError for thousands of headers
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
        content: a text, or its bytes in UTF-8, with or without a byte order mark.
        name: the file, and the line if the file has several; for the error message.

    Raises:
        ValueError: if the content is no JSON, is not UTF-8, or is nested too deeply.

    >>> parse_json(b'{"id": 1}', "a.json")
    {'id': 1}
    """
    try:
        if isinstance(content, bytes):  # json.loads would also take UTF-16 and UTF-32
            content = content.decode("utf-8-sig")
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # "[[[[ ..." is a RecursionError
        raise ValueError(f"{name} is no JSON in UTF-8: {error}") from None


def read_json(path: Path) -> dict:
    """Read a JSON object from a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not UTF-8, or holds anything but a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def read_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Read the JSON objects of a file, and yield each with its name.

    The file holds one object a line, or one list of all objects. A name is "file:line", or
    "file, entry n" in a list, where n counts from 0. Blank lines are skipped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line or an entry that is no JSON object.
    """
    for name, record in _parsed(path):
        if not isinstance(record, dict):
            raise ValueError(f"{name} is no JSON object")
        yield name, record


def _parsed(path: str | Path) -> Iterator[tuple[str, object]]:
    """Yield what stands in a file for `read_lines`, of whatever type."""
    is_first = True
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(codecs.BOM_UTF8).strip()
            if is_first and text.startswith(b"["):
                for n, entry in enumerate(parse_json(line + lines.read(), str(path))):
                    yield f"{path}, entry {n}", entry
            elif text:
                yield f"{path}:{number}", parse_json(text, f"{path}:{number}")
                is_first = False


def check_entries(entries: list, name: str, /, **types: type) -> None:
    """Refuse a list unless each entry has these keys, with values of these types.

    Args:
        name: the file, and the list in it; for the error message.
        types: key -> type of its value.

    Raises:
        ValueError: for the first wrong entry; the message numbers entries from 0.

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
                raise ValueError(
                    f"{name}, entry {n}: {key} is {brief(value)}, expected {kind.__name__}"
                )


def expect(config: dict, folder: Path, **wanted: object) -> None:
    """Refuse a published model config that asks for something that minivlm does not have.

    Args:
        folder: the folder of the published model, for the error message.
        wanted: key -> the only value that minivlm has. The config may lack the key.

    Raises:
        ValueError: for the first key with another value.
    """
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"{folder}: {key} is {brief(config[key])}, minivlm has {value!r} only"
            )


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Put a folder's name before the message of a ValueError that does not begin with it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if not text.startswith(f"{folder}: "):
            text = f"{folder}: {text}"
        raise ValueError(text) from None


def sizes(config: dict, folder: Path, **defaults: int) -> list[int]:
    """Read sizes from a config.

    A size that the config lacks has its default. A size beyond that of any published model
    is refused before anybody builds a model of that size.

    Args:
        defaults: name of a size -> its default.

    Returns:
        the sizes, in the order of `defaults`.

    Raises:
        ValueError: if a size is no integer from 1 to 1,000 (layers) or 1,000,000 (others).
    """
    found = []
    for key, default in defaults.items():
        value = config.get(key, default)
        most = 1000 if "layer" in key else 1_000_000
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{folder}: {key} is {brief(value)}, expected 1 .. {most}")
        found.append(value)
    return found


def is_number(x) -> bool:
    """Whether a value from JSON is a number below 1e300 in size; True and False are none.

    >>> [is_number(x) for x in (1, 0.5, float("nan"), True, "1", 10**400)]
    [True, True, False, False, False, False]
    """
    # the bound comes first: for a huge int, math.isfinite raises OverflowError
    return type(x) in (int, float) and abs(x) < 1e300 and math.isfinite(x)


def brief(value: object) -> str:
    """Write a value for an error message: on one line, and at most 80 characters long.

    A forged value may be megabytes long, hold line breaks, or be nested without end.
    """
    try:
        return repr(value)[:80]
    except RecursionError:
        return type(value).__name__


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- tars and paths ---


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn every error of a damaged tar into a ValueError that names the file.

    Put only code that reads the tar into the `with` block: whatever error of BROKEN_TAR the
    block raises, the message blames the tar.
    """
    try:
        yield
    except BROKEN_TAR as error:
        raise ValueError(
            f"{name} is no readable tar archive ({first_line(error)})"
        ) from None


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar in their order, without those that `is_hidden`.

    Links and devices are left out, too.

    Raises:
        tarfile.ReadError: if something that is no member follows the last one. tarfile
            itself stops there without an error.
    """
    for member in archive:
        if member.isfile() and not is_hidden(member.name):
            yield member
    # a tar ends with zeros that fill its last block of 10,240 bytes
    if archive.fileobj.read(10_240).strip(b"\0"):
        raise tarfile.ReadError("what follows is no member of a tar")


def is_hidden(name: str) -> bool:
    """Whether a system put this file beside people's files: ".DS_Store", "__MACOSX/a.png".

    A tar that was made on a Mac holds "._0.png" beside "0.png". Readers of shards, such as
    webdataset, skip names that begin with a dot.

    >>> [is_hidden(name) for name in ("a/._0.png", ".git/0.png", "./0.png", "../0.png")]
    [True, True, False, False]
    """
    parts = set(PurePosixPath(name).parts) - {".."}  # ".." leads out, see `inside`
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read one file of a tar into memory; nothing is written to the disk under its name.

    Raises:
        ValueError: if its header claims more than MAX_BYTES. A sparse file of a few bytes
            may claim any size.
    """
    if member.size > MAX_BYTES:
        raise ValueError(
            f"{member.name!r} in {archive.name} claims to have {member.size:,} bytes, "
            f"more than {MAX_BYTES:,}"
        )
    return archive.extractfile(member).read()


def inside(folder: str | Path, name: str) -> Path:
    """Return the path of a file that a record names; the file must lie in `folder`.

    People share data folders, so a record may come from anybody and must not name other
    files of this machine. A link inside the folder is followed, because people keep large
    corpora elsewhere and link to them.

    Raises:
        ValueError: if the name is no possible path, is absolute, or contains "..".

    >>> inside("data", "train/0.png").as_posix()
    'data/train/0.png'
    """
    # a lone surrogate, or a name that is no text, cannot be encoded
    try:
        raw = os.fsencode(name)
    except (TypeError, UnicodeEncodeError):
        raw = b""
    # 255 bytes is the limit of a file name; 2000 stays below Linux's 4096 for a whole path
    longest = max(len(part) for part in raw.split(b"/"))
    if not raw or b"\0" in raw or longest > 255 or len(raw) > 2000:
        raise ValueError(f"{brief(name)} is no name of a file in {folder}")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{name!r} leads out of its folder {folder}; "
            "put the file, or a link to it, there and name it from there"
        )
    return Path(folder, name)
