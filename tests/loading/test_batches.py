"""minivlm/loading/: records, pictures of all kinds, shifted targets, reproducible batches."""

import io
import json
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from minivlm.conversation import caption_rows, pack
from minivlm.loading import images
from minivlm.loading.batches import (
    Batch, Reading, caption_lengths, collate, hash_seed, pick_captions, places_that_fit,
    render_records, shuffled, switch_out,
)
from minivlm.loading.images import Pictures, augment, fit, open_image, to_tensor
from minivlm.loading.prepared import load_meta, load_records
from minivlm.losses import next_token_loss
from minivlm.running.workers import batches
from minivlm.tokenizer import Tokenizer

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
PAD = TOKENIZER.pad


# --- collate ---


def test_targets_are_shifted_once_as_worked_by_hand():
    """Catches no shift, two shifts, a trained prompt, an untrained end, and pads in the loss.

        row A   5 6 7 8 with answers 7 8        row B   5 9 with answer 9
        idx     5 6 7                           idx     5 pad pad
        target  -100 7 8                        target  9 -100 -100
    """
    rows = [([5, 6, 7, 8], [False, False, True, True]), ([5, 9], [False, True])]
    batch = collate(rows, pad=0, block_size=3)
    assert batch.idx.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch.targets.tolist() == [[-100, 7, 8], [9, -100, -100]]
    assert batch.lengths.tolist() == [3, 1] and batch.ids == ["0", "1"] and batch.n_images == [0, 0]
    assert batch.images is None and batch.idx.dtype == batch.targets.dtype == torch.int64


def test_pads_stand_on_the_right_and_are_never_learned():
    """Catches left padding, and pads ignored by id, not by place: here an answer is the pad id."""
    rows = [([1, PAD, 2], [False, True, True]), ([1, 2, 3, 4, 5, 6], [False] * 5 + [True])]
    batch = collate(rows, PAD, 10)
    assert batch.idx.tolist() == [[1, PAD, PAD, PAD, PAD], [1, 2, 3, 4, 5]]
    assert batch.targets.tolist() == [[PAD, 2, -100, -100, -100], [-100] * 4 + [6]]
    assert batch.lengths.tolist() == [2, 5]


def test_every_target_of_random_rows_is_the_next_token_or_ignored():
    """Catches any wrong shift in rows of unequal length: rebuilt token by token."""
    rng = random.Random(1)
    for _ in range(50):
        rows = []
        for _ in range(rng.randint(1, 6)):
            ids = [rng.randrange(1, 99) for _ in range(rng.randint(2, 12))]
            rows.append((ids, [False] + [True] + [rng.random() < 0.5 for _ in ids[2:]]))
        batch = collate(rows, 0, 20)
        for b, (ids, answer) in enumerate(rows):
            for t in range(batch.idx.shape[1]):
                inside = t + 1 < len(ids)
                assert batch.idx[b, t] == (ids[t] if inside else 0)
                assert batch.targets[b, t] == (ids[t + 1] if inside and answer[t + 1] else -100)


@pytest.mark.parametrize("row, message", [
    (([1, 2, 3, 4, 5], [True] * 5), "record cat has 4 tokens, the context holds 3; shorten it"),
    (([1, 2, 3], [False] * 3), "record cat has no answer to learn from"),
    (([1, 2, 3], [True, False, False]), "record cat has no answer to learn from"),
    (([1], [True]), "record cat has no answer to learn from"),
    (([], []), "record cat has no answer to learn from"),
])
def test_a_row_that_cannot_be_learned_is_refused_by_name(row, message):
    """Catches a silent cut, and rows that train on nothing."""
    with pytest.raises(ValueError, match=message):
        collate([([1, 2], [False, True]), row], 0, 3, ids=["dog", "cat"])


def test_a_packed_row_without_an_answer_is_refused_by_name():
    """Catches "max() arg is an empty sequence" for a prompt whose answers are all missing."""
    row, segments = pack([7, 8], [])
    with pytest.raises(ValueError, match="record cat has no answer to learn from"):
        collate([row], 0, 8, ids=["cat"], segments=[segments])


def test_a_row_of_just_the_context_fits():
    """Catches a limit off by one: block_size + 1 ids give block_size inputs."""
    assert collate([([1, 2, 3, 4], [True] * 4)], 0, 3).idx.shape == (1, 3)


