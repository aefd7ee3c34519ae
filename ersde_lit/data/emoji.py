"""Noto's emoji from Debian's font: 3,926 colour images of 64x64, for trials on small machines."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ersde_lit.data.array import ArrayInfo, read_array, splits
from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.data.convert import convert, plan_of
from ersde_lit.data.pictures import centre_square, to_array
from ersde_lit.data.source import Source
from ersde_lit.errors import UserError, needs_extra

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # of Debian's package fonts-noto-color-emoji
SKIN_TONES = {f"u1F3F{digit}" for digit in "BCDEF"}  # glyph names of the five modifiers


class EmojiFont(Source):
    """The bitmaps of a colour font (tables CBDT and CBLC), on white, in the font's order.

    Attributes:
        families: int64 [N], a number for each image: the same for those that are equal or differ in the tone of skin.

    Args:
        font: the file.
        size: pixels along the side of an image.
    """

    num_classes = 0

    def __init__(self, font: str | Path, size: int) -> None:
        with needs_extra("emoji", "Emoji"):
            from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

        self.path = Path(font).expanduser()
        self.image_shape = (3, size, size)
        try:
            data = self.path.read_bytes()
            tables = TTFont(io.BytesIO(data))
            bitmaps = {name: glyph.imageData for name, glyph in tables["CBDT"].strikeData[0].items()}
            self.families = _families(bitmaps, tables)
        except FileNotFoundError:
            raise UserError(
                f"there is no font {self.path}: apt-get install fonts-noto-color-emoji, or pass font=PATH"
            ) from None
        except Exception as error:  # whatever a damaged table leads to
            raise UserError(f"{self.path} is damaged or no font of colour bitmaps: {error!r}") from None
        self.bitmaps = [*bitmaps.items()]
        self.labels = np.full(len(self.bitmaps), -1)
        self.identity = hashlib.sha256(data + str(size).encode()).hexdigest()

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._image(*self.bitmaps[index]) for index in indices])

    def _image(self, name: str, data: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(data)) as bitmap:
                picture = bitmap.convert("RGBA")
        except Exception as error:
            raise UserError(f"{self.path}: the bitmap of {name} is damaged: {error}") from None
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        return to_array(centre_square(white.convert("RGB"), self.image_shape[1]))


class Emoji(ImageDataModule):
    """Google's Noto emoji (SIL Open Font License 1.1), 3,926 images without classes.

    Bitmaps of 136x128, whose outermost columns are empty, are cropped to 128x128, put on white, and halved. A tenth of
    the families is held out as "val" and "test" (the same images): a family is whatever differs in the tone of skin
    alone. The font is full of those, and one of them in "train" would make a held-out image of little worth.

    Args:
        root: folder; the images are kept in its `emoji64`, made in seconds if it is not there.
        font: the file; that of Debian's package fonts-noto-color-emoji if nothing is said.
        batch_size: images a batch.
        horizontal_flip: mirror half of the training images.

    Raises:
        ValueError: the font is absent or damaged, or `emoji64` is of another font; says what to do.
    """

    image_shape = (3, 64, 64)
    num_classes = 0

    def __init__(
        self, root: str = "data", font: str = FONT, batch_size: int = 128, horizontal_flip: bool = False
    ) -> None:
        super().__init__(batch_size, horizontal_flip)
        self.root, self.font = root, font

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser() / "emoji64"

    def prepare_data(self) -> None:
        """Converts the font. Lightning calls it on one rank only; `load` makes good if nobody did."""
        if self.folder.exists() and not Path(self.font).expanduser().exists():
            return
        source = EmojiFont(self.font, self.image_shape[1])
        held_out = np.flatnonzero(source.families % 10 == 9)
        if not self.folder.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            convert(source, self.folder, held_out, command=f"emoji of {self.font}")
        elif ArrayInfo.read(self.folder).source != plan_of(source, held_out).source:
            raise UserError(
                f"{self.folder} was made from another font than {self.font}: delete it, or set another root"
            )

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        return splits(*read_array(self.folder))


def _families(bitmaps: dict[str, bytes], tables: Any) -> np.ndarray:
    """A number for each bitmap, int64 [N], counted from 0 in the order in which families appear."""
    lookups = tables["GSUB"].table.LookupList.Lookup if "GSUB" in tables else []
    ligatures = {  # the glyphs that a glyph stands for when they follow one another
        ligature.LigGlyph: (first, *ligature.Component)
        for lookup in lookups
        for table in lookup.SubTable
        for first, following in getattr(table, "ligatures", {}).items()
        for ligature in following
    }
    numbers: dict[tuple[str, ...], int] = {}
    seen: dict[bytes, int] = {}
    found = []
    for name, data in bitmaps.items():
        plain = tuple(part for part in ligatures.get(name, (name,)) if part not in SKIN_TONES)
        found.append(seen.setdefault(data, numbers.setdefault(plain, len(numbers))))
    return np.array(found)
