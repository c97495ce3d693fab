"""Files made to hurt, given to everything that reads files.

Each is refused with one clear line that names the file, or left out and counted where a reader
counts. Nothing is run, nothing is written elsewhere, and neither time nor memory is spent on it:
memory is limited while a reader runs, and what it opens and starts is watched.
"""

import copy
import dataclasses
import functools
import gzip
import io
import json
import operator
import os
import pickle
import random
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

import chat
import evaluate
from data import instruct, preferences
from data.cifar10 import prepare as cifar10
from data.coco import prepare as coco
from data.instruct import record_as_text
from data.llava import prepare as llava
from data.nlvr import prepare as nlvr
from data.webdata import prepare as webdata
from data.webdata.shards import Sample, read_shard, write_shards
from minivlm import chatbot
from minivlm.clip import CLIPConfig
from minivlm.engine import teachers
from minivlm.engine.checks import faults, parse
from minivlm.evaluation.scene import things_of
from minivlm.gpt import GPTConfig
from minivlm.loading.batches import render_records
from minivlm.loading.images import Pictures, open_image
from minivlm.loading.models import OPTIONAL_SIZES, check_sizes, vlm_from
from minivlm.loading.prepared import load_meta, load_records
from minivlm.preferences import judge, layouts, pool
from minivlm.preferences.pairs import load_pairs
from minivlm.preferences.rankings import load_rankings
from minivlm.running import checkpoint
from minivlm.running.options import cli, printable
from minivlm.tokenizer import GPT2_PATTERN, PATTERN, Tokenizer
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM

# --- while a reader runs ---

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod")
watched: list[tuple[Path, list[str]]] = []


def _watch(event: str, args: tuple) -> None:
    """Note what is started, and what is written outside of the folder that is watched."""
    if not watched:
        return
    folder, seen = watched[-1]
    changed = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in STARTS:
        seen.append(f"{event} {args}")
    elif changed or event in CHANGES:
        path = args[0]
        if isinstance(path, (str, bytes)) and not os.path.abspath(os.fsdecode(path)).startswith(
                str(folder)):
            seen.append(f"{event} {args}")


sys.addaudithook(_watch)


@contextmanager
def harmless(folder: Path, seconds: float = 2.0, megabytes: int = 300) -> Iterator[None]:
    """Within it, too much memory is a MemoryError; afterwards, nothing else may have happened."""
    statm, seen = Path("/proc/self/statm"), []
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if statm.is_file():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2 ** 20, hard))
    watched.append((folder, seen))
    began = time.process_time()
    try:
        yield
    finally:
        spent = time.process_time() - began
        watched.pop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not seen and spent < seconds


@contextmanager
def refused(path: Path | str, folder: Path, *more: str) -> Iterator[None]:
    """Within it, an error of one line that names the file is raised, and nothing else happens."""
    with harmless(folder):
        with pytest.raises((ValueError, OSError)) as caught:
            yield
    said = str(caught.value)
    assert str(path) in said and "\n" not in said.strip(), said
    assert not more or any(text in said for text in more), said


# --- pictures ---


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int = 8, height: int = 8, *extra: bytes, rows: bytes | None = None) -> bytes:
    """A PNG, with chunks before its pixels."""
    rows = bytes(25 * 8) if rows is None else rows
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def made(fmt: str, *frames: Image.Image, **options) -> bytes:
    """A file of a format; of many frames, an animation."""
    out, frames = io.BytesIO(), frames or (Image.new("RGB", (8, 8), "red"),)
    more = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(out, fmt, **more, **options)
    return out.getvalue()


def tiff(width: int, height: int, *more: tuple[int, int, int, int], after: int = 0) -> bytes:
    """A TIFF of gray whose pixels begin at byte 8."""
    tags = sorted([
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 64), *more])
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + directory


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new):]