def test_packed_answers_of_just_the_context_fit_wherever_they_stand():
    """Catches a limit off by one: a prompt of 2 with 3 more, of which a row's last is not read."""
    for answers, fits in (([[1, 2], [1]], True), ([[1], [1, 2, 3]], True),
                          ([[1, 2, 3], [1]], False), ([[1], [1, 2, 3, 4]], False)):
        row, segments = pack([7, 8], answers)
        if fits:
            collate([row], 0, 4, segments=[segments])
        else:
            with pytest.raises(ValueError, match="has 5 tokens, the context holds 4"):
                collate([row], 0, 4, segments=[segments])


def test_a_batch_splits_into_parts_that_hold_their_own_pictures():
    """Catches pictures dealt out by row number: rows have 1, 0, 2, 0, 1 pictures here.

    5 rows in 3 parts: rows 0 | 1 2 | 3 4 (5 * i // 3 = 0, 1, 3, 5), so pictures 0 | 1 2 | 3.
    """
    rows = [([i, i + 1], [False, True]) for i in range(5)]
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    batch = collate(rows, 0, 4, ids=list("abcde"), images=images, n_images=[1, 0, 2, 0, 1])
    parts = batch.split(3)
    assert [p.ids for p in parts] == [["a"], ["b", "c"], ["d", "e"]]
    assert [p.images[:, 0, 0, 0].tolist() for p in parts] == [[0.0], [1.0, 2.0], [3.0]]
    assert [p.n_images for p in parts] == [[1], [0, 2], [0, 1]]
    assert torch.equal(torch.cat([p.idx for p in parts]), batch.idx)
    assert torch.equal(torch.cat([p.targets for p in parts]), batch.targets)
    assert torch.equal(torch.cat([p.lengths for p in parts]), batch.lengths)


def test_a_part_is_as_wide_as_its_longest_row():
    """Catches parts that keep the pads of the whole batch, and a row that is cut."""
    rows = [([1] * n, [False] + [True] * (n - 1)) for n in (2, 3, 5, 9)]
    segments = [[0] + [1] * (len(tokens) - 1) for tokens, _ in rows]
    short, long = collate(rows, 0, 9, segments=segments).split(2)
    assert short.idx.shape == short.targets.shape == short.segments.shape == (2, 2)
    assert long.idx.shape == long.targets.shape == long.segments.shape == (2, 8)
    assert short.n_supervised + long.n_supervised == 1 + 2 + 4 + 8


def test_parts_of_weighted_rows_add_up_to_the_batch():
    """Catches weights of the wrong rows, and weights that the loss or n_supervised ignores."""
    rows = [([1, 2, 3, 4][:n], [False] + [True] * (n - 1)) for n in (2, 4, 3, 2)]
    batch = collate(rows, 0, 4, weights=[1.0, 0.25, 1.0, 0.5])
    assert batch.n_supervised.item() == 1 + 0.25 * 3 + 2 + 0.5
    at = batch.targets != -100
    assert batch.weights_at(at).tolist() == [1, 0.25, 0.25, 0.25, 1, 1, 0.5]
    logits = torch.randn(4, 3, 7)
    whole = next_token_loss(logits[at], batch.targets[at], weights=batch.weights_at(at))
    total = 0
    for part, part_logits in zip(batch.split(2), logits.split(2)):
        at = part.targets != -100
        part_logits = part_logits[:, :at.shape[1]][at]
        loss = next_token_loss(part_logits, part.targets[at], weights=part.weights_at(at))
        total += loss * part.n_supervised / batch.n_supervised
    torch.testing.assert_close(total, whole)
    assert collate(rows, 0, 4).weights_at(at) is None


def test_a_part_without_pictures_has_none():
    """Catches an empty picture tensor, which a ViT would still be called with."""
    rows = [([1, 2], [False, True])] * 4
    batch = collate(rows, 0, 4, images=torch.ones(1, 3, 2, 2), n_images=[0, 0, 0, 1])
    first, second = batch.split(2)
    assert first.images is None and len(second.images) == 1
    assert all(part.images is None for part in collate(rows, 0, 4).split(4))


def test_more_parts_than_rows_are_refused():
    """Catches empty micro-batches."""
    batch = collate([([1, 2], [False, True])] * 2, 0, 4)
    assert len(batch.split(2)) == 2
    with pytest.raises(
        ValueError, match="a batch of 2 rows cannot be split into 3 parts; lower grad_accum"
    ):
        batch.split(3)


