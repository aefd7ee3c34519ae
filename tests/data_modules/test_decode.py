import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from image_sets import encoded, pixels
from PIL import Image, ImageOps

from ersde_lit.data.decode import decode, image_endings

ODD = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8))
DEEP = np.random.default_rng(1).integers(0, 65536, (8, 8, 3), dtype=np.uint16)


def with_exif(kind, orientation, image=ODD, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("png", {}), ("jpeg", {"quality": 95}), ("webp", {"lossless": True}), ("tiff", {}), ("avif", {}), ("mpo", {})],
)
def test_every_orientation_is_turned_upright(kind, options, orientation):
    data = with_exif(kind, orientation, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode(data), expected)
    assert expected.shape == ((5, 8, 3) if orientation < 5 else (8, 5, 3))


@pytest.mark.parametrize(("orientation", "turned"), [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))])
def test_ignored_exif_leaves_the_pixels_as_they_are_stored(orientation, turned):
    data = with_exif("png", orientation)
    assert np.array_equal(decode(data, exif="ignore"), ODD)
    assert np.array_equal(decode(data), turned(np.asarray(ODD)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_other_modes_are_turned_too(mode):
    image = ODD.convert(mode)
    plain = np.asarray(decode(encoded(image)))
    assert np.array_equal(decode(with_exif("png", 6, image)), np.rot90(plain, -1))


def test_a_transparent_picture_that_is_turned_is_refused_all_the_same():
    image = ODD.convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, 100))
    with pytest.raises(ValueError, match="transparent"):
        decode(with_exif("png", 6, image))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("broken", [b"", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09", b"?"])
def test_a_broken_exif_block_leaves_a_good_picture(kind, broken):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = decode(encoded(ODD, kind, exif=b"Exif\0\0" + broken))
    assert np.array_equal(picture, decode(encoded(ODD, kind)))


def test_the_orientation_counts_though_another_tag_is_broken():
    entries = struct.pack("<HHII", 0x0112, 3, 1, 3) + struct.pack("<HHII", 0x8769, 4, 1, 0xFFFF)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    assert np.array_equal(decode(encoded(ODD, "png", exif=exif)), np.asarray(ODD)[::-1, ::-1])


@pytest.mark.parametrize(
    ("channels", "of_colour", "of_grey"), [(3, "RGB", "RGB"), (1, "L", "L"), (None, "RGB", "L")]
)  # fmt: skip
def test_channels_are_those_asked_for_or_those_of_the_file(channels, of_colour, of_grey):
    assert decode(encoded(ODD), channels).mode == of_colour
    assert decode(encoded(ODD.convert("P")), channels).mode == of_colour
    assert decode(encoded(ODD.convert("L")), channels).mode == of_grey


# --- animations and pages


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff", "avif"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_several_frames_or_pages_are_refused(kind, frames):
    images = [Image.fromarray(image.transpose(1, 2, 0)) for image in pixels(frames)]
    data = encoded(images[0], kind, save_all=True, append_images=images[1:])
    if frames == 1:
        assert decode(data).size == (8, 8)
    else:
        with pytest.raises(ValueError, match=f"{frames} frames"):
            decode(data)


def test_a_phone_s_jpeg_with_a_preview_is_its_picture():
    preview = ODD.resize((3, 2))
    data = encoded(ODD, "mpo", save_all=True, append_images=[preview])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(decode(data), decode(encoded(ODD, "jpeg")))


# --- depth


def deep_png(mode):
    """A PNG of 16 bits, which Pillow cannot write in colour."""
    colour, count = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}[mode]
    rows = np.full((8, 8, count), 65535, ">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = {b"IHDR": struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0), b"IDAT": zlib.compress(raw), b"IEND": b""}
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_tiff():
    """8x8 RGB of 16 bits, uncompressed."""
    data = DEEP.astype("<u2").tobytes()
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
            (277, 3, 1, 3), (278, 3, 1, 8), (279, 4, 1, len(data))]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 14 + len(data)) + struct.pack("<HHH", 16, 16, 16) + data + directory


