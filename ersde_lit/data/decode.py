"""Decoder of image files for training data and metrics: upright, opaque, 8 bits a channel."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from ersde_lit.errors import UserError

Exif = Literal["apply", "ignore"]

MOST_PIXELS = 120_000_000
UNREADABLE = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # drawings that other programs render, and no images at all
ONE_PICTURE = {"MPO", "PSD"}  # whose other frames are a preview, another eye or layers
GREY = ("1", "L", "LA")
COLOUR = ("P", "RGB", "CMYK", "YCbCr", "PA", "RGBA")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limit is said in words


def decode(data: bytes, channels: Literal[1, 3] | None = None, exif: Exif = "apply") -> Image.Image:
    """Decoded image in the mode RGB or L (grey).

    Args:
        channels: 3 for RGB, 1 for grey, whatever the file has; None: grey where the file is grey.
        exif: "apply" turns and mirrors it as its EXIF orientation says, as every viewer does; "ignore" takes the pixels
            as they are stored, as EDM's data tool and torchvision do (but Pillow itself turns a TIFF).

    Raises:
        ValueError: it is not opaque, has more than 8 bits a channel, several frames or pages, or too many pixels.
        Exception: whatever the decoder says of damaged data.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.UnidentifiedImageError:
        raise UserError("it is no image, or its beginning is damaged") from None
    except Image.DecompressionBombError:
        raise UserError(f"it has more than {MOST_PIXELS:,} pixels: make it smaller") from None
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"it has {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}: make it smaller")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in ONE_PICTURE:
        raise UserError(f"it has {frames} frames or pages: save each as an image of its own, or leave it out")
    if image.mode not in GREY + COLOUR:
        raise UserError(f"its pixels are of the kind {image.mode}: convert it to 8 bits a channel")
    if _is_deep(image, data):
        raise UserError("it has more than 8 bits a channel: convert it to 8 bits")
    image.load()
    grey = image.mode in GREY
    if exif == "apply":
        image = upright(image)
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise UserError("it is transparent: put it on a background first")
    return image.convert("L" if channels == 1 or (channels is None and grey) else "RGB")


@contextmanager
def decoder_errors(what: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError that begins with `what`."""
    try:
        yield
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{what}: {reason}") from None


@cache
def image_endings() -> frozenset[str]:
    """Endings of the image files that can be read, in lower case and with their dot."""
    readable = {*_formats(), "MPO"}  # which Pillow opens as JPEG
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in readable)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in UNREADABLE)


def upright(image: Image.Image) -> Image.Image:
    """Image turned by its EXIF orientation; ImageOps.exif_transpose fails where any other tag is broken."""
    turn = None
    with suppress(Exception):  # a block that cannot be read says nothing
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file has more bits a channel than the 8 to which Pillow quietly cuts them."""
    tiles = getattr(image, "tile", ())  # what decoders are told
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,))) > 8  # type: ignore[attr-defined]  # BitsPerSample
    if image.format == "PNG":
        return data[24] > 8  # IHDR's bit depth
    if image.format == "PPM":
        return any(isinstance(tile[3], tuple) and tile[3][1] > 255 for tile in tiles)  # its maximal value
    if image.format == "JPEG2000":
        start = data.find(b"\xff\x4f\xff\x51")  # the code stream, whose size marker gives the depth of each component
        (count,) = struct.unpack_from(">H", data, start + 40)
        return any(data[start + 42 + 3 * k] & 0x7F > 7 for k in range(count))
    if image.format == "AVIF":
        start = data.find(b"av1C")
        return start >= 0 and bool(data[start + 6] & 0x40)  # high_bitdepth
    return any(tile[0] == "SGI16" for tile in tiles)
