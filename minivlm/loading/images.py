"""Pictures: any picture file -> RGB -> square -> normalized tensor.

A record names its picture in one of two ways. "dogs/3.jpg" is a picture file.
"train.npy#17" is picture 17 of train.npy, a file of packed pictures; these all have one
size: (n, S, S, 3) uint8.
"""

import io
import struct
import textwrap
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from minivlm.loading.records import images_of
from minivlm.running.files import MAX_BYTES, first_line, inside
from minivlm.vit import MEAN, STD

MAX_PIXELS = 50_000_000  # a larger picture is a mistake or an attack
# formats that hold drawing commands; Pillow runs EPS in Ghostscript and WMF in Windows
PROGRAMS = ("EPS", "WMF")
FITS = ("crop", "pad", "stretch")  # ways to make a picture square, see `fit`
EXIF = b"Exif\0\0"  # what EXIF data begin with in a JPEG
ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
# its values, and what turns such a picture upright; 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | Path | io.BytesIO) -> Image.Image:
    """Open any picture as RGB.

    An animation gives its first frame. A photograph is turned upright as its EXIF data say;
    the rest of these is not used and may be damaged. Transparent parts become white. 16-bit
    gray is scaled to 8 bits.

    Args:
        source: a path, or the content of a picture file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no picture, is damaged, consists of drawing commands, has
            floating-point pixels, or has more than 50 million pixels.
    """
    name = "picture"
    if not isinstance(source, io.BytesIO):
        name = source
        if not Path(source).is_file():
            raise FileNotFoundError(f"no picture at {source}")
    try:
        return as_rgb(upright(source))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any class
        raise ValueError(f"{name} is no readable picture ({first_line(error)})") from None


def upright(source: str | Path | io.BytesIO) -> Image.Image:
    """Decode a picture, and turn it as its EXIF data say; any error may be raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = opened(source)
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if image.format in PROGRAMS:
        raise ValueError(f"{image.format} is a program; save it as PNG")
    if hasattr(image, "tag_v2"):
        # a TIFF's `load` would read all EXIF data and turn the picture: it gets none
        turn = turn_of(image)
        image.getexif = Image.Exif
        image.load()
    else:
        image.load()
        turn = turn_of(image)  # a PNG may have EXIF data behind its pixels
    return image if turn is None else image.transpose(turn)


def opened(source: str | Path | io.BytesIO) -> Image.Image:
    """Open a file by Pillow, also if its EXIF data tell no resolution that Pillow can read.

    Pillow looks for the resolution when it opens a JPEG. If the EXIF data have another
    name, it does not see them; then only `turn_of` reads them.
    """
    try:
        return Image.open(source)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError):
        raise
    except Exception:
        if isinstance(source, io.BytesIO):
            content = source.getvalue()
        else:
            with open(source, "rb") as f:
                content = f.read(MAX_BYTES)
        at = content.find(EXIF)
        if at < 0:
            raise
        image = Image.open(io.BytesIO(content.replace(EXIF, b"none\0\0")))
        image.info["exif"] = content[at:at + 65_536]  # a part of a JPEG is not larger
        return image


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright, by its EXIF or XMP data; None if these do not tell.

    Cameras write odd EXIF entries. Only the orientation is decoded here, so another entry
    does no harm, and an error means that there is no orientation.
    """
    try:
        orientation = orientation_in(image.info.get("exif", b""))
        if orientation is None:
            # Pillow also looks into XMP data, and into the directory of a TIFF
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                orientation = image.getexif().get(ORIENTATION)
        return TURNS.get(orientation)
    except MemoryError:
        raise
    except Exception:  # Pillow's EXIF code raises errors of any class
        return None


