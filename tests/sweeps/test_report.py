import csv
import io
import json
import re
import statistics

import pytest
from rich.console import Console

from ersde_lit.metrics.protocol import Protocol
from ersde_lit.sweeps.cells import REAL, Cells, Measured, record
from ersde_lit.sweeps.report import ImagesReport, Report, Summary, sizes, to_csv

SCORES = {"features": "Edges (3)", "preprocessing": "as they are", "fingerprint": "abc", "reference": "9 images"}
HOW = Protocol({**SCORES, "fid": "of all images"}, "9 images, |mu| 1, tr sigma 2", "averaged weights", "f" * 64)


def cell(sampler: str, nfe: int, seeds: str, *, asked: int | None = None, images: int = 20, **scores: float):
    description = {"seeds": seeds, "options": {"nfe": nfe, "solver": sampler}, "checkpoints": {"ckpt_path": "f" * 64}}
    of_cell = {"nfe": nfe, "asked": asked or nfe, "seeds": seeds, "description": description, "seconds": 1.5}
    return record(sampler, Measured(scores, images, ()), HOW, **of_cell)


def real(**scores: float):
    return record(REAL, Measured(scores, 20, ()), HOW)


def test_a_summary_is_mean_spread_and_best():
    summary = Summary((0.172, 0.165, 0.170))
    assert summary.mean == pytest.approx(0.169)
    assert summary.std == pytest.approx(statistics.stdev((0.172, 0.165, 0.170)))
    assert (summary.best("fid"), summary.best("precision")) == (0.165, 0.172)
    assert summary.text("fid", best=False) == "0.1690 ± 0.0036"
    assert summary.text("fid", best=True) == "0.165"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((3.14159,), "3.142"),
        ((2.0, 2.0), "2"),
        ((100.0, 140.0), "120 ± 28"),
        ((1.0, 1.01), "1.0050 ± 0.0071"),
        ((float("nan"), 1.0), "nan"),
    ],
)
def test_the_spread_has_two_digits_and_sets_those_of_the_mean(values, text):
    assert Summary(values).text("fid", best=False) == text


RECORDS = [
    real(fid=0.5, precision=0.9),
    cell("a", 10, "0-19", fid=3.0, precision=0.5),
    cell("a", 10, "20-39", fid=3.2, precision=0.7),
    cell("heun", 9, "0-19", asked=10, fid=2.0, precision=0.1),
    cell("a", 20, "0-19", fid=1.0, precision=0.8),
    cell("a", 20, "20-39", fid=1.5, precision=0.8),
]


def test_rows_have_the_best_of_a_column_in_bold_and_say_what_was_run():
    report = Report(RECORDS, ["fid", "precision"])
    assert report.header == ["sampler", "NFE 10", "NFE 20"]
    assert report.rows("fid") == [
        ["a", "3.10 ± 0.14", "1.25 ± 0.35"],
        ["heun", "**2 (9 calls) (1 of 2 sets)**", ""],
        [REAL, "0.5", "0.5"],
    ]
    assert report.rows("precision")[0][1] == "**0.60 ± 0.14**"  # the larger the better
    assert Report(RECORDS, ["fid"], best=True).rows("fid")[0] == ["a", "3", "1"]


def test_a_sampler_of_somebody_may_make_any_number_of_calls():
    report = Report([cell("three", 6, "0-19", asked=10, fid=2.0), cell("a", 10, "0-19", fid=3.0)], ["fid"])
    assert report.rows("fid") == [["three", "**2 (6 calls)**"], ["a", "3"]]


def test_markdown_and_terminal_show_the_same():
    report = Report(RECORDS, ["fid", "precision"])
    markdown = report.markdown(str(HOW))
    assert "| a | 3.10 ± 0.14 | 1.25 ± 0.35 |" in markdown
    assert markdown.index("FID\n") < markdown.index("precision\n") < markdown.index(str(HOW))
    console = Console(file=io.StringIO(), width=100)
    for table in report.tables():
        console.print(table)
    shown = console.file.getvalue()
    for row in report.rows("fid") + report.rows("precision"):
        assert re.search(" *│ *".join(re.escape(text.strip("*")) for text in row), shown), row


def test_labels_that_look_like_markup_are_shown_as_they_are():
    report = Report([cell("[red]|x", 5, "0-19", fid=1.0)], ["fid"])
    console = Console(file=io.StringIO(), width=100)
    for table in report.tables():
        console.print(table)
    assert "[red]|x" in console.file.getvalue()
    assert "| [red]\\|x | 1 |" in report.markdown("")


