"""Command `tune`: learns the best table for a checkpoint's network at each number of calls."""

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ersde_lit.cli.guided_model import GuidedModel
from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.reference import ReferenceOptions
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.cli.options.tuning import LearningOptions, TuneOptions
from ersde_lit.cli.parser import Parser, split
from ersde_lit.errors import UserError, needs_extra
from ersde_lit.files import check_apart, check_out, check_present, disk_errors, given, locked

if TYPE_CHECKING:
    from torch import Tensor

    from ersde_lit.cli.tune_file import TablesFile
    from ersde_lit.cli.tune_scores import Judges
    from ersde_lit.ranks import Ranks
    from ersde_lit.tuning import Problem, Tuned

BANK = 5000  # real images that samples are compared with while learning
EVERY = 25  # steps from one judging on the stopping seeds to the next
GROUPS: Any = (TuneOptions, ModelOptions, LearningOptions, ReferenceOptions, GuidanceOptions, MachineOptions)


def run(command: str, arguments: Sequence[str]) -> None:
    what = "Learns a sampler for a checkpoint's network: the best table at each number of calls."
    parser = Parser(command, what, *GROUPS, skip=["metrics"])
    parser.set_defaults(features="classifier")
    _, groups = parser.read(arguments)
    tune(*groups)


def tune(
    what: TuneOptions,
    options: ModelOptions,
    learning: LearningOptions,
    reference: ReferenceOptions,
    guidance: GuidanceOptions,
    machine: MachineOptions,
) -> None:
    """Learns a table for each NFE, keeps it in `out`, and reports what it brought."""
    nfes = SweepOptions(nfe=what.nfe).nfes
    if machine.precision == "fp16":
        raise UserError("--precision fp16: gradients are too small for it; choose bf16")
    if options.labels not in (None, "random", "none"):
        raise UserError(f"--labels {options.labels}: real images are of all classes; leave it out, or take none")
    if reference.features == "inception" and not learning.gradient_free:
        raise UserError("--features inception: Inception gives no gradients; learn in others, or add --gradient_free")
    outputs = given(out=what.out, into=what.into)
    inputs = given(ckpt_path=what.ckpt_path, like=what.like, decoder=options.decoder)
    inputs |= reference.files | guidance.checkpoints
    for option, path in outputs.items():
        check_out(path, option)
    check_apart(outputs, inputs)
    check_present(inputs)

    from ersde_lit.cli.messages import filter_messages
    from ersde_lit.cli.tune_file import TablesFile
    from ersde_lit.cli.tune_scores import Judges, show
    from ersde_lit.sampling.labels import labels_of
    from ersde_lit.tf32 import tf32
    from ersde_lit.training import carry

    filter_messages()
    # Whatever can be wrong is found before other ranks are started and anything is written.
    model = GuidedModel.open(what.ckpt_path, options, guidance, machine)
    if not learning.gradient_free:
        _check_gradients(model)
    else:
        with needs_extra("tune", "--gradient_free"):
            import cmaes  # noqa: F401
    TablesFile(what.out).set_facts(_model_facts(model))
    _check_into(what, options.trust, model)
    labels_of(model.denoiser, model.labels, [0])
    earlier = _earlier(what.like, model, nfes)
    data = reference.open_data(model.image_shape)
    ranks = machine.start(model.denoiser)
    first = ranks.is_first
    if ranks.device.type == "mps":
        raise UserError("tables are learned in float64, which --accelerator mps has not: take cpu")
    judges = Judges.of(model, data, reference, split(learning.also or []), learning.images, ranks)
    problem = _problem(model, judges, learning, ranks)
    facts = _model_facts(model) | _learning_facts(model, judges, learning)
    with ExitStack() as stack:
        with ranks.fail_together():
            if first:
                stack.enter_context(locked(f"{what.out}.lock", f"--out {what.out}: another `tune` is at it"))
        with ranks.fail_together():
            file = TablesFile(what.out)
            file.set_facts(facts)
        stack.enter_context(tf32(machine.precision == "tf32"))
        folder = Path(f"{what.out}.run")
        for nfe in nfes:
            if nfe in file.tables:
                said = f"NFE {nfe}: in {what.out} already; to learn it otherwise, choose another --out"
            else:
                said = _learn(nfe, problem, learning, machine, file, earlier.get(nfe), folder, ranks)
            if first:
                print(said, flush=True)
            if not file.is_scored(nfe, learning.images, judges.names):
                file.keep_scores(judges.of_nfe(nfe, file.saved), write=first)
        if not first:
            return
        with suppress(OSError):  # not there, or another learning has its checkpoint in it
            folder.rmdir()
        if what.into is not None:
            with disk_errors(what.into, "into"):
                carry(what.ckpt_path, file.saved, what.into)
        show(file, nfes, learning.images)
    print(f"tables  {what.out}: python -m ersde_lit sample --ckpt_path {what.ckpt_path} --solver {what.out} ...")
    if what.into is not None:
        print(f"carried {what.into}: samples with them where no solver is named")


