import shutil
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import SbitLineMetrics, Strike, eblc_index_sub_table_1
from image_sets import encoded
from PIL import Image

from ersde_lit.data import Emoji
from ersde_lit.data.emoji import FONT, EmojiFont

TONES = ["u1F3FB", "u1F3FF"]
PLAIN = [f"face{k}" for k in range(20)]


def bitmap(colour: tuple[int, ...]) -> bytes:
    """136x128 with empty columns at the sides, as Noto's."""
    image = Image.new("RGBA", (136, 128))
    image.paste(colour, (4, 0, 132, 128))
    return encoded(image)


# 20 faces, the first twelve in two tones of skin; face15 shows what face3 does
BITMAPS = {name: bitmap((10 * k, 0, 0, 255)) for k, name in enumerate(PLAIN)}
BITMAPS |= {f"{name}_{t}": bitmap((10 * k, 100 + t, 0, 255)) for t in range(2) for k, name in enumerate(PLAIN[:12])}
BITMAPS["face15"] = BITMAPS["face3"]


def write_font(path: Path, bitmaps: dict[str, bytes] = BITMAPS) -> Path:
    """A font with the tables of Noto's that are read: CBDT, CBLC and ligatures in GSUB."""
    builder = FontBuilder(1000)
    order = [".notdef", *bitmaps, *TONES]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({0xE000 + k: name for k, name in enumerate(order) if name in (*PLAIN, *TONES)})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    for setup in (builder.setupHorizontalHeader, builder.setupOS2, builder.setupPost):
        setup()
    rules = [f"sub {name[:-2]} {TONES[int(name[-1])]} by {name};" for name in bitmaps if "_" in name]
    builder.addOpenTypeFeatures(f"feature ccmp {{ {' '.join(rules)} }} ccmp;")
    glyphs = {}
    for name, data in bitmaps.items():
        glyphs[name] = glyph = cbdt_bitmap_format_17(b"", builder.font)
        glyph.imageData, glyph.metrics = data, SmallGlyphMetrics()
        vars(glyph.metrics).update(height=128, width=136, BearingX=0, BearingY=101, Advance=136)
    builder.font["CBDT"] = table = newTable("CBDT")
    table.version, table.strikeData = 3.0, [glyphs]
    strike, index = Strike(), eblc_index_sub_table_1(b"", builder.font)
    index.indexFormat, index.imageFormat, index.names = 1, 17, [*bitmaps]
    strike.indexSubTables = [index]
    vars(strike.bitmapSizeTable).update(
        colorRef=0, flags=1, startGlyphIndex=1, endGlyphIndex=len(bitmaps), ppemX=109, ppemY=109, bitDepth=32,
        hori=SbitLineMetrics(), vert=SbitLineMetrics(),
    )  # fmt: skip
    fields = "ascender descender widthMax caretSlopeNumerator caretSlopeDenominator caretOffset minOriginSB "
    fields += "minAdvanceSB maxBeforeBL minAfterBL pad1 pad2"
    for metrics in (strike.bitmapSizeTable.hori, strike.bitmapSizeTable.vert):
        vars(metrics).update(dict.fromkeys(fields.split(), 0))
    builder.font["CBLC"] = table = newTable("CBLC")
    table.version, table.strikes = 3.0, [strike]
    builder.save(path)
    return path


@pytest.fixture(scope="module")
def font(tmp_path_factory) -> str:
    return str(write_font(tmp_path_factory.mktemp("font") / "tiny.ttf"))


def test_bitmaps_are_cropped_halved_and_put_on_white(tmp_path):
    checks = np.zeros((128, 136, 4), np.uint8)
    checks[::2, 4:132:2] = 255, 0, 0, 255  # a quarter red, the rest transparent, so 191.25 of white
    checks[:, [*range(4), *range(132, 136)]] = 0, 0, 255, 255
    half = bitmap((0, 0, 0, 128))
    source = EmojiFont(write_font(tmp_path / "a.ttf", {"a": encoded(Image.fromarray(checks)), "b": half}), 64)
    a, b = source.read(np.array([0, 1])).astype(int)
    assert a.shape == (3, 64, 64)
    assert np.abs(a - np.array([255, 191.25, 191.25])[:, None, None]).max() < 1
    assert (b == 127).all()


def test_what_differs_in_skin_tone_alone_is_held_out_together(font, tmp_path):
    source = EmojiFont(font, 64)
    family = dict(zip(BITMAPS, source.families.tolist(), strict=True))
    assert family["face9"] == family["face9_0"] == family["face9_1"] == 9
    assert family["face15"] == family["face3"]
    assert len(set(family.values())) == 19
    data = Emoji(str(tmp_path), font)
    red = {name: sorted({int(image[0, 5, 5]) for image in data.split(name).images}) for name in ("train", "val")}
    assert red["val"] == [90, 190]
    assert not set(red["val"]) & set(red["train"])
    assert [len(data.split(name).labels) for name in ("train", "val", "test")] == [40, 4, 4]
    assert data.split("train").labels.unique().tolist() == [-1]


def test_the_images_are_kept_and_the_font_is_needed_once(font, tmp_path, monkeypatch):
    Emoji(str(tmp_path), font).prepare_data()
    monkeypatch.setattr(EmojiFont, "read", None)
    assert len(Emoji(str(tmp_path), font).split("train").labels) == 40
    assert len(Emoji(str(tmp_path), str(tmp_path / "gone.ttf")).split("train").labels) == 40


def test_images_of_another_font_are_not_taken_for_this_one(font, tmp_path):
    Emoji(str(tmp_path), font).prepare_data()
    other = write_font(tmp_path / "other.ttf", {**BITMAPS, "face2": bitmap((1, 2, 3, 255))})
    with pytest.raises(ValueError, match=r"emoji64 was made from another font than .*other.ttf: delete it"):
        Emoji(str(tmp_path), str(other)).split("train")


def bare(path: Path) -> Path:
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef"])
    builder.save(path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "there is no font .*: apt-get install fonts-noto-color-emoji, or pass font=PATH"),
        (lambda path: path.write_bytes(b"?"), "is damaged or no font of colour bitmaps: TTLibError"),
        (bare, "is damaged or no font of colour bitmaps: KeyError"),
        (lambda path: path.write_bytes(write_font(path).read_bytes()[:3000]), "is damaged or no font of colour"),
        (lambda path: write_font(path, {"a": b"\x89PNG?"}), "the bitmap of a is damaged"),
    ],
)
def test_a_font_that_is_of_no_use_is_one_line(tmp_path, make, message):
    make(tmp_path / "a.ttf")
    with pytest.raises(ValueError, match=message) as caught:
        Emoji(str(tmp_path), str(tmp_path / "a.ttf")).split("train")
    assert "\n" not in str(caught.value)
    assert "a.ttf" in str(caught.value)
    assert not (tmp_path / "emoji64").exists()


@pytest.mark.skipif(not Path(FONT).exists(), reason="needs Debian's fonts-noto-color-emoji")
def test_notos_emoji(tmp_path):
    data = Emoji(str(tmp_path))
    train, val = data.split("train").images, data.split("val").images
    assert (len(train), len(val)) == (3536, 390)
    assert tuple(train.shape[1:]) == data.image_shape
    assert not {x.numpy().tobytes() for x in train} & {x.numpy().tobytes() for x in val}
    corners = train[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all(1).float().mean() > 0.9  # on white
    shutil.rmtree(data.folder)