def test_a_batch_moves_to_a_device_whole():
    """Catches a tensor left behind."""
    batch = collate([([1, 2], [False, True])], 0, 4, images=torch.ones(1, 3, 2, 2), n_images=[1])
    moved = batch.to(torch.device("meta"))
    assert {
        x.device.type for x in (moved.idx, moved.targets, moved.lengths, moved.images)
    } == {"meta"}
    assert moved.n_images == [1] and moved.ids == ["0"]
    assert collate([([1, 2], [False, True])], 0, 4).to(torch.device("cpu")).images is None


# --- pictures ---


def saved(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    return [image.getpixel(at) for at in ((0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1))]


def test_transparency_lies_on_white(tmp_path):
    """Catches black or random colors under transparency: 50 % red on white is (255, 127, 127)."""
    image = Image.new("RGBA", (2, 1))
    image.putdata([(9, 9, 9, 0), (255, 0, 0, 128)])
    opened = open_image(saved(image, tmp_path / "a.png"))
    assert opened.mode == "RGB" and opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == pytest.approx((255, 127, 127), abs=1)


def test_a_transparent_palette_color_is_white(tmp_path):
    """Catches the palette's hidden color showing through."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    opened = open_image(saved(image, tmp_path / "p.png", transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]
    plain = open_image(saved(image, tmp_path / "plain.png"))
    assert plain.getpixel((0, 0)) == (10, 20, 30)


def test_gray_with_alpha_lies_on_white(tmp_path):
    """Catches mode LA read as RGB with its alpha dropped."""
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (0, 255)])
    opened = open_image(saved(image, tmp_path / "la.png"))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    """Catches 16-bit gray clipped to white: 65535 / 257 = 255 and 128 * 257 = 32896 is 128."""
    pixels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = open_image(saved(Image.fromarray(pixels), tmp_path / "deep.png"))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_an_animation_gives_its_first_frame(tmp_path):
    """Catches the last frame, or an array of four dimensions."""
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert corners(open_image(path)) == [(255, 0, 0)] * 4


def test_a_cmyk_jpeg_keeps_its_colors(tmp_path):
    """Catches the four inks taken for colors: no ink is white, full cyan has no red."""
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (8, 0, 16, 16))
    opened = open_image(saved(image, tmp_path / "c.jpg", quality=95))
    assert min(opened.getpixel((2, 8))) > 245
    red, green, blue = opened.getpixel((13, 8))
    assert red < 20 and green > 200 and blue > 200


def test_a_photo_is_turned_upright(tmp_path):
    """Catches phone photos on their side: orientation 6 is stored a quarter turn counterclockwise.

    The stored picture is 20 wide, 10 high, its left half red. Upright it is 10 wide, 20 high, and
    the left half is the top.
    """
    image = Image.new("RGB", (20, 10), "blue")
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_image(saved(image, tmp_path / "e.jpg", exif=exif, quality=95))
    assert opened.size == (10, 20)
    assert opened.getpixel((5, 2))[0] > 200 and opened.getpixel((5, 17))[2] > 200


@pytest.mark.parametrize("mode, fmt", [
    ("1", "PNG"), ("L", "PNG"), ("P", "BMP"), ("RGB", "BMP"), ("YCbCr", "JPEG")])
def test_other_modes_become_rgb(mode, fmt):
    """Catches a mode that reaches the model with one channel; pictures from memory open too."""
    data_ = io.BytesIO()
    Image.new("RGB", (6, 5), "white").convert(mode).save(data_, fmt)
    opened = open_image(io.BytesIO(data_.getvalue()))
    assert opened.mode == "RGB" and opened.size == (6, 5) and min(opened.getpixel((3, 3))) >= 253


def test_floating_point_pixels_are_refused(tmp_path):
    """Catches a depth map shown as black."""
    path = saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "f.tiff")
    with pytest.raises(ValueError, match=r"f\.tiff is no readable picture \(floating-point pixels"):
        open_image(path)


def test_a_missing_picture_is_named(tmp_path):
    """Catches a bare errno, also for a folder."""
    for path in (tmp_path / "no.png", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no picture at {path}"):
            open_image(path)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of any size whose pixels stop at once: 60 bytes that claim as many as they like."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks)


@pytest.mark.parametrize("width, height", [(10000, 5001), (10000, 10000), (60000, 60000)])
def test_a_picture_that_claims_too_many_pixels_is_refused_before_it_is_decoded(
    width, height, tmp_path
):
    """Catches the decompression bomb; 50 million is below Pillow's warning: the limit is ours."""
    (tmp_path / "bomb.png").write_bytes(png_claiming(width, height))
    with pytest.raises(ValueError, match=r"bomb\.png has .*more than 50,000,000"):
        open_image(tmp_path / "bomb.png")


def encoded(fmt: str) -> bytes:
    """A small noisy picture as a file of a format."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, fmt)
    return out.getvalue()


@pytest.mark.parametrize("content", [
    b"", b"this is text\n", encoded("PNG")[:200], encoded("JPEG")[:100], encoded("JPEG")[:-200],
    encoded("GIF")[:60], png_claiming(10, 10), b"\xff\xd8\xff", b"GIF89a",
])
def test_a_damaged_picture_is_refused_by_name(content, tmp_path):
    """Catches a half-gray picture from a broken download, and stack traces out of Pillow."""
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.jpg is no readable picture"):
        open_image(tmp_path / "bad.jpg")


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_random_damage_gives_a_picture_or_a_value_error(fmt):
    """Catches exceptions out of Pillow's depths, which would end a run with a traceback."""
    rng, whole = random.Random(0), encoded(fmt)
    for k in range(60):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(min(len(raw), 90 if k % 2 else len(raw)))] = rng.randrange(256)
        try:
            assert open_image(io.BytesIO(bytes(raw))).mode == "RGB"
        except ValueError as error:
            assert "picture" in str(error)