def orientation_in(exif: bytes) -> int | None:
    """The orientation in EXIF data, which Pillow does not find behind a damaged entry.

    After a header of 8 bytes, which ends with the directory's place, a directory is the
    number of its entries, then 12 bytes for each: tag, type, count, value.

    Source: CIPA DC-008 (Exif 2.32), section 4.6.2; TIFF 6.0, section 2.
    """
    data = exif.removeprefix(EXIF)
    order = "<" if data.startswith(b"II") else ">"
    try:
        start, = struct.unpack_from(f"{order}I", data, 4)
        n, = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * n, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, place)
            if tag == ORIENTATION and kind == 3:  # a number of 16 bits
                return value
    except struct.error:  # the data end here
        pass
    return None


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: gray of 16 bits becomes 8 bits, transparent parts become white."""
    if image.mode.startswith("I"):  # 16-bit gray, as PNG and TIFF have it
        gray = np.asarray(image, dtype=np.int64).clip(0, 65535) // 257
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(image: Image.Image, size: int, mode: str = "stretch") -> Image.Image:
    """Make a picture `size` x `size` pixels.

    Args:
        mode: one of FITS. "crop" scales the short side to `size` and keeps the middle, as
            CLIP does. "pad" keeps the whole picture and adds bars of CLIP's mean color;
            LLaVA-1.5 reports fewer hallucinations with it. "stretch" scales both sides to
            `size`, as SigLIP does, so the picture is distorted; of the three it measured
            best on wide pictures (docs/lessons.md).

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
    raise ValueError(f"mode {mode!r} is not one of {', '.join(FITS)}")


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn (..., S, S, 3) uint8 into (..., 3, S, S) float32, normalized by MEAN and STD."""
    x = torch.from_numpy(np.array(pixels)).float()                   # (..., S, S, 3)
    mean = torch.tensor(MEAN)
    std = torch.tensor(STD)
    x.mul_(1 / (255 * std)).sub_(mean / std)  # (x / 255 - mean) / std, in place
    return x.movedim(-1, -3).contiguous()


def augment(images: Tensor, shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Move each picture by random numbers of pixels, horizontally and vertically.

    Beyond its borders, each picture is first continued by its own mirror image.

    Args:
        images: (n, 3, S, S).
        shift: the largest move in pixels, 0 .. S - 1.
        mirror: also swap left and right, in each picture with probability 1/2. Do not use
            it for pictures whose captions tell left from right.

    Returns:
        (n, 3, S, S), a new tensor.

    Raises:
        ValueError: if the shift is not smaller than the picture.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2 (4 pixels and a flip, for
    CIFAR-10).
    """
    n, _, S, _ = images.shape
    if shift >= S:
        raise ValueError(f"shift {shift} leaves nothing of pictures of {S} pixels")
    dy, dx = torch.randint(2 * shift + 1, (2, n, 1), generator=generator)
    rows = torch.arange(S) + dy                                      # (n, S)
    columns = torch.arange(S) + dx                                   # (n, S)
    if mirror:
        flip = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    # (n, 3, S + 2 shift, S + 2 shift)
    wide = F.pad(images, (shift,) * 4, mode="reflect")
    picture = torch.arange(n)[:, None, None]                         # (n, 1, 1)
    # three index tensors broadcast to (n, S, S); the channels must stand behind them
    moved = wide.movedim(1, -1)[picture, rows[:, :, None], columns[:, None]]
    return moved.movedim(-1, 1).contiguous()                         # (n, 3, S, S)


