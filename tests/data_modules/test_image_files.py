import struct
import zlib

import numpy as np
import pytest
import torch
from image_sets import encoded, pixels, png, write_folder
from PIL import Image

from ersde_lit.data.image_files import encode_png, image_names, pair_shapes, read_image, read_pixels, shape_of
from ersde_lit.sampling.images import quantise


def every_value(bits: int, channels: int) -> torch.Tensor:
    """All values of a channel as floats, in each channel in another order; not square."""
    values = torch.arange(2**bits, dtype=torch.float32).view(2 ** (bits // 2 - 1), -1)
    image = torch.stack([values, values.flip(0), values.flip(1)][:channels])
    return image / (2 ** (bits - 1) - 0.5) - 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_value_comes_back_from_a_file(tmp_path, bits: int, channels: int) -> None:
    image = every_value(bits, channels)
    (tmp_path / "a.png").write_bytes(encode_png(image, bits))
    read, told = read_image(tmp_path / "a.png")
    assert told == bits
    assert read.dtype == torch.float32
    assert torch.equal(read, image)
    with Image.open(tmp_path / "a.png") as other:  # another reader finds it sound, and the same in its 8 bits
        other.load()
        assert other.mode == ("RGB" if channels == 3 else "I;16" if bits == 16 else "L")
        seen = np.atleast_3d(other).transpose(2, 0, 1)
    exact = seen.dtype == np.uint16 or bits == 8
    whole = ((image.double() + 1) * (2 ** (bits - 1) - 0.5)).round().numpy()
    assert np.array_equal(seen, whole if exact else whole // 256)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_floats_are_rounded_and_clipped_as_samples_are(tmp_path) -> None:
    image = torch.linspace(-1.2, 1.2, 3 * 1000).view(3, 20, 50)
    (tmp_path / "a.png").write_bytes(encode_png(image, 8))
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read).transpose(2, 0, 1), quantise(image))
    (tmp_path / "a.png").write_bytes(encode_png(image, 16))
    assert (read_image(tmp_path / "a.png")[0] - image.clip(-1, 1)).abs().max() < 0.51 / 32767.5


def test_other_files_are_read_as_8_bits(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("L", (5, 4), 255), "jpeg"))
    image, bits = read_image(tmp_path / "a.jpg")
    assert torch.equal(image, torch.ones(1, 4, 5))
    assert bits == 8


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def turned(orientation: int) -> bytes:
    """An EXIF block of this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def deep(
    channels: int, colour: int, size: int = 4, orientation: int = 0, broken: bytes = b"", clear: int | None = None
) -> bytes:
    """A PNG of 16 bits: random, unfiltered; `clear`: its first pixel's colour, plus that, is transparent."""
    values = np.random.default_rng(0).integers(0, 65536, (size, size * channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    parts = {b"IHDR": struct.pack(">IIBBBBB", size, size, 16, colour, 0, 0, 0)}
    parts |= {b"eXIf": turned(orientation)[6:]} if orientation else {}
    parts |= {} if clear is None else {b"tRNS": (values[0, :channels] + clear).astype(">u2").tobytes()}
    parts |= {b"IDAT": broken or zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (3, 2)])
def test_files_of_16_bits_are_turned_upright_too(tmp_path, channels: int, colour: int) -> None:
    for name, orientation in (("a", 0), ("b", 6)):
        (tmp_path / f"{name}.png").write_bytes(deep(channels, colour, orientation=orientation))
    (plain, _), (upright, _) = (read_image(tmp_path / name) for name in ("a.png", "b.png"))
    assert torch.equal(upright, plain.rot90(-1, (1, 2)))


@pytest.mark.parametrize("ending", ["tiff", "png", "jpg", "webp"])
def test_the_shape_of_a_turned_image_is_that_of_its_pixels(tmp_path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (6, 4)).save(path, exif=turned(6))
    assert shape_of(path) == tuple(read_pixels(path).shape) == (3, 6, 4)


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (3, 2)])
def test_a_transparent_colour_that_no_pixel_of_16_bits_has_is_nothing(tmp_path, channels: int, colour: int) -> None:
    for name, clear in (("a", None), ("b", 1)):
        (tmp_path / f"{name}.png").write_bytes(deep(channels, colour, clear=clear))
    assert torch.equal(read_image(tmp_path / "a.png")[0], read_image(tmp_path / "b.png")[0])


