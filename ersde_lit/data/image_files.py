"""Image files of 8 or 16 bits as floats and back, the names of those in a folder, and pairs of equal names."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ersde_lit.data.decode import COLOUR, decode, decoder_errors, upright
from ersde_lit.data.files import Folder
from ersde_lit.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NAMED = 3  # of the files without a partner


def read_image(path: str | Path) -> tuple[Tensor, int]:
    """Image as float32 [C, H, W] in [-1, 1], C = 1 (grey) or 3, and the bits a channel of its file, 8 or 16.

    Raises:
        UserError: as for `read_pixels`.
    """
    pixels = read_pixels(path)
    return to_float(pixels), 8 * pixels.itemsize


def read_pixels(path: str | Path) -> Tensor:
    """Pixels of an image, uint8 [C, H, W], or uint16 of a PNG of 16 bits; upright.

    Raises:
        UserError: it cannot be read or is damaged, transparent, of floats, or of 16 bits and no PNG; names the file.
    """
    with decoder_errors(f"{path} cannot be used"):
        data = Path(path).read_bytes()
        is_deep = data.startswith(SIGNATURE) and data[24:25] == b"\x10"  # IHDR's bit depth
        pixels = _deep_pixels(data) if is_deep else np.array(decode(data))
        return rearrange(torch.from_numpy(np.atleast_3d(pixels)), "h w c -> c h w").contiguous()


def to_float(pixels: Tensor) -> Tensor:
    """Pixels, uint8 or uint16 of any shape, as float32 in [-1, 1]."""
    return pixels / (torch.iinfo(pixels.dtype).max / 2) - 1


def shape_of(path: str | Path) -> tuple[int, int, int]:
    """(C, H, W) of what `read_pixels` returns, at a third of its time.

    Raises:
        UserError: it is no image; names the file.
    """
    with decoder_errors(f"{path} cannot be used"), Image.open(Path(path).expanduser()) as image:
        if image.format == "TIFF":
            image.load()  # turns it; before, its size is that of the turned one, and its tag says to turn it
        height, width = upright(image).size[::-1]
        return (3 if image.mode in COLOUR else 1), height, width


def encode_png(image: Tensor, bits: int) -> bytes:
    """A PNG of 8 or 16 bits a channel; of what `read_image` read, the same pixels.

    Args:
        image: float [C, H, W] in [-1, 1] and clipped to it, C = 1 or 3.

    Raises:
        FloatingPointError: it holds NaN.
    """
    if image.isnan().any():
        raise FloatingPointError("the image holds NaN, so it is not written")
    half = (2**bits - 1) / 2
    pixels = (image.float() * half + (half + 0.5)).clip(0, 2 * half).cpu().numpy().astype(f">u{bits // 8}")
    rows = np.ascontiguousarray(rearrange(pixels, "c h w -> h (w c)")).view(np.uint8)
    rows = np.pad(np.diff(rows, axis=0, prepend=np.uint8(0)), [(0, 0), (1, 0)], constant_values=2)  # filter 2: "up"
    channels, height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    return SIGNATURE + b"".join(  # Pillow writes no colours of 16 bits
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def image_names(folder: str | Path) -> list[str]:
    """Names of the image files in a folder and below, relative to it and sorted; hidden ones are left out.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"there is no folder {folder}")
    return Folder(path).images


def pair_shapes(degraded: str | Path, clean: str | Path) -> dict[str, tuple[int, int, int]]:
    """(C, H, W) of the images of two folders by name, sorted; each file's header is read once.

    Raises:
        UserError: an image is in one of them only or has another size or number of channels there, or they are the same
            folder; or a file is no image.
    """
    names, partners = image_names(degraded), image_names(clean)
    if os.path.samefile(Path(degraded).expanduser(), Path(clean).expanduser()):
        raise UserError(f"{degraded} and {clean} are the same folder: a pair is a degraded and a clean image")
    if single := sorted({*names} ^ {*partners}):
        told = ", ".join(f"{name} (only in {degraded if name in names else clean})" for name in single[:NAMED])
        more = ", ..." if len(single) > NAMED else ""
        raise UserError(f"{len(single)} images without a partner of the same name: {told}{more}")
    shapes = {}
    for name in names:
        theirs, shapes[name] = (shape_of(Path(folder, name).expanduser()) for folder in (degraded, clean))
        if theirs != shapes[name]:
            there, here = in_words(theirs), in_words(shapes[name])
            raise UserError(f"{name} is {there} in {degraded} but {here} in {clean}: a pair has one size and colour")
    return shapes


def in_words(shape: tuple[int, ...]) -> str:
    """A shape (C, H, W) for messages: 64x48 (grey)."""
    channels, height, width = shape
    return f"{width}x{height} ({'grey' if channels == 1 else 'colour'})"


def _deep_pixels(data: bytes) -> np.ndarray:
    """Pixels of a PNG of 16 bits, uint16 [H, W] or [H, W, 3].

    Of a colour's two bytes Pillow takes the first; told that the other byte order is meant, it takes the second.
    torchvision reads both, but a damaged file ends its process.
    """
    first, second = (Image.open(io.BytesIO(data), formats=["PNG"]) for _ in range(2))
    if first.mode.endswith("A"):
        raise UserError("it has 16 bits and transparency: put it on a background first")
    first.load()
    if first.mode != "RGB":
        pixels = np.asarray(upright(first)).astype(np.uint16)
    else:
        second.tile = [(*second.tile[0][:3], "RGB;16L")]  # type: ignore[list-item]
        second.load()
        pixels = np.asarray(upright(first)) * np.uint16(256) + np.asarray(upright(second))
    if (clear := first.info.get("transparency")) is not None and (np.atleast_3d(pixels) == clear).all(-1).any():
        raise UserError("it is transparent: put it on a background first")
    return pixels