def test_a_broken_file_is_named_whatever_pillow_raises(tmp_path):
    """Catches Pillow's own ValueError without the file's name: a PPM with a letter in its size."""
    (tmp_path / "bad.ppm").write_bytes(b"P6 2x 2 255\n" + bytes(12))
    with pytest.raises(ValueError, match=r"bad\.ppm is no readable picture"):
        open_image(tmp_path / "bad.ppm")


def striped() -> Image.Image:
    """40 x 20: 8 columns of red, 24 of lime, 8 of blue."""
    image = Image.new("RGB", (40, 20), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 8, 20))
    image.paste((0, 0, 255), (32, 0, 40, 20))
    return image


def test_crop_keeps_the_middle_of_the_long_side():
    """Catches a crop from the corner: the columns 10 .. 29 of 40 are all lime."""
    out = fit(striped(), 10, "crop")
    assert out.size == (10, 10) and corners(out) == [(0, 255, 0)] * 4


def test_pad_shows_all_and_fills_with_the_mean_color():
    """Catches black bars, which normalization turns into an extreme value: bars must be near 0."""
    out = fit(striped(), 20, "pad")
    mean = tuple(int(255 * m) for m in images.MEAN)
    assert out.size == (20, 20) and corners(out) == [mean] * 4
    assert [out.getpixel((x, 10)) for x in (0, 10, 19)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert to_tensor(np.array(out))[:, 0, 0].abs().max() < 0.02


def test_stretch_shows_all_without_bars():
    """Catches a crop under another name."""
    out = fit(striped(), 20, "stretch")
    assert corners(out) == [(255, 0, 0), (0, 0, 255)] * 2 and out.getpixel((10, 10)) == (0, 255, 0)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(500, 1), (1, 500), (3, 3), (48, 48)])
def test_every_shape_of_picture_fits(mode, size):
    """Catches a side of zero pixels for a very long picture."""
    assert fit(Image.new("RGB", size), 48, mode).size == (48, 48)


def test_an_unknown_mode_is_refused():
    """Catches a misspelled mode taken for the default."""
    with pytest.raises(ValueError, match="mode 'squash' is not one of crop, pad, stretch"):
        fit(striped(), 8, "squash")


def test_pixels_are_normalized_by_clips_numbers():
    """Catches channels last, values in 0..255, and the channels' means swapped.

    Red 255: (1 - 0.48145466) / 0.26862954 = 1.9303; green 0: -0.4578275 / 0.26130258 = -1.7521;
    blue 51: (0.2 - 0.40821073) / 0.27577711 = -0.7550.
    """
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, 51
    pixels[1, 0, 3] = 0
    x = to_tensor(pixels)
    assert x.shape == (2, 3, 4, 4) and x.dtype == torch.float32 and x.is_contiguous()
    assert x[0, :, 2, 1].tolist() == pytest.approx([1.9303, -1.7521, -0.7550], abs=1e-4)
    assert x[1, 0, 0, 3].item() == pytest.approx(-0.48145466 / 0.26862954, abs=1e-5)
    assert to_tensor(pixels[0]).shape == (3, 4, 4)


