"""Pictures: any file people have -> RGB -> square -> normalized tensor.

A record names its picture by file, or by its place in a packed array of one size: "train.npy#17" is
row 17 of train.npy, (n, S, S, 3) uint8. Used by: every script that sees; chat.py for a single file.
"""

import io
import textwrap
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from minivlm.running.files import first_line, inside

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, openai/CLIP clip/clip.py
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 50_000_000  # a larger picture is a mistake or an attack
PROGRAMS = ("EPS", "WMF")  # no pixels but orders: Pillow would run Ghostscript, or Windows, on them


def open_image(source: str | Path | io.BytesIO) -> Image.Image:
    """Open any picture as RGB: first frame, upright, transparency on white, 16 bits scaled to 8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture, a program that draws one, damaged, of an unknown mode, or
            has over 50 million pixels.
    """
    name = source if isinstance(source, (str, Path)) else "picture"
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise FileNotFoundError(f"no picture at {source}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if image.format in PROGRAMS:
            raise ValueError(f"{image.format} is a program; save it as PNG")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except (
        OSError, SyntaxError, EOFError, ValueError, RuntimeError, ArithmeticError,
    ) as error:  # Pillow's decoders have no one kind of error
        raise ValueError(f"{name} is no readable picture ({first_line(error)})") from None
    if image.mode.startswith("I"):  # 16-bit gray, as PNG and TIFF have it
        gray = np.asarray(image, dtype=np.int64).clip(0, 65535) // 257
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError(
            f"{name} has floating-point pixels (mode F); save it with 8 or 16 bits a channel"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(image: Image.Image, size: int, mode: str = "crop") -> Image.Image:
    """Make a picture `size` x `size` pixels.

    "crop" scales the short side and cuts the middle (CLIP); "pad" adds bars of the mean color
    (LLaVA-1.5, which saw fewer hallucinations so); "stretch" distorts.

    Raises:
        ValueError: for another mode.
    """
    if mode == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if mode == "pad":
        color = tuple(int(255 * m) for m in MEAN)
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=color)
    if mode == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    raise ValueError(f"mode {mode!r} is not one of crop, pad, stretch")


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(..., S, S, 3) uint8 -> (..., 3, S, S) float32, normalized by CLIP's mean and deviation."""
    x = torch.from_numpy(np.array(pixels)).float()
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x.mul_(1 / (255 * std)).sub_(mean / std)  # (x / 255 - mean) / std, in place
    return x.movedim(-1, -3).contiguous()


def augment(images: Tensor, shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Move each picture by up to `shift` pixels both ways, mirror it at a chance of one half.

    What moves in at a border is the picture's own mirror image. Not for pictures whose captions
    tell left from right.

    Args:
        images: (n, 3, S, S).
        shift: in pixels, 0 .. S - 1.

    Returns:
        (n, 3, S, S).

    Raises:
        ValueError: if the shift is not smaller than the picture.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2 (4 pixels and a flip, for CIFAR-10).
    """
    n, _, S, _ = images.shape
    if shift >= S:
        raise ValueError(f"shift {shift} leaves nothing of pictures of {S} pixels")
    dy, dx = torch.randint(2 * shift + 1, (2, n, 1), generator=generator)
    rows, columns = torch.arange(S) + dy, torch.arange(S) + dx       # (n, S)
    if mirror:
        flip = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    wide = F.pad(images, (shift,) * 4, mode="reflect")               # (n, 3, S + 2 shift, ...)
    at = torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]
    return wide.movedim(1, -1)[at].movedim(-1, 1).contiguous()


class Pictures:
    """The pictures of a data folder, packed or as files, at one size.

    Args:
        folder: the data folder; names are relative to it.
        size: S in pixels.
        mode: how a file is brought to that size, see `fit`.
    """

    def __init__(self, folder: str | Path, size: int, mode: str = "crop"):
        self.folder, self.size, self.mode = Path(folder), size, mode
        self.packs: dict[str, np.ndarray] = {}

    def get(self, names: list[str]) -> Tensor:
        """Load pictures by name, as models take them: (n, 3, S, S); see `pixels`."""
        return to_tensor(self.pixels(names))

    def pixels(self, names: list[str]) -> np.ndarray:
        """Load pictures by name: (n, S, S, 3) uint8.

        Raises:
            FileNotFoundError, ValueError: as `open_image`; for a name that leads out of the folder,
                a file of packed pictures that holds something else, or pictures of another size.
        """
        out = np.empty((len(names), self.size, self.size, 3), dtype=np.uint8)
        for i, name in enumerate(names):
            pack, packed, row = str(name).partition(".npy#")
            if not packed:
                path = inside(self.folder, name)
                out[i] = np.asarray(fit(open_image(path), self.size, self.mode))
                continue
            if pack not in self.packs:
                self.packs[pack] = self._open(f"{pack}.npy")
            whole = row.isdecimal() and len(row) < 19  # int() refuses 5,000 digits otherwise
            if not whole or int(row) >= len(self.packs[pack]):
                raise ValueError(
                    f"{self.folder / pack}.npy holds pictures 0 .. {len(self.packs[pack]) - 1}, "
                    f"there is no {row[:19]!r}"
                )
            out[i] = self.packs[pack][int(row)]
        return out

    def _open(self, pack: str) -> np.ndarray:
        path = inside(self.folder, pack)
        if not path.is_file():
            raise FileNotFoundError(
                f"no packed pictures at {path}; run the data set's prepare.py again"
            )
        try:
            with path.open("rb") as f:  # a later version's head may claim 4 GB
                if f.read(8) != b"\x93NUMPY\x01\x00":
                    raise ValueError("it is no .npy file of version 1.0")
            pixels = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError, TypeError, ArithmeticError) as error:
            raise ValueError(f"{path} holds no packed pictures ({first_line(error)})") from None
        if pixels.shape[1:] != (self.size, self.size, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"{path} holds pictures {pixels.shape[1:]} of {pixels.dtype}, "
                             f"the model takes ({self.size}, {self.size}, 3) of uint8")
        return pixels


def contact_sheet(
    pictures: np.ndarray, texts: list[list[str]], columns: int = 4, side: int = 240,
    n_lines: int = 10,
) -> Image.Image:
    """Pictures, enlarged, in rows of `columns`, with a few lines of text below each.

    Args:
        pictures: (n, S, S, 3) uint8.
        texts: for each picture its paragraphs; each is wrapped, and all is cut after n_lines.
        side: pixels of a picture's side on the sheet.
    """
    wrapped = [[line for text in paragraphs for line in textwrap.wrap(text, side // 8)][:n_lines]
               for paragraphs in texts]
    font, gap, tops = ImageFont.load_default(14), 16, [16]
    for start in range(0, len(wrapped), columns):  # a row is as high as its longest text
        longest = max(map(len, wrapped[start:start + columns]))
        tops.append(tops[-1] + side + 17 * (longest + 1))
    sheet = Image.new("RGB", (columns * (side + gap) + gap, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, lines) in enumerate(zip(pictures, wrapped)):
        x, y = gap + i % columns * (side + gap), tops[i // columns]
        large = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(large, (x, y))
        draw.multiline_text((x, y + side + 4), "\n".join(lines), fill="black", font=font)
    return sheet


def save_samples(folder: Path, n: int = 12) -> None:
    """Save the first n packed validation pictures as samples/0.png ..., files to chat about."""
    (folder / "samples").mkdir(exist_ok=True)
    for i, pixels in enumerate(np.load(folder / "val.npy", mmap_mode="r")[:n]):
        Image.fromarray(pixels).save(folder / "samples" / f"{i}.png")