def test_csv_has_a_row_a_cell_with_all_that_changes_its_number():
    rows = list(csv.DictReader(io.StringIO(Report(RECORDS, ["fid"]).csv())))
    assert len(rows) == len(RECORDS)
    row = rows[3]
    assert (row["sampler"], row["nfe"], row["seeds"], row["images"]) == ("heun", "9", "0-19", "20")
    assert (float(row["fid"]), float(row["precision"])) == (2.0, 0.1)  # also what is not in the table
    for name, value in (
        ("features", "Edges (3)"), ("fingerprint", "abc"), ("preprocessing", "as they are"), ("reference", "9 images"),
        ("statistics", HOW.statistics), ("weights", "averaged weights"), ("quantisation", HOW.quantisation),
        ("option solver", "heun"), ("sha256 ckpt_path", "f" * 64), ("version torch", HOW.versions["torch"]),
    ):  # fmt: skip
        assert row[name] == value


def test_the_plot_has_a_line_a_sampler_with_bars_over_the_sets(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    errorbar = Axes.errorbar

    def spy(axes, x, y, bars, **given):
        drawn[given["label"]] = (x, y, bars)
        return errorbar(axes, x, y, bars, **given)

    monkeypatch.setattr(Axes, "errorbar", spy)
    Report(RECORDS, ["fid"]).plot(tmp_path / "fid.png", "fid")
    x, y, (low, high) = drawn["a"]
    assert x == [10, 20]
    assert y == pytest.approx([3.1, 1.25])
    assert low == pytest.approx([0.1, 0.25])
    assert high == pytest.approx([0.1, 0.25])
    assert drawn["heun"][0] == [9]
    assert [path.name for path in tmp_path.iterdir()] == ["fid.png"]


def test_a_metric_below_zero_is_plotted_too(tmp_path):
    Report([cell("a", 5, "0-19", kid=-0.01), cell("a", 10, "0-19", kid=0.02)], ["kid"]).plot(tmp_path / "k.png", "kid")
    assert (tmp_path / "k.png").stat().st_size > 1000


def test_sets_of_images_are_rows():
    report = ImagesReport([record("a.zip", Measured({"fid": 1.25, "kid": 0.5}, 1234, ()), HOW)])
    assert report.header == ["images", "number", "FID", "KID"]
    assert report.rows() == [["a.zip", "1,234", "1.25", "0.5"]]


def test_a_name_with_asterisks_is_shown_as_it_is():
    (table,) = ImagesReport([record("*.zip*", Measured({"fid": 1.25}, 1234, ()), HOW)]).tables()
    assert [text.plain for text in table.columns[0].cells] == ["*.zip*"]


def test_a_cell_that_is_nan_is_seen_and_is_never_the_best():
    nan = float("nan")
    records = [cell("a", 5, "0-19", fid=nan), cell("b", 5, "0-19", fid=3.0), cell("c", 5, "0-19", fid=4.0)]
    assert Report(records, ["fid"]).rows("fid") == [["a", "nan"], ["b", "**3**"], ["c", "4"]]
    assert next(iter(csv.DictReader(io.StringIO(Report(records, ["fid"]).csv()))))["fid"] == "nan"
    sets = [cell("a", 5, "0-19", fid=1.0), cell("a", 5, "20-39", fid=nan)]
    for best in (False, True):
        for order in (sets, sets[::-1]):
            assert Report(order, ["fid"], best).rows("fid") == [["a", "nan"]]


def test_a_nan_is_drawn_as_a_gap(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    scales = []
    setter = Axes.set
    monkeypatch.setattr(Axes, "set", lambda axes, **given: scales.append(given["yscale"]) or setter(axes, **given))
    records = [cell("a", 5, "0-19", fid=float("nan")), cell("a", 10, "0-19", fid=2.0)]
    Report(records, ["fid"]).plot(tmp_path / "fid.png", "fid")
    assert scales == ["log"]


def test_sizes_are_said_once_where_they_are_the_same():
    def of(name, shape):
        return record(name, Measured({"fid": 1.0}, 20, (), shape), HOW)

    assert sizes([of("a", (3, 64, 64)), of("b", (3, 64, 64))]) == "Images: 64x64, 3 channels."
    assert sizes([of("a", (3, 64, 64)), of("b", (1, 8, 32))]) == "Images: a 64x64, 3 channels; b 8x32, 1 channel."
    old = {name: value for name, value in of("a", None).items() if name != "image_size"}
    assert sizes([old]) == ""
    assert list(csv.DictReader(io.StringIO(to_csv([old, of("b", (1, 8, 8))]))))[1]["image_size"] == "8x8, 1 channel"


class TestCells:
    def test_a_nan_comes_back(self, tmp_path):
        Cells(tmp_path / "out").add(cell("a", 5, "0-19", fid=float("nan")))
        (kept,) = Cells(tmp_path / "out").read()
        assert kept["scores"]["fid"] != kept["scores"]["fid"]

    def test_a_record_is_kept_as_it_was_and_in_its_place(self, tmp_path):
        cells = Cells(tmp_path / "out")
        for one in RECORDS:
            cells.add(one)
        assert cells.read() == RECORDS
        again = cell("a", 10, "0-19", kid=7.0)
        cells.add(again)
        assert [r["scores"] for r in cells.read()][:3] == [
            RECORDS[0]["scores"], {"fid": 3.0, "precision": 0.5, "kid": 7.0}, RECORDS[2]["scores"],
        ]  # fmt: skip
        cells.add(cell("a", 10, "0-19", images=10, fid=9.0))  # of other images: nothing joins
        assert cells.read()[1]["scores"] == {"fid": 9.0}
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells.jsonl"]

    def test_only_cells_of_the_same_seeds_are_compared(self, tmp_path):
        cells = Cells(tmp_path / "out")
        for one in RECORDS:
            cells.add(one)
        assert cells.of_sets({"20-39"}) == [RECORDS[0], RECORDS[2], RECORDS[5]]

    def test_a_damaged_file_is_named(self, tmp_path):
        cells = Cells(tmp_path)
        (tmp_path / "cells.jsonl").write_text(json.dumps(RECORDS[0]) + "\n{")
        with pytest.raises(ValueError, match=r"cells.jsonl is damaged"):
            cells.read()

    def test_two_processes_are_not_at_work_in_one_place(self, tmp_path):
        with (
            Cells(tmp_path / "out").taken(),
            pytest.raises(ValueError, match="another process is working on it"),
            Cells(tmp_path / "out").taken(),
        ):
            pass
        with Cells(tmp_path / "out").taken():
            pass  # free again


class TestProtocol:
    @pytest.mark.parametrize("name", ["features", "preprocessing", "fingerprint", "fid"])
    def test_what_changes_a_number_is_a_difference(self, name):
        other = Protocol({**HOW.scores, name: "another"}, HOW.statistics, HOW.weights, HOW.checkpoint)
        assert other.differences(HOW.plain) == f"{name} ({HOW.scores[name]} there, another here)"

    def test_words_machine_and_versions_are_none(self):
        scores = {**HOW.scores, "reference": "other words"}
        other = Protocol(scores, HOW.statistics, HOW.weights, HOW.checkpoint, machine="m", versions={"torch": "0"})
        assert other.differences(HOW.plain) == ""

    def test_other_metrics_may_join(self):
        other = Protocol({**SCORES, "kid": "subsets"}, HOW.statistics, HOW.weights, HOW.checkpoint)
        assert other.differences(HOW.plain) == ""

    @pytest.mark.parametrize("name", ["statistics", "weights", "checkpoint", "quantisation"])
    def test_so_are_reference_weights_and_checkpoint(self, name):
        given = {"statistics": HOW.statistics, "weights": HOW.weights, "checkpoint": HOW.checkpoint, name: "another"}
        assert Protocol(HOW.scores, **given).differences(HOW.plain).startswith(f"{name} (")

    def test_what_was_not_kept_before_is_none(self):
        new = Protocol({**HOW.scores, "reference_size": "8x8, 1 channel"}, HOW.statistics, HOW.weights, HOW.checkpoint,
                       precision="fp32")  # fmt: skip
        old = {name: value for name, value in HOW.plain.items() if name not in {"precision", "arithmetic"}}
        assert new.differences(old) == ""
        assert "9 images (8x8, 1 channel)" in str(new)
        assert "sampled in fp32" in str(new)
        assert Protocol(HOW.scores, HOW.statistics, precision="tf32").differences(new.plain).startswith("weights")
        tf32 = Protocol(HOW.scores, HOW.statistics, HOW.weights, HOW.checkpoint, precision="tf32")
        assert tf32.differences(new.plain) == "precision (fp32 there, tf32 here)"

    def test_it_says_all_of_it(self):
        for words in ("9 images", "Edges (3)", "as they are", "of all images", "uint8", "torch", "veraged weights"):
            assert words in str(HOW)
