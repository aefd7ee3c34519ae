import csv
import io
import json
import re
import statistics

import pytest
from measured_cells import HOW, RECORDS, SCORES, cell, real
from rich.console import Console

from ersde_lit.metrics.protocol import Protocol
from ersde_lit.sweeps.cells import REAL, Cells, Measured, record
from ersde_lit.sweeps.report import ImagesReport, Report, Summary, sizes, to_csv
from ersde_lit.sweeps.sheet import Sheet


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
        ((0.003, 0.003, 0.003), "0.003"),  # whose sum over 3 is another number
    ],
)
def test_the_spread_has_two_digits_and_sets_those_of_the_mean(values, text):
    assert Summary(values).text("fid", best=False) == text


def test_rows_have_the_best_of_a_column_in_bold_and_say_what_was_run():
    report = Report(RECORDS, ["fid", "precision"], HOW)
    assert report.header == ["sampler", "NFE 10", "NFE 20"]
    assert report.rows("fid") == [
        ["a", "3.10 ± 0.14", "1.25 ± 0.35"],
        ["heun", "**2 (9 calls) (1 of 2 sets)**", ""],
        [f"{REAL} (one set)", "0.5", "0.5"],
    ]
    assert report.rows("precision")[0][1] == "**0.60 ± 0.14**"  # the larger the better
    assert Report(RECORDS, ["fid"], HOW, best=True).rows("fid")[0] == ["a", "3", "1"]


def test_a_sampler_of_somebody_may_make_any_number_of_calls():
    report = Report([cell("three", 6, "0-19", asked=10, fid=2.0), cell("a", 10, "0-19", fid=3.0)], ["fid"], HOW)
    assert report.rows("fid") == [["three", "**2 (6 calls)**"], ["a", "3"]]


def test_a_cell_that_was_asked_for_under_another_number_stands_under_its_own():
    report = Report([cell("heun", 5, "0-19", asked=6, fid=2.0), cell("a", 5, "0-19", fid=3.0)], ["fid"], HOW)
    assert report.header == ["sampler", "NFE 5", "NFE 6"]
    assert report.rows("fid") == [["heun", "**2**", "2 (5 calls)"], ["a", "3", ""]]


def test_markdown_and_terminal_show_the_same():
    for metric, sheet in Report(RECORDS, ["fid", "precision"], HOW).sheets().items():
        shown, markdown = printed(sheet), sheet.markdown()
        assert sheet.heading in shown
        assert markdown.startswith(sheet.heading)
        for row in sheet.rows:
            assert re.search(" *│ *".join(re.escape(text.strip("*")) for text in row), shown), row
            assert f"| {' | '.join(row)} |" in markdown
        assert metric.upper() in sheet.heading.upper()


def printed(sheet: Sheet) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(sheet.table())
    return console.file.getvalue()


def test_headings_say_number_and_kind_of_the_images_on_both_sides():
    report = Report(RECORDS, ["fid", "kid", "is"], HOW)
    assert report.heading("fid") == "FID of 20 samples to 9 images of a, Edges (3)"
    assert report.heading("kid") == "KID of 20 samples to 9 images of a, Edges (3) (subsets of 5)"
    assert report.heading("is") == "Inception Score of 20 samples, Edges (3)"  # needs no reference
    spoilt = [cell("a", 5, "0-1999", images=0, fid=float("nan"))]
    assert Report(spoilt, ["fid"], HOW).heading("fid").startswith("FID of 2,000 samples")


@pytest.mark.parametrize(
    ("images", "sets", "metric", "name"),
    [
        (20, 1, "fid", REAL),
        (8, 1, "fid", f"{REAL} (8 images: FID biased upwards)"),
        (8, 1, "kid", f"{REAL} (8 images)"),
        (8, 2, "fid", f"{REAL} (8 images: FID biased upwards; one set)"),
        (20, 2, "kid", f"{REAL} (one set)"),
    ],
)
def test_rows_of_real_images_say_what_keeps_them_from_being_compared(images, sets, metric, name):
    records = [real(images=images, **{metric: 0.5}), *(cell("a", 5, f"{20 * k}-{20 * k + 19}", **{metric: 1.0})
               for k in range(sets))]  # fmt: skip
    assert Report(records, [metric], HOW).rows(metric)[-1] == [name, "0.5"]