BAD = {
    "nothing": (b"", "it is no image"),
    "text": (b"<html>", "it is no image"),
    "cut short": (png(pixels(1)[0])[:-40], "truncated"),
    "16 bits cut short": (deep(3, 2)[:-40], "truncated"),
    "16 bits of nonsense": (deep(3, 2, broken=b"nonsense"), "broken data stream"),
    "transparent": (encoded(Image.new("RGBA", (4, 4))), "transparent"),
    "16 bits with alpha": (deep(4, 6), "16 bits and transparency"),
    "16 bits, grey with alpha": (deep(2, 4), "16 bits and transparency"),
    "16 bits with a transparent colour": (deep(3, 2, clear=0), "it is transparent"),
    "16 bits, grey with a transparent level": (deep(1, 0, clear=0), "it is transparent"),
    "floats": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "tiff"), "of the kind F"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path, kind: str) -> None:
    content, message = BAD[kind]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.png cannot be used: .*{message}") as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"a\.png cannot be used: No such file"):
        read_image(tmp_path / "a.png")


def test_nan_is_not_written(tmp_path) -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        (tmp_path / "a.png").write_bytes(encode_png(torch.full((1, 4, 4), torch.nan), 8))
    assert not [*tmp_path.iterdir()]


def folder(path, *names: str):
    return write_folder(path, dict.fromkeys(names, encoded(Image.new("L", (6, 4)))))


def test_names_are_those_of_images_at_any_depth_in_order(tmp_path) -> None:
    assert image_names(folder(tmp_path, "b.png", "a/c.JPG", "notes.txt", ".d.png")) == ["a/c.JPG", "b.png"]


def test_pairs_have_equal_names(tmp_path) -> None:
    names = ["a/1.png", "b.png"]
    assert [*pair_shapes(folder(tmp_path / "x", *names), folder(tmp_path / "y", *names))] == names


@pytest.mark.parametrize(
    ("degraded", "clean", "message"),
    [
        (["a.png", "b.png"], ["b.png"], r"1 images without a partner .*: a\.png \(only in .*x\)$"),
        (["b.png"], ["a.png", "b.png"], r": a\.png \(only in .*y\)$"),
        (["a.png"], ["a.jpg"], r"a\.jpg \(only in .*y\), a\.png \(only in .*x\)$"),
        (["0.png", "1.png", "2.png", "3.png"], ["9.png"], r"^5 images .*2\.png \(only in .*x\), \.\.\.$"),
        (["a.txt"], ["a.png"], "x holds no image"),
        (["a.png"], [], "there is no folder .*y"),
    ],
)
def test_unpaired_images_are_refused_by_name(tmp_path, degraded, clean, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pair_shapes(folder(tmp_path / "x", *degraded), folder(tmp_path / "y", *clean))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            encoded(Image.new("L", (4, 6))),
            r"b\.png is 6x4 \(grey\) in .*x but 4x6 \(grey\) in .*y: a pair has",
        ),
        (encoded(Image.new("RGB", (6, 4))), r"b\.png is 6x4 \(grey\) in .*x but 6x4 \(colour\)"),
        (b"<html>", r"y/b\.png cannot be used: cannot identify"),
    ],
)
def test_pairs_have_one_size_and_colour(tmp_path, content: bytes, message: str) -> None:
    folder(tmp_path / "x", "a.png", "b.png")
    write_folder(folder(tmp_path / "y", "a.png"), {"b.png": content})
    with pytest.raises(ValueError, match=message) as caught:
        pair_shapes(tmp_path / "x", tmp_path / "y")
    assert "\n" not in str(caught.value)


SHAPES = {
    "grey": (png(pixels(1, 5, 1)[0]), (1, 5, 5)),
    "colour": (encoded(Image.new("RGB", (6, 4)), "jpeg"), (3, 4, 6)),
    "palette": (encoded(Image.new("P", (6, 4))), (3, 4, 6)),
    "turned": (encoded(Image.new("RGB", (6, 4)), exif=turned(6)), (3, 6, 4)),
    "16 bits": (deep(1, 0), (1, 4, 4)),
    "16 bits in colour": (deep(3, 2), (3, 4, 4)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_shape_is_known_before_the_pixels_are_read(tmp_path, kind: str) -> None:
    content, shape = SHAPES[kind]
    (tmp_path / "a.png").write_bytes(content)
    assert shape_of(tmp_path / "a.png") == tuple(read_image(tmp_path / "a.png")[0].shape) == shape


def test_a_folder_is_no_partner_of_itself(tmp_path) -> None:
    folder(tmp_path / "x", "a.png")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    with pytest.raises(ValueError, match="the same folder"):
        pair_shapes(tmp_path / "x", tmp_path / "y")