def _learn(
    nfe: int, problem: "Problem", learning: LearningOptions, machine: MachineOptions, file: "TablesFile",
    earlier: Any, folder: Path, ranks: "Ranks",
) -> str:  # fmt: skip
    """Learns the table of `nfe` calls, writes it to the file, and says in a line what came out."""
    from ersde_lit.cli.tune_trainer import trainer
    from ersde_lit.sampling.run import peak_memory
    from ersde_lit.solvers import SavedTables
    from ersde_lit.tuning import tune as learn

    like = None if earlier is None else SavedTables({nfe: earlier}).digest(nfe)
    how = {"batch_size": learning.batch_size, "stopping": learning.stopping, "like": like}
    kind = "json" if learning.gradient_free else "ckpt"
    digest = hashlib.sha256(repr([file.facts, how, learning.steps]).encode()).hexdigest()[:16]
    checkpoint = folder / f"{nfe}-{digest}.{kind}"
    run, start = trainer(learning.steps, learning.minutes, machine, ranks, checkpoint, EVERY), time.monotonic()
    try:
        tuned: Tuned = learn(
            problem, nfe, stages=learning.chosen, gradients=not learning.gradient_free, steps=learning.steps,
            batch=learning.batch_size, validation=learning.stopping, validate_every=EVERY, trainer=run,
            candidates={} if earlier is None else {"like": earlier},
            ckpt_path=str(checkpoint) if checkpoint.is_file() else None, record=checkpoint,
        )  # fmt: skip
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # the dispatcher says that the same command goes on
        raise
    before, after = float(tuned.before.mean()), float(tuned.after.mean())
    found = {"learned": tuned.learned, "start": tuned.start, "before": before, "after": after}
    found |= {"error": tuned.error} if len(tuned.after) > 1 else {}
    spent = {
        "steps": learning.steps if learning.gradient_free else run.global_step,
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory": peak_memory(ranks.device),
    }
    file.keep(nfe, tuned.tableau, {**found, **how, **spent}, write=ranks.is_first)
    if ranks.is_first:
        checkpoint.unlink(missing_ok=True)
    of = f"on {learning.stopping:,} images, {spent['seconds']:.0f} s"
    if tuned.after is tuned.before:
        return f"NFE {nfe}: nothing was better than default, whose own table is kept ({before:.4g} {of})"
    how_made = "learned" if tuned.learned else f"by {tuned.start}, and no better one was learned"
    less = f", which is less by {before - after:.2g} ± {tuned.error:.2g}" if "error" in found else ""
    return f"NFE {nfe}: {learning.objective} distance {before:.4g} by default, {after:.4g} {how_made}{less} ({of})"


