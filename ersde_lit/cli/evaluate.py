"""Command `evaluate`: measures FID and other metrics of a checkpoint's samplers, or of images."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ersde_lit.cli.guided_model import GuidedModel
from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.reference import ReferenceOptions
from ersde_lit.cli.options.sweep import SweepOptions, seed_sets
from ersde_lit.cli.parser import Parser
from ersde_lit.errors import UserError, needs_extra
from ersde_lit.files import check_present, disk_errors, given, write_text
from ersde_lit.names import CARRIED

if TYPE_CHECKING:
    from ersde_lit.sweeps.report import ImagesReport, Report


@dataclass(frozen=True)
class WhatOptions:
    """What is evaluated.

    Args:
        ckpt_path: checkpoint that `fit` wrote; its averaged weights are sampled.
        out: folder of the results, results.html first; the same command goes on there after an interruption.
        keep_images: keep each cell's images in it.
        best: show the best of the sets of seeds, as EDM does of three, rather than mean and standard deviation.
    """

    ckpt_path: str | None = None
    out: str | None = None
    keep_images: bool = False
    best: bool = False


GROUPS: Any = (WhatOptions, ModelOptions, SweepOptions, ReferenceOptions, GuidanceOptions, MachineOptions)
SEEDS = ["0-49999"]  # if not given


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(command, "FID and other metrics of a checkpoint's samples, or of images.", *GROUPS)
    parser.add_argument("--images", nargs="+", type=str, help="folders, zips or npz files of anybody's, instead")
    parser.add_argument(
        "--seeds", nargs="+", type=str, default=SEEDS,
        help="which images; several sets, as in 0-49999 50000-99999 100000-149999, give mean and spread",
    )  # fmt: skip
    options, (what, model, sweep, reference, guidance, machine) = parser.read(arguments)
    if options["images"]:
        # A filter by labels or seeds that does nothing would give numbers of other images than meant.
        of_sampling = (what, model, sweep, guidance)
        said = [f.name for group in of_sampling for f in fields(group) if getattr(group, f.name) != f.default]
        said += ["seeds"] * (options["seeds"] != SEEDS)
        if sampling := [name for name in said if name not in ("out", "trust")]:
            raise UserError(f"--images are measured as they are: leave them or --{sampling[0]} out")
        evaluate_images(options["images"], what.out, reference, machine)
    else:
        evaluate(what, model, options["seeds"], sweep, reference, guidance, machine)


def evaluate(
    what: WhatOptions,
    options: ModelOptions,
    seeds: Sequence[str],
    sweep: SweepOptions,
    reference: ReferenceOptions,
    guidance: GuidanceOptions,
    machine: MachineOptions,
) -> "Report | None":
    """Measures every sampler at every NFE on every set of seeds.

    Returns:
        The report of all cells in `out` that are of these sets; None on all ranks but the first.
    """
    if what.ckpt_path is None or what.out is None:
        raise UserError("give --ckpt_path and --out, or --images")
    sets = seed_sets(seeds)
    check_present(given(ckpt_path=what.ckpt_path, decoder=options.decoder, **reference.files, **guidance.checkpoints))

    from ersde_lit.metrics.protocol import QUANTISATION, Protocol, statistics_in_brief
    from ersde_lit.sampling import decoder as of_decoder
    from ersde_lit.sweeps.cells import MADE_HERE, Cell, Cells
    from ersde_lit.sweeps.report import Report
    from ersde_lit.sweeps.sweep import Sweep

    # Whatever can be wrong is found before other ranks are started and anything is written.
    store = Cells(what.out)
    model = GuidedModel.open(what.ckpt_path, options, guidance, machine)
    cells, notes = [], dict[str, None]()
    choices = sweep.choices(model.denoiser, model.carried)
    for its_seeds in sets:
        for choice in choices:
            notes |= dict.fromkeys(model.warnings(choice.sampler, choice.label))
            if choice.named.get("solver") == CARRIED:
                notes[f"{choice.label}, NFE {choice.nfe}: the checkpoint's own table"] = None
            meta = {**model.describe(its_seeds, choice.sampler, choice.named), MADE_HERE: "evaluate"}
            job = model.job(choice.sampler, choice.nfe, its_seeds)
            cells.append(Cell(choice.label, job, its_seeds, meta, choice.asked))
    data, features = reference.open_data(model.image_shape), reference.open_features()
    ranks = machine.start(model.denoiser)
    first = ranks.is_first
    for note in notes if first else ():
        print(note)
    scores = reference.scores(data, features, ranks)
    protocol = Protocol(
        scores.protocol,
        statistics_in_brief(scores.reference.statistics),
        model.weights,
        model.digests["ckpt_path"],
        of_decoder.QUANTISATION if model.decoder else QUANTISATION,
        precision=machine.precision,
        labels=str(model.labels or "random") if model.denoiser.num_classes else None,
        guidance=", ".join(f"{name} {value}" for name, value in guidance.named().items()) or None,
    )
    with ExitStack() as stack:
        with ranks.fail_together():
            if first:
                stack.enter_context(store.taken())
                store.check(protocol)
                for cell in cells:
                    if store.find(cell, scores.metrics) is None:
                        store.place(cell)  # raises now where it is taken, not hours later
        run = Sweep(store, scores, protocol, ranks, what.keep_images)
        if data is not None:
            run.real(data, len(sets[0]))
        for cell in cells:
            run.cell(cell)
        if not first:
            return None
        report = Report(store.of_sets({cell.meta["seeds"] for cell in cells}), scores.metrics, protocol, what.best)
        spread = f": {report.spread}" if report.spread else ""
        told = "".join(f" {note[0].upper()}{note[1:]}." for note in notes)
        _publish(store.folder, report, f"{len(sets[0]):,} images (seeds {', '.join(seeds)}){spread}. {protocol}{told}")
    return report


def evaluate_images(
    images: Sequence[str], out: str | None, reference: ReferenceOptions, machine: MachineOptions
) -> "ImagesReport | None":
    """Measures images on disk; returns the report, None on all ranks but the first."""
    from ersde_lit.metrics import image_files
    from ersde_lit.metrics.protocol import Protocol, statistics_in_brief
    from ersde_lit.sweeps.cells import REAL, Cells, record
    from ersde_lit.sweeps.report import ImagesReport
    from ersde_lit.sweeps.sweep import measure_held_out, measure_images

    if out is not None and (Cells(out).path.exists() or (Path(out) / "results.csv").exists()):
        raise UserError(f"--out {out} holds results of another evaluation; choose another name")
    check_present(reference.files)
    sets = [image_files(path, exif=reference.exif) for path in images]
    data, features = reference.open_data(), reference.open_features()
    ranks = machine.start()
    scores = reference.scores(data, features, ranks)
    protocol = Protocol(scores.protocol, statistics_in_brief(scores.reference.statistics))
    records = [record(path, measure_images(path, scores, ranks, reference.exif), protocol) for path in images]
    if data is not None:
        held_out = data.held_out(max(map(len, sets)))
        records.append(record(REAL, measure_held_out(held_out, scores, ranks), protocol))
    if not ranks.is_first:
        return None
    report = ImagesReport(records, protocol)
    _publish(None if out is None else Path(out), report, str(protocol))
    return report


def _publish(folder: Path | None, report: "Report | ImagesReport", caption: str) -> None:
    """Prints a report, writes its tables, plots and page to the folder, and names the files."""
    from rich.console import Console

    from ersde_lit.sweeps.page import page
    from ersde_lit.sweeps.report import ImagesReport, sizes, to_csv

    caption = f"{caption} {sizes(report.records)}".rstrip()
    notes = dict.fromkeys(note.removesuffix("?") for record in report.records for note in record["notes"])
    paragraphs = [caption, *(f"Warning: {note}." for note in notes)]
    console = Console(soft_wrap=True)
    sheets = [*report.sheets().values()]
    for sheet in sheets:
        console.print(sheet.table())
    console.print("\n\n".join(paragraphs), markup=False)
    if folder is None:
        return
    tables, html = [folder / "results.csv", folder / "results.md"], folder / "results.html"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        write_text(tables[0], to_csv(report.records))
        write_text(tables[1], "\n\n".join([*(sheet.markdown() for sheet in sheets), *paragraphs]) + "\n")
        plots = {} if isinstance(report, ImagesReport) else plots_of(folder, report)
        write_text(html, page(report, caption, [*notes], plots, folder))
    for name, paths in {"tables": tables, "plots": [*plots.values()], "page": [html]}.items():
        if paths:
            console.print(f"{name:<7} {', '.join(map(str, paths))}", markup=False)


def plots_of(folder: Path, report: "Report") -> dict[str, Path]:
    """Draws the plot of each metric; none without matplotlib."""
    try:
        with needs_extra("plot", "the plot"):
            from ersde_lit.sweeps.plot import save
    except UserError as error:
        print(f"no plot: {error}")
        return {}
    paths = {metric: folder / f"{metric}.png" for metric in report.metrics}
    for metric, path in paths.items():
        save(report, metric, path)
    return paths