def test_packed_pictures_equal_their_files(tmp_path):
    """Catches a pack read in another order, or normalized twice."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "train.npy", pixels)
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.png")
    order = [3, 0, 4, 4, 1]
    packed = Pictures(tmp_path, 8).get([f"train.npy#{i}" for i in order])
    files = Pictures(tmp_path, 8).get([f"images/{i}.png" for i in order])
    mixed = Pictures(tmp_path, 8).get(
        [f"train.npy#{i}" if i % 2 else f"images/{i}.png" for i in order]
    )
    assert (
        packed.shape == (5, 3, 8, 8) and torch.equal(packed, files) and torch.equal(packed, mixed)
    )
    assert torch.equal(packed, to_tensor(pixels[order]))
    assert Pictures(tmp_path, 8).get([]).shape == (0, 3, 8, 8)


def test_a_pack_of_another_size_is_refused(tmp_path):
    """Catches pictures of 8 pixels broadcast or cut to the model's 16."""
    np.save(tmp_path / "train.npy", np.zeros((2, 8, 8, 3), np.uint8))
    message = r"train\.npy holds pictures \(8, 8, 3\) of uint8, the model takes \(16"
    with pytest.raises(ValueError, match=message):
        Pictures(tmp_path, 16).get(["train.npy#0"])


def test_missing_pictures_are_named(tmp_path):
    """Catches a bare errno for a pack, and for a file in the folder."""
    with pytest.raises(FileNotFoundError, match=r"no packed pictures at .*val\.npy; run the data"):
        Pictures(tmp_path, 8).get(["val.npy#0"])
    with pytest.raises(FileNotFoundError, match=r"no picture at .*cat\.jpg"):
        Pictures(tmp_path, 8).get(["cat.jpg"])


def test_a_file_may_have_a_number_sign_in_its_name(tmp_path):
    """Catches "cat #3.png" taken for row "3.png" of a pack called "cat "."""
    Image.new("RGB", (8, 8), "white").save(tmp_path / "cat #3.png")
    assert Pictures(tmp_path, 8).get(["cat #3.png"]).shape == (1, 3, 8, 8)


def test_a_row_that_the_pack_does_not_have_is_refused(tmp_path):
    """Catches a negative row, which counts from the end, and an IndexError without a name."""
    np.save(tmp_path / "train.npy", np.zeros((2, 8, 8, 3), np.uint8))
    for row in ("-1", "2", "x"):
        with pytest.raises(ValueError, match=r"train\.npy"):
            Pictures(tmp_path, 8).get([f"train.npy#{row}"])


def numbered(n: int, S: int) -> torch.Tensor:
    """(n, 3, S, S) pictures in which every pixel tells picture, channel, row and column apart."""
    i, c, y, x = torch.meshgrid(*(torch.arange(k) for k in (n, 3, S, S)), indexing="ij")
    return (i * 10_000 + c * 1_000 + y * 30 + x).float()