def _problem(model: GuidedModel, judges: "Judges", learning: LearningOptions, ranks: "Ranks") -> "Problem":
    import torch

    from ersde_lit.sampling.labels import labels_of
    from ersde_lit.tuning import EnergyDistance, ImageFeatures, KernelDistance, Problem, SumOfDistances

    features, bank = judges.learned_in
    extract: Any = ImageFeatures(features)
    if model.decoder is not None:
        decoder, extract = model.decoder, lambda x: features(decoder(x).to(ranks.device))
    if not learning.gradient_free:
        probe = torch.zeros(1, *model.image_shape, device=ranks.device, requires_grad=True)
        if not extract(probe).requires_grad:
            raise UserError("--features give no gradients: learn in others, or add --gradient_free")
    distance = {"kernel": KernelDistance, "energy": EnergyDistance}[learning.objective]
    objective: Any = distance(extract, bank[:BANK].to(ranks.device))
    if (real := _pixels(model, judges, learning)) is not None:
        objective = SumOfDistances(objective, EnergyDistance(ImageFeatures(torch.nn.Flatten()), real))
    denoiser = model.denoiser.requires_grad_(False)
    if model.machine.precision == "bf16":
        denoiser.forward = torch.autocast(ranks.device.type, torch.bfloat16)(denoiser.forward)
    labels: Any = partial(labels_of, model.denoiser, model.labels) if model.denoiser.num_classes else None
    return Problem(denoiser, model.denoiser.image_shape, objective.to(ranks.device), labels, ranks.device)


def _pixels(model: GuidedModel, judges: "Judges", learning: LearningOptions) -> "Tensor | None":
    """Real images' pixels, where the objective is in these too."""
    return judges.real if learning.objective == "energy" and model.decoder is None else None


def _check_gradients(model: GuidedModel) -> None:
    if model.decoder is not None:
        raise UserError("--decoder gives no gradients: add --gradient_free")
    if model.guidance.classifier is not None:
        raise UserError("--classifier: no gradients pass its guidance; add --gradient_free")


def _check_into(what: TuneOptions, trust: bool, model: GuidedModel) -> None:
    """Raises UserError where `into` is something else than an earlier result for the same model."""
    from ersde_lit.training import load, weights_digest

    if what.into is None or not Path(what.into).exists():
        return
    try:
        there = load(what.into, trust)
        same = weights_digest(there.ema_denoiser.network) == model.network_digest
        same = same and there.spec == load(what.ckpt_path, trust).spec and there.tables is not None
    except UserError:
        same = False
    if not same:
        raise UserError(f"--into {what.into} exists, and is no copy of {what.ckpt_path}; choose another name")


def _earlier(path: str | None, model: GuidedModel, nfes: Sequence[int]) -> dict[int, Any]:
    """Tables of these NFEs in a file, as far as there are any, that fit the model."""
    from ersde_lit.solvers import read_tables

    if path is None:
        return {}
    tables = read_tables(path)
    try:
        return {nfe: tables.sampler.table(model.denoiser, nfe) for nfe in nfes if nfe in tables.tables}
    except UserError as error:
        raise UserError(f"--like {path}: {error}") from None


def _model_facts(model: GuidedModel) -> dict[str, Any]:
    """Facts kept with tables about the model: network, guidance, labels."""
    others = {name: digest for name, digest in model.digests.items() if name != "ckpt_path"}
    return {
        "network": model.network_digest,
        "guidance": model.guidance.named(),
        "files": others,
        "labels": model.labels or "random" if model.denoiser.num_classes else None,
    }


def _learning_facts(model: GuidedModel, judges: "Judges", learning: LearningOptions) -> dict[str, Any]:
    """Facts kept with tables about the learning: data, features, objective, seeds."""
    from ersde_lit.tuning import LEARNING, STOPPING

    pixels = "" if _pixels(model, judges, learning) is None else " and pixels"
    gradients = ", without gradients" if learning.gradient_free else ""
    return {
        **judges.described,
        "objective": f"{learning.objective} distance in features{pixels}{gradients}",
        "stages": learning.chosen,
        "precision": model.machine.precision,
        "seeds": {
            "learning": f"from {LEARNING[0]}", "stopping": f"from {STOPPING[0]}", "reporting": "from 0",
        },
        "versions": {name: metadata.version(name) for name in ("ersde-lit", "torch")},
    }  # fmt: skip