ZEROS = zlib.compress(bytes(100_000_000), 9)  # 100 kB that grow a thousand times
BITMAP = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
BAD_PICTURES = {
    "empty": b"", "text": b"<html>404 not found</html>", "svg": b"<svg width='9'/>",
    "too large png": png(60000, 60000), "largest png": png(2 ** 31 - 1, 2 ** 31 - 1),
    "no width": png(0, 8), "no size": png(0, 0), "text chunk bomb": png(8, 8, chunk(
        b"zTXt", b"x\0\0" + ZEROS)),
    "color profile bomb": png(8, 8, chunk(b"iCCP", b"x\0\0" + ZEROS)),
    "too large gif": patched(made("GIF"), 6, struct.pack("<HH", 65535, 65535)),
    "too large tiff": tiff(100_000, 100_000), "tiff without pixels": tiff(7000, 7000),
    "too large jpeg": made("JPEG").replace(b"\x08\0\x08\0\x08", b"\x08\xff\xff\xff\xff", 1),
    "cut jpeg": made("JPEG")[:-40], "cut png": png()[:-30], "cut webp": made("WEBP")[:-9],
    "too large ppm": b"P6 100000 100000 255\n", "endless ppm": b"P6 " + b"9" * 5000 + b" 3 255\n",
    "too large bmp": BITMAP + struct.pack("<IiiHHIIiiII", 40, 90000, 90000, 1, 24, *[0] * 6),
    "too large in an icon": b"\0\0\1\0\1\0" + struct.pack(
        "<BBBBHHII", 0, 0, 0, 0, 1, 32, len(png(60000, 60000)), 22) + png(60000, 60000),
    "unknown texture": b"DDS " + struct.pack("<IIII", 124, 0, 70, 70) + bytes(200),
    "overflowing layers": b"8BPS\0\1" + bytes(6) + struct.pack(
        ">HIIHH", 3, 2 ** 31 - 1, 2 ** 31 - 1, 8, 3) + bytes(20),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "pickle": pickle.dumps([1]), "npy": b"\x93NUMPY\1\0v\0",
}
ODD_PICTURES = {
    "junk as profile": png(8, 8, chunk(b"iCCP", b"x\0\0junk")),
    "junk as jpeg's profile": made("JPEG", icc_profile=bytes(range(256))),
    "junk as exif": made("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 60),
    "exif in a circle": made("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"
                                          b"\x08\0\0\0"),
    "orientation in words": made("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0"
                                              + bytes(4)),
    "pixels without end": png(8, 8, rows=bytes(100_000_000)),
    "2,000 frames": made("GIF", *(Image.new("P", (8, 8), i % 256) for i in range(2000))),
    "300 moving frames": made("PNG", *(Image.new("RGB", (8, 8), (i % 256, 0, 0))
                                       for i in range(300))),
    "20,000 texts": png(8, 8, *(chunk(b"tEXt", b"k%d\0x" % i) for i in range(20_000))),
    "a tag of 4 GB": tiff(8, 8, (700, 1, 2 ** 32 - 1, 200)),
    "pages in a circle": tiff(8, 8, after=8) + bytes(64),
    "png called jpg": png(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_hostile_picture_is_refused_by_name_at_no_cost(name, tmp_path):
    """Catches decompression bombs, decoders' own errors, and programs that draw pictures."""
    path = tmp_path / "a.jpg"
    path.write_bytes(BAD_PICTURES[name])
    with refused(path, tmp_path):
        open_image(path)
    with refused("picture", tmp_path):
        open_image(io.BytesIO(BAD_PICTURES[name]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD_PICTURES)
def test_an_odd_picture_opens_at_no_cost(name, tmp_path):
    """Catches all frames decoded for the first one, and junk beside good pixels that stops a run.
    """
    (tmp_path / "a.jpg").write_bytes(ODD_PICTURES[name])
    with harmless(tmp_path):
        assert open_image(tmp_path / "a.jpg").size == (8, 8)


def exif(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    """EXIF data of one directory: (tag, type, count, value or place of it); `tail` is behind it."""
    directory = b"".join(struct.pack("<HHIi", *entry) for entry in sorted(entries))
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return head + directory + bytes(4) + tail


UPRIGHT = (0x0112, 3, 1, 6)  # orientation 6: turn by 90 degrees clockwise
BEHIND = 8 + 2 + 2 * 12 + 4  # where `tail` begins, behind two entries
ODD_ENTRIES = {
    "resolution below 0": exif(UPRIGHT, (0x011A, 10, 1, BEHIND), tail=struct.pack("<ii", -72, 1)),
    "width below 0": exif(UPRIGHT, (0x0100, 9, 1, -24)),
    "bits in words": exif(UPRIGHT, (0x0102, 2, 4, int.from_bytes(b"abc\0", "little"))),
    "resolution without words": exif(UPRIGHT, (0x0128, 3, 1, 2), (0x011A, 2, 1, 0)),
    "beyond the end": exif(UPRIGHT, (0x8769, 4, 1, 2 ** 31 - 1)),
    "unknown type": exif(UPRIGHT, (0x0132, 99, 7, 0)),
    "before it, beyond the end": exif((0x010F, 2, 9, 2 ** 30), UPRIGHT),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize("name", ODD_ENTRIES)
def test_a_photo_with_an_odd_entry_is_turned_upright(name, fmt, tmp_path):
    """Catches a camera's photo refused, or left on its side, for an entry that nobody needs."""
    photo = Image.new("RGB", (24, 16), "red")
    photo.paste("blue", (0, 8, 24, 16))                              # the lower half
    for source in (io.BytesIO(made(fmt, photo, exif=ODD_ENTRIES[name])), tmp_path / "a"):
        if source == tmp_path / "a":
            source.write_bytes(made(fmt, photo, exif=ODD_ENTRIES[name]))
        with harmless(tmp_path):
            opened = open_image(source)
        assert opened.size == (16, 24)
        left, right = opened.getpixel((3, 12)), opened.getpixel((12, 12))
        assert left[2] > 200 > left[0] and right[0] > 200 > right[2]  # below is left now


@pytest.mark.parametrize("fmt, options", [
    ("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True}),
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("MPO", {"quality": 100}),
])
def test_every_orientation_is_turned_as_pillow_turns_it(fmt, options):
    """Catches a TIFF turned twice, and a mirror image."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    pixels = pixels.repeat(8, 0).repeat(8, 1)
    for orientation in range(1, 9):
        tags = Image.Exif()
        tags[0x0112] = orientation
        content = made(fmt, Image.fromarray(pixels), exif=tags, **options)
        photo = Image.open(io.BytesIO(content))
        want = ImageOps.exif_transpose(photo).convert("RGB")
        assert np.array_equal(open_image(io.BytesIO(content)), want), orientation


def test_an_orientation_in_xmp_is_obeyed():
    """Catches XMP data passed over: some editors write the orientation there only."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    photo = Image.new("RGB", (24, 16))
    assert open_image(io.BytesIO(made("JPEG", photo, xmp=xmp))).size == (16, 24)
    assert open_image(io.BytesIO(made("WEBP", photo, xmp=xmp))).size == (16, 24)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_data_never_end_a_picture(tmp_path):
    """Catches errors of a class that nobody has thought of: bytes are changed at random."""
    tags = Image.Exif()
    tags.update({0x0112: 6, 0x010F: "Maker", 0x011A: 72.0, 0x0128: 2, 0x0102: (8, 8, 8)})
    tags.get_ifd(0x8769)[0x829A] = 0.01                              # exposure time
    tags.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)                        # latitude
    whole, draw = tags.tobytes(), random.Random(0)
    with harmless(tmp_path, seconds=9):
        for i in range(120):
            changed = bytearray(whole)
            for _ in range(draw.choice((1, 2, 16))):
                changed[draw.randrange(6, len(whole))] = draw.choice((0, 1, 2, 255, i))
            fmt = ("JPEG", "PNG", "WEBP")[i % 3]
            content = made(fmt, Image.new("RGB", (24, 16)), exif=bytes(changed))
            assert open_image(io.BytesIO(content)).size in ((24, 16), (16, 24)), (fmt, changed)


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Catches Ghostscript started on what came as photo.jpg."""
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/hit\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "photo.jpg").write_bytes(BAD_PICTURES["a program"])
    with refused("photo.jpg", tmp_path, "EPS is a program; save it as PNG"):
        open_image(tmp_path / "photo.jpg")
    assert not (tmp_path / "hit").exists()


def test_a_large_picture_is_held_in_memory_once(tmp_path):
    """Catches copies of copies: 49 million pixels of Pillow's 4 bytes are 196 MB."""
    rows = zlib.compressobj(1)
    packed = b"".join(rows.compress(bytes(21_001)) for _ in range(7000)) + rows.flush()
    path = tmp_path / "a.png"
    path.write_bytes(png(7000, 7000).replace(
        chunk(b"IDAT", zlib.compress(bytes(200))), chunk(b"IDAT", packed)))
    with harmless(tmp_path, seconds=9):
        assert open_image(path).size == (7000, 7000)


# --- packed pictures ---


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(header: str, data: bytes = b"") -> bytes:
    raw = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + data


def saved(array: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def packs(folder: Path) -> dict[str, bytes]:
    zipped = io.BytesIO()
    np.savez(zipped, np.zeros((2, 8, 8, 3), np.uint8))
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s, 8, 8, 3), }"
    return {
        "empty": b"", "text": b"a", "pickle": pickle.dumps(Bomb(folder / "hit")),
        "objects": saved(np.array([Bomb(folder / "hit")] * 2, object), allow_pickle=True),
        "zip": zipped.getvalue(), "too many": npy(shape % 10 ** 12),
        "no end": npy(shape % 10 ** 30), "fewer than none": npy(shape % -5),
        "cut": npy(shape % 3, bytes(100)),
        "words": npy("{'descr': '|u1', 'fortran_order': False, 'shape': ('a',), }"),
        "no bracket": npy("{'descr': '|u1', 'shape': (3, "),
        "code": npy("__import__('os').mkdir('hit')"), "nested": npy("(" * 9000 + ")" * 9000),
        "long": b"\x93NUMPY\2\0" + struct.pack("<I", 2 ** 32 - 1) + b"{",
        "one number": saved(np.uint8(3)), "floats": saved(np.zeros((2, 8, 8, 3))),
        "another size": saved(np.zeros((2, 9, 9, 3), np.uint8)),
        "in fortran's order": saved(np.zeros((2, 8, 8, 3), np.complex64)),
    }


@pytest.mark.parametrize("name", packs(Path()))
def test_hostile_packed_pictures_are_refused_by_name(name, tmp_path):
    """Catches pickled code in a .npy, a zip in its place, and a header that claims terabytes."""
    (tmp_path / "train.npy").write_bytes(packs(tmp_path)[name])
    with refused(tmp_path / "train.npy", tmp_path):
        Pictures(tmp_path, 8).get(["train.npy#0"])
    assert not (tmp_path / "hit").exists()


# --- names that leave the folder ---


@pytest.fixture
def shared(tmp_path) -> Path:
    """A data folder with a picture and a pack beside it, and links that lead there."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):
        (place / "a.png").write_bytes(png())
        np.save(place / "p.npy", np.zeros((2, 8, 8, 3), np.uint8))
    (folder / "out.png").symlink_to(tmp_path / "a.png")
    (folder / "out.npy").symlink_to(tmp_path / "p.npy")
    (folder / "away").symlink_to(tmp_path)
    (folder / "in.png").symlink_to("sub/a.png")
    (folder / "circle.png").symlink_to("circle.png")
    return folder


AWAY = ["../a.png", "sub/../../a.png", "{}/a.png", "../p.npy#0", "{}/p.npy#0", "/etc/passwd"]
NO_NAMES = [7, True, ["a.png"], {"a": 1}, None, "a\0.png", "x" * 300, "x/" * 1500, "\ud800.png", ""]


@pytest.mark.parametrize("name", [*AWAY, *NO_NAMES, "circle.png"], ids=lambda n: str(n)[:9])
def test_a_name_that_leaves_the_data_folder_is_refused(name, shared, tmp_path):
    """Catches a shared data set that reads, and shows a judge, what else lies on the machine."""
    name = name.format(tmp_path) if isinstance(name, str) else name
    with refused(shared, tmp_path, "leads out of its folder", "is no name of a file", "no picture"):
        Pictures(shared, 8).get([name])


def test_names_and_links_within_the_folder_are_good(shared, tmp_path):
    """Catches a guard that refuses what people have: subfolders, a link to the folder, links in it
    to where a large corpus is kept.
    """
    (tmp_path / "link").symlink_to(shared)
    names = ["a.png", "sub/a.png", "./a.png", "in.png", "p.npy#1", "sub/p.npy#0", "out.png",
             "out.npy#0", "away/a.png", "away/p.npy#1"]
    for folder in (shared, tmp_path / "link", os.path.relpath(shared)):
        assert Pictures(folder, 8).get(names).shape == (len(names), 3, 8, 8)


@pytest.mark.parametrize("row", ["-1", "2", "9" * 5000, "1.0", "", "x", "0x1", " 0"])
def test_a_row_that_a_pack_has_not_is_refused(row, shared, tmp_path):
    """Catches int()'s own error for 5,000 digits, and a negative row that reads the last one."""
    with refused(shared / "p.npy", tmp_path, "there is no"):
        Pictures(shared, 8).get([f"p.npy#{row}"])


# --- tars ---


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None,
           link: str = "", **pax: str) -> bytes:
    """A member as it stands in a tar; its size may be a lie."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content) if size is None else size, kind, link
    info.pax_headers = {k.replace("_", "."): v for k, v in pax.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)


def sparse(name: str) -> bytes:
    """A member of no bytes that claims to be 300 GB of zeros."""
    return member(name, b"0\n".ljust(512, b"\0"), GNU_sparse_major="1", GNU_sparse_minor="0",
                  GNU_sparse_name=name, GNU_sparse_realsize=str(3 * 10 ** 11))


END = bytes(1024)
PAIRS = b"".join(member(f"train/cat/{i}.png", png()) + member(f"train/cat/{i}.txt", b"A text.")
                 for i in range(2))
HELD = member("test/cat/0.png", png()) + member("test/cat/0.txt", b"A text.")
TARS = {
    "up": member("../../up.png", png()) + member("../../up.txt", b"A text."),
    "absolute": member("/tmp/up.png", png()) + member("/tmp/up.txt", b"A text."),
    "link": member("train/cat/l.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
    + member("train/cat/l.txt", b"A text."),
    "hard link": member("train/cat/h.png", kind=tarfile.LNKTYPE, link="../../etc/passwd"),
    "device": member("train/cat/d.png", kind=tarfile.CHRTYPE),
    "pipe": member("train/cat/f.png", kind=tarfile.FIFOTYPE),
    "sparse": sparse("train/cat/s.png") + member("train/cat/s.txt", b"A text."),
    "sparse text": member("train/cat/s.png", png()) + sparse("train/cat/s.txt"),
    "lines in a name": member("train/cat/a\nb\x1b[31m.png", png())
    + member("train/cat/a\nb\x1b[31m.txt", b"A text."),
    "half a character": member("train/cat/\udcff.png", png())
    + member("train/cat/\udcff.txt", b"A text."),
    "a tar in a tar": member("train/cat/t.png", PAIRS + END)
    + member("train/cat/t.txt", b"A text."),
    "wrong json": member("train/cat/j.png", png()) + member("train/cat/j.txt", b"A text.")
    + member("train/cat/j.json", b'{"objects": 7, "a": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "objects": member("train/cat/j.png", png()) + member("train/cat/j.txt", b"A text.")
    + member("train/cat/j.json", b'{"objects": [7], "id": [1]}'),
}
BREAKS = {
    "too large": member("train/cat/g.png", size=10 ** 11),
    "header before header": b"".join(
        member("x", b"9 a=bcd\n\n", kind=tarfile.XHDTYPE) for _ in range(3000)),
    "junk": b"\xff" * 700, "sparse map of words": member(
        "train/cat/s.png", b"no number\n" * 60, GNU_sparse_major="1", GNU_sparse_minor="0",
        GNU_sparse_name="x", GNU_sparse_realsize="9"),
}


@pytest.mark.parametrize("packing", ["plain", "gz"])
@pytest.mark.parametrize("name", [*TARS, *BREAKS])
def test_a_hostile_shard_gives_its_good_samples_and_counts_the_rest(name, packing, tmp_path):
    """Catches a name that leaves the folder of whoever unpacks what is kept, links followed, a
    member of 300 GB read, tarfile's own errors, and a line of refused.txt that is two.
    """
    content = PAIRS + (TARS | BREAKS)[name] + HELD + END
    shards, kept = tmp_path / "in", tmp_path / "kept"
    shards.mkdir()
    (shards / "0.tar").write_bytes(gzip.compress(content) if packing == "gz" else content)
    cfg = webdata.Config(str(shards), write_shards=str(kept), min_bytes=0)
    with harmless(tmp_path):
        counts = webdata.main(cfg)
    silent = name in ("hard link", "device", "pipe")                 # no part of any sample
    n = 1 if name in BREAKS else 3  # the last one before a break may lack its end
    assert counts["kept"] == n and counts["refused"] == (not silent)
    assert len((kept / "refused.txt").read_text().splitlines()) == (not silent)
    with tarfile.open(kept / "00000.tar") as archive:
        assert all(m.isfile() and m.name.startswith(("train/", "test/")) for m in archive)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "kept"]


def test_a_gz_bomb_in_a_shard_is_passed_over(tmp_path):
    """Catches megabytes of zeros read into memory because a hundredth of them lies on the disk."""
    n = 512 * 100_000
    with gzip.open(tmp_path / "0.tar", "wb", 1) as f:
        f.write(member("b.png", png()) + member("b.txt", size=n))
        for _ in range(100):
            f.write(bytes(n // 100))
        f.write(PAIRS + END)
    skipped = Counter()
    with harmless(tmp_path, megabytes=40):
        assert len(list(read_shard(tmp_path / "0.tar", skipped))) == 2
    assert skipped == {"part too large": 1}


@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "\ud800"])
def test_a_key_that_steers_a_terminal_is_not_written(key, tmp_path):
    """Catches shards that pass on what ours refuse to read."""
    with pytest.raises(ValueError, match="cannot be read back"):
        write_shards(tmp_path, [Sample(key, png(), "png", "x")])


@pytest.mark.parametrize("name", [*TARS, *BREAKS])
@pytest.mark.parametrize("reader", ["cifar10", "nlvr"])
def test_a_hostile_archive_of_pictures_is_read_or_refused_by_name(name, reader, tmp_path):
    """Catches links followed out of an archive, and errors of tarfile, zlib or lzma by the dozen.
    """
    path = tmp_path / "a.tar"
    path.write_bytes(PAIRS + (TARS | BREAKS)[name] + HELD + END)
    with harmless(tmp_path):
        try:
            if reader == "cifar10":
                found = cifar10.read_splits(cifar10.Config(str(path), image_size=8), Counter())
                assert len(found["train"]) in (2, 3) and len(found["test"]) == 1
            else:
                read = nlvr.open_corpus(str(path))
                assert read("train/cat/0.png") == png()
                for wanted in ("train/cat/s.png", "train/cat/l.png", "../../up.png", "/tmp/up.png"):
                    try:
                        assert len(read(wanted)) < 1000
                    except (ValueError, FileNotFoundError) as error:
                        assert str(path) in str(error)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


# --- text and JSON ---

GARBAGE = {
    "empty": b"", "nul": b"\0" * 9, "another encoding": b'{"id": "caf\xe9"}', "cut": b'{"id": "a',
    "deep": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "bare": b"NaN",
    "5,000 digits": b'{"id": ' + b"9" * 5000 + b"}", "a number": b"7", "null": b"null",
    "text": b'"id"', "lone returns": b'{"id": "a"}\r{"id": "b"}\r', "binary": bytes(range(256)),
    "utf-16": '{"id": "a"}'.encode("utf-16"), "one long line": b"x" * 5_000_000, "list": b"[[1]]",
}


def published(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


READERS = {  # (folder, content) -> what is read; the file is the folder's only one
    "load_records": lambda f, c: (published(f, "a.jsonl", c), load_records(f, "a", ("image",))),
    "load_meta": lambda f, c: (published(f, "meta.json", c), load_meta(f)),
    "load_pairs": lambda f, c: (published(f, "a.jsonl", c), load_pairs(f, "a")),
    "load_rankings": lambda f, c: (published(f, "a.jsonl", c), load_rankings(f, "a")),
    "llava": lambda f, c: llava.read_dialogues(str(published(f, "a.json", c))) or 1 / 0,
    "coco": lambda f, c: coco.read_json(
        str(published(f, "a.json", c)), Counter(), images=coco.picture_in),
    "read_ranked": lambda f, c: layouts.read_ranked(published(f, "a.jsonl", c), Counter()),
    "journal": lambda f, c: teachers.journal(published(f, "a.jsonl", c + b"\n"), {"teacher": "x"}),
    "answers": lambda f, c: evaluate.read_answers(SimpleNamespace(
        against=str(published(f, "eval.answers.jsonl", c).parent), questions="eval")),
    "log of a run": lambda f, c: evaluate.last_row(published(f, "metrics.csv", c)),
    "tokenizer": lambda f, c: Tokenizer.load(published(f, "a.tiktoken", c)),
}
NOTHING = {("read_ranked", "empty"), ("answers", "empty"),           # no line is no wrong line
           ("llava", "list")}                                        # its records are counted


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_data_is_refused_by_name(reader, tmp_path):
    """Catches RecursionError, UnicodeDecodeError without a name, and int()'s limit on digits."""
    for i, (name, content) in enumerate(GARBAGE.items()):
        if (reader, name) not in NOTHING:
            folder = tmp_path / f"{i}"
            folder.mkdir()
            with refused(folder, tmp_path):
                READERS[reader](folder, content)


def wrongs(good, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """Every way to put something of another type in one place of a JSON value."""
    if path:
        for bad in (None, 7, 0, -1, True, "x", "", [], {}, [None], {"a": 1}, float("nan"), 1e999,
                    10 ** 400, "\ud800\x1b[2J", [[[]]]):
            yield path, bad
    items = good.items() if isinstance(good, dict) else enumerate(good) if isinstance(
        good, list) else ()
    for key, value in items:
        yield from wrongs(value, (*path, key))


def spoiled(good, path: tuple, bad):
    """A copy of a JSON value with one place changed."""
    out = copy.deepcopy(good)
    at = out
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = bad
    return out


RECORD = {
    "id": "a", "image": "a.png", "captions": ["A dog."], "border": "", "text": "Dogs.", "objects": [
        {"name": "dog", "attributes": {"color": "red", "size": "small"}, "box": [0, 0, 0.5, 1],
         "place": "left", "hidden": False}],
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A"}],
}


def use_record(folder: Path) -> None:
    """What training, the data engine and measuring do with a record."""
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)})
    [record] = load_records(folder, "train", ("image", "captions", "conversations", "text"))
    tokenizer.encode(record["text"])
    render_records([record], tokenizer, 4)
    things_of(record)
    record_as_text(record, boxes=True)
    Pictures(folder, 8).get([record["image"]])
    list(faults("conversation", [("What?", "A red dog.")], record, {"dog": "dog"}, 9))


def test_a_record_with_anything_anywhere_is_read_or_refused_by_name(tmp_path):
    """Catches TypeError, AttributeError and KeyError for a value of another type at any key."""
    (tmp_path / "a.png").write_bytes(png())
    good = published(tmp_path, "train.jsonl", json.dumps(RECORD).encode())
    use_record(tmp_path)
    refusals = 0
    with harmless(tmp_path, seconds=9):
        for path, bad in wrongs(RECORD):
            good.write_text(json.dumps(spoiled(RECORD, path, bad)))
            try:
                use_record(tmp_path)
            except (ValueError, FileNotFoundError) as error:
                refusals += 1
                named = any(n in str(error) for n in (str(tmp_path), "record"))
                assert named and len(str(error).splitlines()) == 1, (path, bad, str(error))
    assert refusals > 200


META = {"name": "mine", "image_size": 8, "phrases": {"dog": "dog"}, "prompts": {"dog": ["A dog."]},
        "chance": {"exist": 0.5}}


def test_a_meta_with_anything_anywhere_is_read_or_refused_by_name(tmp_path):
    """Catches an image_size of a billion, which would be allocated squared, and True taken for 1.
    """
    path = tmp_path / "meta.json"
    for at, bad in [*wrongs(META), (("image_size",), 10 ** 9), (("image_size",), 0)]:
        path.write_text(json.dumps(spoiled(META, at, bad)))
        try:
            meta = load_meta(tmp_path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        assert 0 < meta["image_size"] < 10_000 and type(meta["image_size"]) is int
        assert all(type(meta.get(key, {})) is dict for key in ("phrases", "prompts", "chance"))


def test_published_files_with_anything_anywhere_are_read_counted_or_refused_by_name(
    tmp_path, monkeypatch
):
    """Catches COCO's and LLaVA's readers stopped with a traceback by one entry among 600,000."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png())
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(4)]
    docs = {
        "captions": {"images": images, "annotations": [
            {"id": i, "image_id": i, "caption": "A dog."} for i in range(4)]},
        "instances": {"annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [
            0, 0, 4, 4], "iscrowd": 0}], "categories": [{"id": 1, "name": "dog"}]},
        "karpathy": {"images": [{"cocoid": i, "split": "val" if i % 2 else "train"}
                                for i in range(4)]},
        "source": [dict(RECORD, image=f"{i}.png") for i in range(4)],
    }
    monkeypatch.setattr(coco, "write_folder", lambda *_: None)
    monkeypatch.setattr(llava, "write_folder", lambda *_: Path(cfg.out).mkdir(exist_ok=True))
    same = {"images": str(tmp_path), "out": f"{tmp_path}/out", "image_size": 8, "val_every": 2,
            "fit": "stretch"}
    paths = {name: str(tmp_path / f"{name}.json") for name in docs}
    for name, doc in docs.items():
        Path(paths[name]).write_text(json.dumps(doc))
    others = {name: path for name, path in paths.items() if name != "source"}
    runs = {name: (coco.main, coco.Config(**others, **same)) for name in others}
    runs["source"] = llava.main, llava.Config(paths["source"], **same)
    with harmless(tmp_path, seconds=20):
        for name, (main, cfg) in runs.items():
            main(cfg)
            whole = docs[name]
            first = (key for key in wrongs(whole) if not any(
                isinstance(k, int) and k > 0 for k in key[0][:2]))   # one entry of each list
            for at, bad in first:
                Path(paths[name]).write_text(json.dumps(spoiled(whole, at, bad)))
                try:
                    main(cfg)
                except (ValueError, OSError) as error:
                    said = str(error)
                    assert len(said.splitlines()) == 1, (name, at, bad, said)
                    assert paths[name] in said or "no usable" in said, (name, at, bad, said)
            Path(paths[name]).write_text(json.dumps(whole))


@pytest.mark.parametrize("name", ["../0.png", "{}/0.png", "a/../../0.png", "a\0b", "x" * 300])
def test_published_names_that_leave_the_folder_are_counted(name, tmp_path, monkeypatch):
    """Catches pictures of the machine packed into a data set because a JSON file says so."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png())
    (tmp_path / "0.png").write_bytes(png())
    wanted = [*(f"{i}.png" for i in range(4)), name.format(tmp_path)]
    doc = {"images": [{"id": i, "file_name": n} for i, n in enumerate(wanted)], "annotations": [
        {"id": i, "image_id": i, "caption": "A dog."} for i in range(5)]}
    (tmp_path / "c.json").write_text(json.dumps(doc))
    (tmp_path / "l.json").write_text(json.dumps([dict(RECORD, id=n, image=n) for n in wanted]))
    same = {"images": str(folder), "out": f"{tmp_path}/out", "image_size": 8, "val_every": 2,
            "vocab_size": 263}
    with harmless(tmp_path):
        assert coco.main(coco.Config(f"{tmp_path}/c.json", **same))["skipped"] == 1
        assert llava.main(llava.Config(f"{tmp_path}/l.json", **same))["skipped"] == 1


def test_two_records_of_one_id_are_refused_where_replies_are_kept_by_it(tmp_path):
    """Catches one picture's paid reply written under another's name."""
    lines = b'{"id": "a", "image": "0"}\n{"id": "b", "image": "1"}\n{"id": "a", "image": "2"}\n'
    path = published(tmp_path, "train.jsonl", lines)
    assert len(load_records(tmp_path, "train")) == 3
    with refused(f"{path}:3", tmp_path, "has the id 'a' of an earlier line"):
        load_records(tmp_path, "train", unique=True)
    meta = published(tmp_path, "meta.json", json.dumps(META).encode())
    with refused("train.jsonl:3", tmp_path):
        instruct.main(instruct.Config(data=str(tmp_path)))
    questions = b'{"id": "q", "image": "0", "question": "What?", "kind": "x"}\n' * 2
    published(tmp_path, "prompts.jsonl", questions)
    with refused("prompts.jsonl:2", tmp_path):
        preferences.main(preferences.Config(data=str(meta.parent), run="none"))


def test_answers_that_are_no_text_are_refused_before_they_are_rated(tmp_path):
    """Catches a rater stopped with a traceback by a file of answers that somebody else made."""
    published(tmp_path, "a_val.jsonl", b'{"id": "b", "responses": ["A.", "B."]}')
    for wrong in (b"[1, 2]", b'["A.", null]', b'{"a": 1}', b'"AB"'):
        path = published(tmp_path, "a.jsonl", b'{"id": "a", "responses": %s}' % wrong)
        with refused(path, tmp_path):
            pool.answered([{"id": "a"}], path)


@pytest.mark.parametrize("value", ["1e999", "NaN", "null", "[]", '"7"', "9" * 5000, "{}"])
@pytest.mark.parametrize("key", ["y_loc", "x_loc", "size"])
def test_a_line_of_nlvr_with_a_wrong_number_is_malformed(key, value):
    """Catches OverflowError: int() of what JSON reads as infinite."""
    thing = {"y_loc": 1, "x_loc": 1, "size": 20, "color": "Yellow", "type": "circle"}
    line = json.dumps({
        "sentence": "A circle.", "label": "true", "identifier": "1-0", "directory": "1",
        "structured_rep": [[thing], [], []]})
    assert nlvr.scene_of("dev", line).label
    old = f'"{key}": {thing[key]}'
    assert old in line
    spoilt = line.replace(old, f'"{key}": {value}')
    if (key, value) in (("y_loc", '"7"'), ("x_loc", '"7"')):         # a number all the same
        assert nlvr.scene_of("dev", spoilt)
    else:
        with pytest.raises(ValueError, match="malformed line|unknown shape, color or size"):
            nlvr.scene_of("dev", spoilt)


# --- tokenizers ---

BYTES = Tokenizer({bytes([i]): i for i in range(256)})
LINES = BYTES.to_text().splitlines()[1:]


def with_pattern(pattern: str) -> str:
    return "\n".join([f"# {pattern}", *LINES])


BAD_TOKENIZERS = {
    "goes back and forth": with_pattern(r"(a+)+$|(?=x)(y*)*z"), "no pattern": with_pattern("((("),
    "fits nothing": with_pattern(""), "loses text": with_pattern(r"\w+"),
    "a rank of 5,000 digits": "\n".join([*LINES, "YWI= " + "9" * 5000]),
    "a rank far away": "\n".join([*LINES, "YWI= 999999999999"]),
    "a negative rank": "\n".join([*LINES, "YWI= -1"]),
    "a rank twice": "\n".join([*LINES, "YWI= 255"]),
    "three columns": "\n".join([*LINES, "YWI= 256 x"]),
    "half a character": "\n".join([*LINES, "\ud800 256"]),
    "merges of nothing": "#version: 0.2\nx\n \n", "merges twice": "#version: 0.2\nh e\nh e\n",
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_a_hostile_tokenizer_is_refused_by_name(name, tmp_path):
    """Catches a split that hangs, loses text in silence, or makes tiktoken's Rust panic."""
    with refused("a.tiktoken", tmp_path):
        Tokenizer.from_text(BAD_TOKENIZERS[name], "a.tiktoken")


def test_both_patterns_that_our_files_may_name_are_read(tmp_path):
    """Catches a guard that refuses our own checkpoints, old or new; a byte order mark is no fault.
    """
    for pattern in (PATTERN, GPT2_PATTERN):
        (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + with_pattern(pattern).encode())
        assert Tokenizer.load(tmp_path / "a").pattern == pattern


# --- checkpoints ---


@pytest.fixture
def ckpt(tmp_path, vlm) -> Path:
    """A good checkpoint of a tiny VLM."""
    configs = {"model": dataclasses.asdict(vlm.config), "tokenizer": BYTES.identity}
    checkpoint.save([tmp_path / "ckpt.pt"], stage="sft", configs=configs, model=vlm,
                    tokenizer=BYTES, step=1, best=0.5)
    return tmp_path / "ckpt.pt"


def load_all(path: Path) -> tuple[VLM, Tokenizer]:
    state = checkpoint.load(path, ("sft",))
    return vlm_from(state), Tokenizer.from_text(state["tokenizer"])


NO_SUCH_MODEL = "describes no model|do not fit|expected a whole number in [01] .. "


def test_sizes_that_no_weights_have_are_refused_before_memory_is_taken(ckpt, tmp_path):
    """Catches a width of a billion allocated, a million layers built, a torch traceback of 100
    lines: every number and word of the description in turn.
    """
    state = checkpoint.load(ckpt, ("sft",))
    model = state["configs"]["model"]
    places = [(k,) for k in model] + [(t, k) for t in ("vit", "gpt") for k in model[t]]
    n = 0
    with harmless(tmp_path, seconds=20):
        vlm_from(state)
        for at in places:
            for bad in (None, "32", "x", -1, 0, 1.5, True, [], {}, 10 ** 5, 10 ** 9, 10 ** 30):
                changed = state | {"configs": {"model": spoiled(model, at, bad)}}
                if at[-1] in ("prefix_lm", "dropout", "rotary_base"):  # of no size
                    continue
                if at[-1] == "image_id" and bad == 0 or (at[-1], bad) == ("feature_layer", -1):
                    continue                                         # another model, but one
                good = functools.reduce(operator.getitem, at, model)
                if type(good) is type(bad) and good == bad:
                    continue                                         # the same model
                with pytest.raises(ValueError, match=NO_SUCH_MODEL) as caught:
                    vlm_from(changed)
                n, said = n + 1, str(caught.value)
                assert str(ckpt) in said and len(said) < 400
                if at[-1] in ("n_embd", "block_size", "vocab_size"):  # built, on no device
                    assert bad != 10 ** 5 or "do not fit" in said
                    assert bad not in (-1, 0) or "expected a whole number in 1 .. " in said
        for key in places:
            changed = copy.deepcopy(model)
            (changed if len(key) == 1 else changed[key[0]]).pop(key[-1])
            try:  # a default takes its place
                vlm_from(state | {"configs": {"model": changed}})
            except ValueError as error:
                assert str(ckpt) in str(error)
    assert n > 150


@pytest.mark.parametrize("config", [ViTConfig(), GPTConfig(), CLIPConfig()])
def test_every_size_of_a_config_is_checked(config):
    """Catches a size of a config that the check does not know, also with CLIP's prefix text_."""
    check_sizes(dataclasses.asdict(config), "a.pt")
    sizes = [field for field in dataclasses.fields(config)
             if field.type is int and field.name != "feature_layer"]  # that one counts from the end
    assert len(sizes) >= 5
    for field in sizes:
        most = 1000 if field.name.endswith("n_layer") else 10_000_000
        least = 0 if field.name.removeprefix("text_") in OPTIONAL_SIZES else 1
        expected = rf"^a\.pt: {field.name} is .*{least} \.\. {most:,}$"
        for bad in (least - 1, -1, most + 1, 1.0, True, "8", None, [8]):
            with pytest.raises(ValueError, match=expected):
                check_sizes({field.name: bad}, "a.pt")
            with pytest.raises(ValueError, match=rf"^a\.pt: {field.name} is "):
                check_sizes({"vit": {}, "gpt": {field.name: bad}}, "a.pt")
        check_sizes({field.name: most}, "a.pt")


def test_a_config_of_a_thousand_layers_of_dicts_is_no_recursion(ckpt, tmp_path):
    """Catches a RecursionError out of a check that follows a forged config downwards."""
    state = checkpoint.load(ckpt, ("sft",))
    nested: dict = {}
    for _ in range(10_000):
        nested = {"vit": nested}
    with pytest.raises(ValueError, match=NO_SUCH_MODEL) as caught:
        vlm_from(state | {"configs": {"model": nested}})
    assert str(ckpt) in str(caught.value)


def without(d: dict, key: str) -> dict:
    return {k: v for k, v in d.items() if k != key}


HEAD = "gpt.norm.weight"
BAD_STATES = {
    **{f"no {k}": lambda s, k=k: without(s, k) for k in checkpoint.HOLDS},
    **{f"{k} of another type": lambda s, k=k: s | {k: [1]} for k in checkpoint.HOLDS},
    "stage of another type": lambda s: s | {"stage": [1]},
    "no stage": lambda s: without(s, "stage"),
    "a weight missing": lambda s: s | {"model": without(s["model"], HEAD)},
    "a weight too many": lambda s: s | {"model": s["model"] | {"x" * 999: torch.zeros(1)}},
    "a weight of another shape": lambda s: s | {"model": s["model"] | {HEAD: torch.zeros(7)}},
    "a weight that is none": lambda s: s | {"model": s["model"] | {HEAD: "x"}},
    "a weight of holes": lambda s: s | {"model": s["model"] | {
        HEAD: torch.zeros(10 ** 6, 10 ** 6, layout=torch.sparse_coo)}},
    "half an adapter": lambda s: s | {"model": s["model"] | {"gpt.x.lora_A": torch.zeros(2, 2)}},
    "no model described": lambda s: s | {"configs": {}},
    "a tokenizer of garbage": lambda s: s | {"tokenizer": "x y z"},
    "another's pattern": lambda s: s | {"tokenizer": with_pattern("(a+)+$")},
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_checkpoint_that_does_not_fit_itself_is_one_clear_line(name, ckpt, tmp_path):
    """Catches KeyError, and torch's list of every missing key, out of an otherwise good file."""
    torch.save(BAD_STATES[name](torch.load(ckpt, weights_only=True)), ckpt)
    with refused("tokenizer" if "okenizer" in name or "pattern" in name else ckpt, tmp_path):
        load_all(ckpt)


def test_weights_that_are_one_number_again_and_again_are_refused(ckpt, tmp_path):
    """Catches a small file whose description and weights agree on a model of terabytes."""
    state = torch.load(ckpt, weights_only=True)
    large = {k: torch.zeros(1).expand(10 ** 5, 10 ** 5) for k in state["model"]}
    torch.save(state | {"model": large}, ckpt)
    with refused(ckpt, tmp_path, "weights larger than the file"):
        load_all(ckpt)


@pytest.mark.parametrize("place", ["rng", "configs", "model", "tokenizer", "step", "more"])
def test_code_anywhere_in_a_checkpoint_is_not_run(place, ckpt, tmp_path):
    """Catches weights_only=False: the good keys are all there, and one holds a program."""
    state = torch.load(ckpt, weights_only=True)
    bomb = Bomb(tmp_path / "hit")
    inside = {"rng": {"torch": bomb}, "configs": state["configs"] | {"lr": bomb},
              "model": state["model"] | {HEAD: bomb}}.get(place, bomb)
    torch.save(state | {place: inside}, ckpt)
    with refused(ckpt, tmp_path, "holds more than tensors and plain types"):
        load_all(ckpt)
    assert not (tmp_path / "hit").exists()


def test_a_checkpoint_that_grows_when_unpacked_is_refused(ckpt, tmp_path):
    """Catches gigabytes of zeros out of a small file: torch itself never packs."""
    small = tmp_path / "small.pt"
    with zipfile.ZipFile(ckpt) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            new.writestr(part, old.read(part) if "data/" not in part else bytes(1_000_000))
    with refused(small, tmp_path, "grows when unpacked"):
        load_all(small)


# --- what others say, and what is shown of it ---


@pytest.mark.parametrize("text", [
    "", "[", "[" * 100_000, "[1]", "[{}]", "{}", "[[]]", "null", "[null]", "]" * 9 + "[" * 9,
    '[{"helpfulness": NaN, "faithfulness": 5, "ethics": 5}]',
    '[{"helpfulness": 1e999, "faithfulness": 5, "ethics": 5}]',
    '[{"helpfulness": %s, "faithfulness": 5, "ethics": 5}]' % ("9" * 5000),
    '[{"helpfulness": true, "faithfulness": 5, "ethics": 5}]', "[" + "1," * 99_999 + "1]",
])
def test_an_absurd_judgment_is_refused(text, tmp_path):
    """Catches a crash in the middle of a paid run: a judge may say anything."""
    with harmless(tmp_path), pytest.raises(ValueError):
        judge.parse(text, 1)


@pytest.mark.parametrize("text", [
    "", "Question:\n" * 50_000, "=" * 200_000, "===\n" * 50_000, "===" + " " * 200_000 + "x",
    "Question:\nWhat?\n===\nAnswer:\n" + "the dog is left of the " * 20_000,
    "Question:\nWhat?\n===\nAnswer:\n" + "[" + " " * 200_000 + "0",
    "Question:\nWhat?\n===\nAnswer:\n" + "there are two a" + "-a" * 100_000,
    "Question:\nWhat?\n===\nAnswer:\n\x1b[2J\0\ud800 and the " + "x" * 200_000,
])
@pytest.mark.parametrize("kind", ["conversation", "detail", "reasoning"])
def test_an_absurd_dialogue_is_read_or_rejected_in_no_time(kind, text, tmp_path):
    """Catches expressions that go back and forth over a long reply for minutes."""
    with harmless(tmp_path):
        try:
            for reason in faults(kind, parse(kind, text), RECORD, {"dog": "dog"}, 150):
                raise ValueError(reason)
        except ValueError as error:
            assert len(str(error)) < 40


@pytest.mark.parametrize("usage", [
    None, SimpleNamespace(), SimpleNamespace(prompt_tokens=None, completion_tokens="3"),
    SimpleNamespace(prompt_tokens=-1, completion_tokens=float("nan")),
    SimpleNamespace(prompt_tokens=10 ** 30, completion_tokens=True),
])
def test_an_absurd_bill_costs_no_reply(usage):
    """Catches a paid reply lost, or a sum of tokens that stops the run at its end."""
    choice = SimpleNamespace(message=SimpleNamespace(content="A dog."), finish_reason="stop")
    reply = teachers.OpenAITeacher._read(SimpleNamespace(choices=[choice], usage=usage))
    assert (reply.text, reply.tokens) == ("A dog.", (0, 0))


REPLY = {"key": "a", "kind": "detail", "raw": "x", "error": "", "cut": False, "tokens": [1, 2]}


def test_a_journal_with_anything_anywhere_is_refused_before_a_run_goes_on(tmp_path):
    """Catches a KeyError after thousands of replies were paid for."""
    path, header = tmp_path / "a.raw.jsonl", {"teacher": "x"}
    for at, bad in wrongs(REPLY):
        path.write_text("\n".join(map(json.dumps, (header, REPLY, spoiled(REPLY, at, bad)))) + "\n")
        try:
            for line in teachers.journal(path, header).values():
                assert sum(line["tokens"]) < 10 ** 301 and line["raw"] + line["error"] is not None
        except ValueError as error:
            assert str(path) in str(error) and "--fresh" in str(error)


STEERING = "\x1b[2J\x1b]0;owned\x07 red\r\x08\x9b31m\u202egnp\x00"


def test_what_steers_a_terminal_is_spelled_out():
    """Catches escapes passed on, and text of any language, marks and emoji spelled out with them.
    """
    shown = printable(STEERING)
    assert not any(ord(c) < 32 or 0x7f <= ord(c) < 0xa0 or c == "\u202e" for c in shown)
    assert shown.startswith(r"\x1b[2J\x1b]0;owned\x07 red\r\x08\x9b31m\u202egnp\x00")
    fine = "Ünïcödé 日本語 שלום 👩‍👩‍👧\tand a\nline"
    assert printable(fine) == fine and printable("a\nb", keep="") == r"a\nb"


def test_an_answer_that_steers_the_terminal_is_shown_and_not_obeyed(
    ckpt, monkeypatch, capsys
):
    """Catches a model, trained on anybody's texts, that clears the screen or renames the window."""
    written = BYTES.encode(STEERING)
    monkeypatch.setattr(chatbot, "stream", lambda *_, **__: ([i] for i in written))
    chat.main(chat.Config(run=str(ckpt), ask="What?"))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x9b" not in out and r"\x1b[2J" in out and "owned" in out


# --- through the command line ---


@pytest.mark.parametrize("module, make", [
    (chat, lambda f: ["--run", str(f / "ckpt.pt"), "--ask", "?", "--image", f"{f}/\x1b[2J.png"]),
    (llava, lambda f: ["--source", str(published(f, "a.json", b"[" * 99_999))]),
    (cifar10, lambda f: ["--source", str(published(f, "a.tar", BREAKS["junk"]))]),
    (evaluate, lambda f: ["--run", str(f / "ckpt.pt"), "--data", str(published(
        f, "meta.json", b'{"name": "x", "image_size": 1e999}').parent)]),
])
def test_a_command_ends_with_one_line_and_code_2(module, make, ckpt, monkeypatch, capsys):
    """Catches a traceback, and a file's name that steers the terminal in the error about it."""
    monkeypatch.setattr(sys, "argv", ["it.py", *make(ckpt.parent)])
    with harmless(ckpt.parent), pytest.raises(SystemExit) as stop:
        cli(module.main, module.Config)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith("it.py: error: ")
    assert str(ckpt.parent) in said and "\x1b" not in said and "Traceback" not in said