def test_leaders_are_the_best_of_all_cells():
    assert Report(RECORDS, ["fid", "precision"], HOW).leaders() == [
        "Lowest FID: 1.25 ± 0.35, a at NFE 20", "Highest precision: 0.8, a at NFE 20"
    ]  # fmt: skip
    assert Report([cell("a", 5, "0-19", fid=1.0)], ["fid"], HOW).leaders() == []  # of one


@pytest.mark.parametrize("name", ["[red]|x", "**x**"])
def test_labels_that_look_like_markup_are_shown_as_they_are(name):
    (sheet,) = Report([cell(name, 5, "0-19", fid=1.0)], ["fid"], HOW).sheets().values()
    assert name in printed(sheet)
    assert f"| {name} | 1 |".replace("]|", "]\\|") in sheet.markdown()


def test_csv_has_a_row_a_cell_with_all_that_changes_its_number():
    rows = list(csv.DictReader(io.StringIO(to_csv(RECORDS))))
    assert len(rows) == len(RECORDS)
    row = rows[3]
    assert (row["sampler"], row["nfe"], row["seeds"], row["images"]) == ("heun", "9", "0-19", "20")
    assert (float(row["fid"]), float(row["precision"])) == (2.0, 0.1)  # also what is not in the table
    for name, value in (
        ("features", "Edges (3)"), ("fingerprint", "abc"), ("preprocessing", "as they are"),
        ("reference", "9 images of a"),
        ("statistics", HOW.statistics), ("weights", "averaged weights"), ("quantisation", HOW.quantisation),
        ("option solver", "heun"), ("sha256 ckpt_path", "f" * 64), ("version torch", HOW.versions["torch"]),
    ):  # fmt: skip
        assert row[name] == value


def test_sets_of_images_are_rows():
    a = record("a.zip", Measured({"fid": 1.25, "kid": 0.5}, 1234, ()), HOW)
    report = ImagesReport([a, real(images=20, fid=0.5, kid=0.25)], HOW)
    (sheet,) = report.sheets().values()
    assert sheet.heading == "Images compared with 9 images of a, Edges (3)"
    assert sheet.header == ["images", "number", "FID", "KID"]
    assert sheet.rows == [
        ["a.zip", "1,234", "1.25", "0.5"], [f"{REAL} (fewer images: FID biased upwards)", "20", "0.5", "0.25"]
    ]  # fmt: skip
    assert ImagesReport([real(images=20, kid=0.5), {**a, "scores": {"kid": 1.0}}], HOW).rows()[0][0] == REAL


def test_a_name_with_asterisks_is_shown_as_it_is():
    (sheet,) = ImagesReport([record("*.zip*", Measured({"fid": 1.25}, 1234, ()), HOW)], HOW).sheets().values()
    assert [text.plain for text in sheet.table().columns[0].cells] == ["*.zip*"]


def test_a_cell_that_is_nan_is_seen_and_is_never_the_best():
    nan = float("nan")
    records = [cell("a", 5, "0-19", fid=nan), cell("b", 5, "0-19", fid=3.0), cell("c", 5, "0-19", fid=4.0)]
    assert Report(records, ["fid"], HOW).rows("fid") == [["a", "nan"], ["b", "**3**"], ["c", "4"]]
    assert next(iter(csv.DictReader(io.StringIO(to_csv(records)))))["fid"] == "nan"
    sets = [cell("a", 5, "0-19", fid=1.0), cell("a", 5, "20-39", fid=nan)]
    for best in (False, True):
        for order in (sets, sets[::-1]):
            assert Report(order, ["fid"], HOW, best).rows("fid") == [["a", "nan"]]


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
        weak = {**cell("a", 10, "0-19", precision=0.5), "notes": ["few images"]}
        cells.add(weak)
        cells.add(again)
        assert cells.read()[1]["notes"] == ["few images"]
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
        other = Protocol({**SCORES, "recall": "subsets"}, HOW.statistics, HOW.weights, HOW.checkpoint)
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
        assert "9 images of a (8x8, 1 channel)" in str(new)
        assert "sampled in fp32" in str(new)
        assert Protocol(HOW.scores, HOW.statistics, precision="tf32").differences(new.plain).count("weights")
        tf32 = Protocol(HOW.scores, HOW.statistics, HOW.weights, HOW.checkpoint, precision="tf32")
        assert tf32.differences(new.plain) == "precision (fp32 there, tf32 here)"

    def test_it_says_all_of_it(self):
        for words in ("9 images", "Edges (3)", "as they are", "of all images", "uint8", "torch", "veraged weights"):
            assert words in str(HOW)