class Pictures:
    """The pictures of a data folder, packed or as files, at one size.

    Args:
        folder: the data folder; the names of pictures are relative to it.
        size: S in pixels. Packed pictures must have this size already.
        mode: how a picture file is made square, see `fit`: as meta.json says, where a model
            learns; as it has learned (`models.fit_of`), where it looks later.
    """

    def __init__(self, folder: str | Path, size: int, mode: str = "stretch"):
        self.folder = Path(folder)
        self.size = size
        self.mode = mode
        # file -> memory map; each is opened when one of its pictures is first asked for
        self.packs: dict[str, np.ndarray] = {}

    def of(self, records: list[dict]) -> tuple[Tensor | None, list[int]]:
        """Load the pictures of records, which may have none, one or several; see `get`.

        Returns:
            (n, 3, S, S) in the order of the records, or None if there are none; and how
            many each record has.
        """
        names_of = [images_of(record) for record in records]
        names = [name for names in names_of for name in names]
        return self.get(names) if names else None, [len(names) for names in names_of]

    def get(self, names: list[str]) -> Tensor:
        """Load pictures by name, as models take them: (n, 3, S, S); raises as `pixels`."""
        return to_tensor(self.pixels(names))

    def pixels(self, names: list[str]) -> np.ndarray:
        """Load pictures by name: (n, S, S, 3) uint8.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as `open_image`; if a name leads out of the folder; if a .npy file
                holds no packed pictures of this size, or no picture of this number.
        """
        pictures = np.empty((len(names), self.size, self.size, 3), dtype=np.uint8)
        for i, name in enumerate(names):
            file, packed, number = str(name).partition(".npy#")
            if packed:
                pictures[i] = self._from_pack(f"{file}.npy", number)
            else:
                path = inside(self.folder, name)
                pictures[i] = np.asarray(fit(open_image(path), self.size, self.mode))
        return pictures

    def _from_pack(self, file: str, number: str) -> np.ndarray:
        if file not in self.packs:
            self.packs[file] = self._open(file)
        pack = self.packs[file]
        # no file has 10^18 pictures, and int() would refuse a text of 5,000 digits
        is_number = number.isdecimal() and len(number) < 19
        if not is_number or int(number) >= len(pack):
            raise ValueError(
                f"{self.folder / file} holds pictures 0 .. {len(pack) - 1}, "
                f"there is no {number[:19]!r}"
            )
        return pack[int(number)]

    def _open(self, file: str) -> np.ndarray:
        path = inside(self.folder, file)
        if not path.is_file():
            raise FileNotFoundError(
                f"no packed pictures at {path}; run the data set's prepare.py again"
            )
        try:
            with path.open("rb") as f:
                # in later versions a header may claim a length of 4 GB
                if f.read(8) != b"\x93NUMPY\x01\x00":
                    raise ValueError("it is no .npy file of version 1.0")
            pixels = np.lib.format.open_memmap(path, mode="r")
        except MemoryError:
            raise
        except Exception as error:  # NumPy's reader of headers raises errors of any class
            raise ValueError(
                f"{path} holds no packed pictures ({first_line(error)})"
            ) from None
        if pixels.shape[1:] != (self.size, self.size, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"{path} holds pictures {pixels.shape[1:]} of {pixels.dtype}, "
                f"the model takes ({self.size}, {self.size}, 3) of uint8"
            )
        return pixels


def enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    """Make a picture, (S, S, 3) uint8, `side` pixels wide; its own pixels stay visible."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def contact_sheet(
    pictures: np.ndarray, texts: list[list[str]], columns: int = 4, side: int = 240,
    n_lines: int = 10,
) -> Image.Image:
    """Draw many pictures on one sheet, enlarged, with a few lines of text below each.

    Args:
        pictures: (n, S, S, 3) uint8.
        texts: for each picture, the paragraphs below it.
        columns: how many pictures stand side by side.
        side: the side of a picture on the sheet, in pixels.
        n_lines: most lines of text below a picture; longer texts are cut off.
    """
    wrapped = []
    for paragraphs in texts:
        lines = []
        for paragraph in paragraphs:
            lines += textwrap.wrap(paragraph, side // 8)  # about 8 pixels a character
        wrapped.append(lines[:n_lines])
    gap = 16
    tops = [gap]  # the y of each line of pictures; the last entry is the sheet's height
    for start in range(0, len(wrapped), columns):
        longest = max(map(len, wrapped[start:start + columns]))
        tops.append(tops[-1] + side + 18 * (longest + 1))  # 18 pixels a line of text
    sheet = Image.new("RGB", (columns * (side + gap) + gap, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (pixels, lines) in enumerate(zip(pictures, wrapped)):
        row, column = divmod(i, columns)
        x = gap + column * (side + gap)
        y = tops[row]
        sheet.paste(enlarged(pixels, side), (x, y))
        draw.multiline_text((x, y + side + 4), "\n".join(lines), fill="black", font=font)
    return sheet


def save_samples(folder: Path, n: int = 12) -> None:
    """Save the first n pictures of val.npy as samples/0.png, 1.png, ..., for chat.py."""
    (folder / "samples").mkdir(exist_ok=True)
    for i, pixels in enumerate(np.load(folder / "val.npy", mmap_mode="r")[:n]):
        Image.fromarray(pixels).save(folder / "samples" / f"{i}.png")