def test_augmented_pictures_are_moved_ones_and_moved_mirrored_ones():
    """Catches channels or pictures mixed, rows mirrored, one shift for all, a shift too far.

    Each result is found among all windows of its own picture, as numpy pads and mirrors it.
    """
    images, S, shift = numbered(40, 8), 8, 2
    made = augment(images, shift, True, torch.Generator().manual_seed(0))
    seen = set()
    for i, picture in enumerate(images.numpy()):
        wide = np.pad(picture, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
        windows = {(dy, dx, flip): wide[:, dy:dy + S, dx:dx + S][..., ::-1 if flip else 1]
                   for dy in range(5) for dx in range(5) for flip in (0, 1)}
        hits = [key for key, window in windows.items() if np.array_equal(window, made[i].numpy())]
        assert len(hits) == 1
        seen.add(hits[0])
    for axis in range(3):
        assert {key[axis] for key in seen} == set(range(5 if axis < 2 else 2))


def test_augmentation_does_nothing_unasked_and_the_same_for_the_same_seed():
    """Catches a mirror that cannot be switched off, and draws from the global generator."""
    images = numbered(6, 8)
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)
    one, two = (augment(images, 3, True, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, images)
    with pytest.raises(ValueError, match="shift 8 leaves nothing of pictures of 8 pixels"):
        augment(images, 8, False, torch.Generator())


# --- records ---


def write(folder, *lines: str) -> None:
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def test_records_are_read_line_by_line(tmp_path):
    """Catches a lost last line, and another encoding than UTF-8."""
    records = [{"id": "a", "captions": ["é"]}, {"id": "b", "captions": ["x"]}]
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    assert load_records(tmp_path, "train", ("id", "captions")) == records
    assert load_records(str(tmp_path), "train") == records


@pytest.mark.parametrize("line, message", [
    ("{broken", r"train\.jsonl:2 is no JSON in UTF-8: "),
    ("[" * 100_000, r"train\.jsonl:2 is no JSON in UTF-8: "),
    ('{"id": "b"}', r"train\.jsonl:2 has no captions"),
    ('{"captions": []}', r"train\.jsonl:2 has no id and no captions"),
    ('["id", "captions"]', r"train\.jsonl:2 is no JSON object"),
    ('{"id": "b", "captions": "A dog."}', r"train\.jsonl:2 has captions that are no list"),
    ('{"id": "b", "captions": ["A dog.", " "]}',
     r"train\.jsonl:2 has a caption that is empty or no text"),
    ('{"id": "b", "captions": [["A dog."]]}',
     r"train\.jsonl:2 has a caption that is empty or no text"),
    ('{"id": "b", "captions": ["x"], "conversations": {}}',
     r"train\.jsonl:2 has conversations that are no list"),
])
def test_a_bad_line_is_named_with_its_number(line, message, tmp_path):
    """Catches records skipped in silence, and messages that do not say where."""
    write(tmp_path, '{"id": "a", "captions": ["x"]}', line)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path, "train", ("id", "captions"))


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null", '"text"'])
def test_a_line_that_is_no_object_is_refused(line, tmp_path):
    """Catches a list or a number taken for a record when no key is asked for."""
    write(tmp_path, line)
    with pytest.raises(ValueError, match=r"train\.jsonl(:1|, entry 0) is no JSON object"):
        load_records(tmp_path, "train")