def deep_jp2():
    """A code stream that says 16 bits a component; its pixels are not reached."""
    data = bytearray(encoded(ODD, "jpeg2000"))
    start = data.find(b"\xff\x4f\xff\x51")
    data[start + 42 : start + 51 : 3] = b"\x0f\x0f\x0f"
    return bytes(data)


def deep_avif():
    """One that says 10 bits; its pixels are not reached."""
    data = bytearray(encoded(ODD, "avif").replace(b"pixi\0\0\0\0\x03\x08\x08\x08", b"pixi\0\0\0\0\x03\x0a\x0a\x0a"))
    data[data.find(b"av1C") + 6] |= 0x40
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        *map(deep_png, ("L", "RGB", "LA", "RGBA")),
        encoded(Image.fromarray(DEEP[..., 0]), "tiff"),
        encoded(Image.fromarray(DEEP[..., 0].astype(np.float32)), "tiff"),
        encoded(Image.fromarray(DEEP[..., 0].astype(np.int32)), "tiff"),
        deep_tiff(),
        b"P6 8 8 65535\n" + DEEP.astype(">u2").tobytes(),
        b"P6\n# a comment\n8 8\n1023\n" + (DEEP % 1024).astype(">u2").tobytes(),
        b"P5 8 8 65535\n" + DEEP[..., 0].astype(">u2").tobytes(),
        b"P3 8 8 4095\n" + b" ".join(b"%d" % v for v in (DEEP % 4096).ravel()),
        encoded(Image.fromarray(DEEP[..., 0]), "jpeg2000"),
        deep_jp2(),
        deep_avif(),
        encoded(ODD, "sgi", bpc=2),
    ],
    ids=["png L", "png RGB", "png LA", "png RGBA", "tiff I;16", "tiff F", "tiff I", "tiff RGB", "ppm", "ppm 10 bits",
         "pgm", "plain ppm", "jp2 grey", "jp2 RGB", "avif", "sgi"],
)  # fmt: skip
def test_more_than_8_bits_are_refused(data):
    with pytest.raises(ValueError, match="convert it to 8 bits"):
        decode(data)


def test_fewer_than_8_bits_are_scaled():
    assert np.asarray(decode(b"P5 2 1 3\n\x01\x03")).tolist() == [[85, 255]]
    assert np.asarray(decode(b"P1 2 1\n0 1")).tolist() == [[255, 0]]
    assert decode(encoded(ODD.convert("P", colors=4), "png", bits=2)).mode == "RGB"


# --- size, kinds


def test_a_small_file_of_very_many_pixels_is_refused_before_memory_is_taken():
    head = struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + head
        + struct.pack(">I", zlib.crc32(head[4:]))
        + struct.pack(">I", 0)
        + b"IDAT"
        + bytes(4)
    )
    with pytest.raises(ValueError, match="pixels"):
        decode(data)
    with pytest.raises(ValueError, match="13000x13000 pixels"):
        decode(b"P6 13000 13000 255\n")


KINDS = "avif bmp dds gif ico jpeg jpeg2000 pcx png ppm qoi sgi tga tiff webp"


@pytest.mark.parametrize("kind", KINDS.split())
def test_reads_every_kind_of_pixels_that_pillow_does(kind):
    image = decode(encoded(Image.new("RGB", (16, 16), (250, 10, 90)), kind))
    assert image.size == (16, 16)
    assert np.abs(np.asarray(image, int) - [250, 10, 90]).max() <= 8


def test_a_drawing_that_another_program_would_render_is_no_image():
    with pytest.raises(ValueError, match="no image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def test_endings():
    assert {
        ".png",
        ".jpg",
        ".jpe",
        ".jfif",
        ".webp",
        ".avif",
        ".jp2",
        ".tga",
        ".ppm",
        ".tiff",
        ".mpo",
    } <= image_endings()
    assert not {".eps", ".pdf", ".mpg", ".h5", ".txt", ""} & image_endings()
