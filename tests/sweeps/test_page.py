import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from measured_cells import HOW, cell, picture_of, real
from PIL import Image

from ersde_lit.metrics.protocol import Protocol
from ersde_lit.sweeps.cells import REAL, Measured, record
from ersde_lit.sweeps.page import page
from ersde_lit.sweeps.plot import save
from ersde_lit.sweeps.report import ImagesReport, Report

HOSTILE = "<script>alert('1')</script>\"><img src=https://x.org/a.png>&amp;"


class Read(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def made(tmp_path) -> str:
    """A page of two samplers, one with a hostile name, at two NFEs, and one of other seeds; some have a picture."""
    records = [real(images=8, fid=0.5)]
    for sampler in ("a", HOSTILE):
        records += [cell(sampler, nfe, seeds, fid=nfe) for seeds in ("100-119", "0-19") for nfe in (10, 20)]
    records.append(cell("late", 10, "0-19", fid=3.0))
    report = Report(records, ["fid"], HOW)
    for sampler, seeds in (("a", "100-119"), (HOSTILE, "100-119"), ("late", "0-19")):
        images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
        picture_of(tmp_path, cell(sampler, 10, seeds), images, tmp_path / "images.npz")
    save(report, "fid", tmp_path / "fid.png")
    return page(report, f"A caption. {HOSTILE}", [f"too few {HOSTILE}"], {"fid": tmp_path / "fid.png"}, tmp_path)


def test_all_is_in_one_file(made):
    read = Read(made)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "iframe", "object"})
    for _, attributes in read.tags:
        for name in {"src", "href"} & attributes.keys():
            assert attributes[name].startswith("data:")
    assert not re.search(r"url\(|@import", "".join(re.findall("<style>(.*?)</style>", made, re.DOTALL)))
    for image in read.of("img"):
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).load()


def test_every_sampler_and_nfe_and_all_that_was_said_is_there(made):
    read = Read(made)
    for words in (
        "A caption.", f"Warning: too few {HOSTILE}", "NFE 10", "NFE 20", "FID of 20 samples to 9 images of a",
        "real, held out (8 images: FID biased upwards; one set)", "runs/last.ckpt", "f" * 64, "NFE 10, 20: solver=a",
        HOW.versions["torch"], HOW.machine, "averaged weights", "Seeds 100-115",
    ):  # fmt: skip
        assert words in read.text
    assert read.text.count(HOSTILE) >= 4  # table, samples, caption, options
    assert "options of real" not in read.text
    alts = [image["alt"] for image in read.of("img")]
    assert alts == ["FID over NFE", "a, NFE 10, seeds 100-115", f"{HOSTILE}, NFE 10, seeds 100-115"]
    assert read.text.count("no picture") == 4


def test_options_that_change_with_the_nfe_are_told_apart(tmp_path):
    records = [cell("a", nfe, "0-19", fid=1.0) for nfe in (5, 10, 20)]
    records[1]["description"]["options"]["order"] = 3
    read = Read(page(Report(records, ["fid"], HOW), "", [], {}, tmp_path))
    assert "NFE 5, 20: solver=a" in read.text
    assert "NFE 10: solver=a, order=3" in read.text


def test_sets_of_images_have_a_page_too(tmp_path):
    how = Protocol(HOW.scores, HOW.statistics)
    records = [record(name, Measured({"fid": fid}, n, ()), how) for name, fid, n in ((HOSTILE, 1.25, 20), (REAL, 1, 8))]
    read = Read(page(ImagesReport(records, how), "A caption.", [], {}, tmp_path))
    assert HOW.quantisation not in read.text  # that of the model's images
    assert not read.of("script")
    assert not read.of("img")
    for words in (HOSTILE, "1.25", "Images compared with 9 images of a", "A caption.", "fewer images"):
        assert words in read.text


@pytest.mark.slow
def test_a_browser_shows_all_of_it(made, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    if (browser := next(filter(None, map(shutil.which, names)), None)) is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")

    def open_page(html: str) -> subprocess.CompletedProcess:
        path = Path(tmp_path / "page.html")
        path.write_text(html)
        flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                 "--enable-logging=stderr", "--dump-dom")  # fmt: skip
        return subprocess.run([browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=120)

    calm = open_page(made)
    assert "Provenance" in calm.stdout
    assert "CONSOLE" not in calm.stderr
    count = "[...document.images].filter(image => image.complete && image.naturalWidth).length"
    looking = f"<script>onload = () => {{ document.title = 'loaded ' + {count} }}</script></body>"
    open_to_scripts = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", made)
    assert "<title>loaded 3</title>" in open_page(open_to_scripts.replace("</body>", looking)).stdout
    refused = open_page(made.replace("</body>", "<img src='https://localhost/a.png'></body>"))
    assert "CONSOLE" in refused.stderr  # errors are seen, and nothing is fetched