def test_a_line_in_another_encoding_is_named(tmp_path):
    """Catches a decoding error without file and line."""
    (tmp_path / "train.jsonl").write_bytes(b'{"id": "a"}\n{"id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl"):
        load_records(tmp_path, "train")


def test_missing_and_empty_data_are_errors(tmp_path):
    """Catches a training run on nothing."""
    with pytest.raises(
        FileNotFoundError, match=r"no data at .*train\.jsonl; run the data set's prepare"
    ):
        load_records(tmp_path, "train")
    with pytest.raises(
        FileNotFoundError, match=r"no .*meta\.json; run the data set's prepare\.py first"
    ):
        load_meta(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"train\.jsonl is empty"):
        load_records(tmp_path, "train")
    (tmp_path / "meta.json").write_text('{"name": "x", "image_size": 48}')
    assert load_meta(tmp_path) == {"name": "x", "image_size": 48, "fit": "stretch"}
    for bad in ('{"name": "x"}', '{"image_size": 48}', '{"name": "x", "image_size": "48"}', "[]"):
        (tmp_path / "meta.json").write_text(bad)
        with pytest.raises(ValueError, match=r"meta\.json lacks a name or an image_size"):
            load_meta(tmp_path)


# --- batches ---


@pytest.mark.parametrize("n, batch_size", [(12, 4), (13, 4), (7, 7), (5, 1)])
def test_an_epoch_shows_no_record_twice(n, batch_size):
    """Catches sampling with replacement: n // batch_size steps, all records different."""
    per_epoch = n // batch_size
    for epoch in range(3):
        seen = sum(
            (shuffled(epoch * per_epoch + i, batch_size, n, seed=3) for i in range(per_epoch)), []
        )
        assert len(seen) == len(set(seen)) == per_epoch * batch_size and set(seen) <= set(range(n))
        if n % batch_size == 0:
            assert set(seen) == set(range(n))


def test_a_batch_depends_on_seed_and_step_alone():
    """Catches a hidden state, which resuming would have to restore."""
    wanted = [shuffled(step, 5, 50, seed=1) for step in range(30)]
    torch.manual_seed(99)
    random.shuffle(steps := list(range(30)))
    assert {step: shuffled(step, 5, 50, seed=1) for step in steps} == dict(enumerate(wanted))


def test_epochs_and_seeds_have_orders_of_their_own():
    """Catches one order for all epochs, and (seed 1, epoch 0) equal to (seed 0, epoch 1)."""
    orders = [tuple(shuffled(epoch, 50, 50, seed)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    assert len({hash_seed(a, b) for a in range(20) for b in range(20)}) == 400


def test_a_batch_is_sorted_by_length_and_holds_what_it_holds_unsorted():
    """Catches whole batches of one length, rows lost in sorting, and the longest first."""
    lengths = torch.randint(5, 60, (83,))
    for step in range(40):
        made = shuffled(step, 4, 83, 3, lengths)
        assert sorted(made) == sorted(shuffled(step, 4, 83, 3))
        assert lengths[made].tolist() == sorted(lengths[made].tolist())


def test_a_batch_larger_than_the_data_is_refused():
    """Catches a division by zero, or a batch of repeats."""
    with pytest.raises(ValueError, match="batch_size 6 is larger than the data set of 5 records"):
        shuffled(0, 6, 5, 0)


def make_batch(step: int) -> Batch:
    """A batch of its step alone, with a picture; at module level, so that workers can import it."""
    rows = [([i, i + 1, step], [False, True, True]) for i in shuffled(step, 3, 10, seed=0)]
    generator = torch.Generator().manual_seed(hash_seed(0, step))
    return collate(
        rows, PAD, 8, images=torch.rand(3, 3, 2, 2, generator=generator), n_images=[1, 1, 1]
    )


def test_workers_make_the_same_batches_in_the_same_order():
    """Catches batches that depend on the worker, and a resumed run that starts at batch 0."""
    wanted = [make_batch(step) for step in range(2, 9)]
    for workers in (0, 2):
        made = list(batches(make_batch, 2, 9, workers))
        assert len(made) == 7
        for got, want in zip(made, wanted):
            for key in ("idx", "targets", "lengths", "images"):
                assert torch.equal(getattr(got, key), getattr(want, key))
            assert got.ids == want.ids and got.n_images == want.n_images
    assert list(batches(make_batch, 5, 5)) == []


def test_making_batches_leaves_the_global_generator_alone():
    """Catches dropout that differs after --resume: the loader must draw its seed from elsewhere."""
    state = torch.get_rng_state()
    list(batches(make_batch, 0, 2))
    assert torch.equal(torch.get_rng_state(), state)


# --- rows ---


def test_words_that_are_read_are_switched_and_nothing_else():
    """Catches noise on answers, image tokens or marks of turns, and another share than asked."""
    ids = [300, 301, 301, *range(100, 150), 302, *range(200, 250), 303]  # 300 ..: special ids
    learned = [False] * 54 + [True] * 51
    rows = [(ids, learned)] * 200
    made = switch_out(rows, range(300), 0.3, torch.Generator().manual_seed(0))
    changed = 0
    for new, wanted in made:
        assert wanted == learned and len(new) == len(ids)
        assert [new[i] for i in (0, 1, 2, 53)] == [300, 301, 301, 302] and new[54:] == ids[54:]
        assert all(0 <= i < 300 for i in new[3:53])
        changed += sum(a != b for a, b in zip(new, ids))
    assert abs(changed / (200 * 50) - 0.3 * 299 / 300) < 0.015
    assert switch_out(rows[:2], range(300), 0.0, torch.Generator()) == rows[:2]
    with pytest.raises(ValueError, match="noise 1.5 is no share"):
        switch_out(rows, range(300), 1.5, torch.Generator())
    assert switch_out(rows[:9], range(300), 0.3, torch.Generator().manual_seed(0)) == made[:9]


def test_parts_of_documents_are_read_without_a_picture(tmp_path, capsys):
    """Catches a document of which only the start is read, one longer than asked, other draws."""
    texts = ["a cat", "b"]
    lines = [json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    reading = Reading(str(tmp_path), 40, TOKENIZER)
    rows = reading.rows(5, torch.Generator().manual_seed(0))
    assert rows == reading.rows(5, torch.Generator().manual_seed(0))
    assert rows != reading.rows(5, torch.Generator().manual_seed(1))
    assert {TOKENIZER.decode(row.ids) for row in rows} == {
        "<|endoftext|>a ca", "a cat", "<|endoftext|>b"}
    assert all(row.is_answer == [True] * len(row.ids) for row in rows)
    assert Reading(str(tmp_path), 0, TOKENIZER).rows(5, torch.Generator()) == []
    assert capsys.readouterr().out == ""
    assert Reading(str(tmp_path / "none"), 3, TOKENIZER).rows(5, torch.Generator()) == []
    assert "none has no text.jsonl: no documents are read" in capsys.readouterr().out


def test_every_caption_of_a_record_gets_its_turn():
    """Catches a pick that always takes the first."""
    record = {"captions": list("abcde")}
    pick = lambda s: pick_captions([record] * 12, torch.Generator().manual_seed(s))  # noqa: E731
    assert {caption for s in range(5) for caption in pick(s)} == set("abcde")
    assert pick(4) == pick(4) != pick(5)


LLAVA = {
    "id": "000000033471", "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "The bus is white and red."},
        {"from": "human", "value": "Is it moving?"},
        {"from": "gpt", "value": "Yes."},
    ],
}


def test_workers_are_refused_where_processes_do_not_fork(monkeypatch):
    """Catches a pickling traceback: the scripts' make_batch closes over their data."""
    monkeypatch.setattr(torch.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="cannot fork; use workers 0"):
        batches(lambda step: step, 0, 2, workers=1)
    assert list(batches(lambda step: step, 0, 2)) == [0, 1]


def test_workers_run_a_function_that_closes_over_data():
    """Catches a start method that cannot hand the data to the workers."""
    data = torch.arange(5)
    assert [int(x) for x in batches(lambda step: data[step], 1, 4, workers=1)] == [1, 2, 3]


def test_a_record_in_llavas_format_is_rendered():
    """Catches a reader that needs our records only: this is one line of LLaVA's published file."""
    [(ids, is_answer)] = render_records([LLAVA], TOKENIZER, 3)
    supervised = TOKENIZER.decode([i for i, a in zip(ids, is_answer) if a])
    assert (
        supervised == " The bus is white and red.<|end|> Yes.<|end|>"
        and ids.count(TOKENIZER.image) == 3
    )


@pytest.mark.parametrize("record, message", [
    ({"id": "d", "conversations": [{"from": "gpt", "value": "hi"}]}, "record d: turn 0 is by gpt"),
    ({"id": "e", "conversations": []}, "record e: the conversation has no turns"),
    ({"conversations": [{"from": "human", "value": ""}]}, r"record \?: turn 0 by human is empty"),
])
def test_a_bad_dialogue_is_named_by_its_record(record, message):
    """Catches a dialogue that cannot be rendered and is dropped, or refused without its name."""
    with pytest.raises(ValueError, match=message):
        render_records([LLAVA, record], TOKENIZER, 1)


def test_a_turn_that_is_no_object_is_refused_by_record():
    """Catches an AttributeError without the record's name."""
    with pytest.raises(ValueError, match="record f"):
        render_records([{"id": "f", "conversations": ["hi"]}], TOKENIZER, 1)


def test_a_record_longer_than_the_context_is_found_before_training(capsys):
    """Catches a record that stops a run midway: as many tokens as fit pass, one more does not."""
    records = [{"id": name} for name in "abc"]
    assert places_that_fit(records, [5, 7, 6], 7, False, "train") == [0, 1, 2]
    said = (
        "train, record b: 7 tokens, image tokens included; the context holds 6; shorten it, "
        "or leave out such records with --skip_long"
    )
    with pytest.raises(ValueError, match=said):
        places_that_fit(records, [5, 7, 6], 6, False, "train")
    assert capsys.readouterr().out == ""


def test_long_records_are_left_out_and_counted_on_request(capsys):
    """Catches one dialogue that refuses a whole data set, records that vanish in silence, and a
    record that fits exactly left out.
    """
    records = [{"id": i} for i in range(5000)]
    lengths = [256] * 4998 + [614, 257]
    assert places_that_fit(records, lengths, 256, True, "train") == list(range(4998))
    assert capsys.readouterr().out == (
        "left out 2 of 5,000 records of train: longer than the context of 256 tokens, "
        "for instance 4998 (614)\n"
    )
    assert places_that_fit(records, [256] * 5000, 256, True, "train") == list(range(5000))
    assert capsys.readouterr().out == ""
    said = "nothing is left without 2 of 2 records of val: longer than the context of 4 tokens"
    with pytest.raises(ValueError, match=said):
        places_that_fit(records[:2], [5, 6], 4, True, "val")


def test_the_longest_caption_that_passes_the_check_fits_a_batch():
    """Catches a check that is off by one from what collate takes."""
    [needed] = caption_lengths([{"id": "a", "captions": ["x", "four"]}], TOKENIZER, 9)
    assert needed == 13  # nine image tokens and four bytes; the end is only a target
    rows = caption_rows(["four"], TOKENIZER, 9)
    assert collate(rows, PAD, 13).idx.shape == (1, 13)
    with pytest.raises(ValueError, match="13 tokens, the context holds 12"):
        collate(rows, PAD, 12)
