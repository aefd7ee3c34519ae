"""Model that `sample`, `evaluate` and `tune` run: averaged denoiser of a checkpoint with guidance."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.errors import UserError
from ersde_lit.files import given, sha256
from ersde_lit.names import CARRIED
from ersde_lit.sampling.description import Meta
from ersde_lit.sampling.seeds import format_seeds

if TYPE_CHECKING:
    from ersde_lit.sampling.decoder import Decoder
    from ersde_lit.sampling.run import Job
    from ersde_lit.solvers import Sampler, SavedTables


@dataclass(frozen=True)
class GuidedModel:
    """A denoiser with guidance, and what is kept with its images.

    Attributes:
        weights: description of the averaged weights.
        paths: the checkpoints, and the decoder's folder, by the option that names them.
        decoder: of a model of latents.
        carried: tables in the checkpoint, to sample with.
    """

    denoiser: Any
    weights: str
    labels: str | None
    guidance: GuidanceOptions
    machine: MachineOptions
    paths: dict[str, str]
    decoder: "Decoder | None"
    carried: "SavedTables | None"

    @classmethod
    def open(
        cls, ckpt_path: str, options: ModelOptions, guidance: GuidanceOptions, machine: MachineOptions
    ) -> "GuidedModel":
        labels = None if options.labels is None else str(options.labels)
        towards = "cfg_scale" if guidance.cfg_scale is not None else "classifier" if guidance.classifier else None
        if labels == "none" and towards is not None:
            raise UserError(f"--{towards} guides images to labels, and --labels none gives them none: leave one out")
        model = options.load(ckpt_path, unconditional=guidance.cfg_scale is not None)
        how, images = f"EMA, half-life {model.ema.half_life:,.0f} images", model.images_seen
        if model.power_ema is not None:
            sigma_rel, images = model.power_ema
            how = f"power-function average, sigma_rel {sigma_rel:.4g}"
        weights = f"averaged weights ({how}) after {images:,} images" if images else "averaged weights, as imported"
        denoiser = guidance.wrap(model.ema_denoiser, options.trust, unlabelled=labels == "none")
        paths = given(ckpt_path=ckpt_path, **guidance.checkpoints, decoder=options.decoder)
        decoder = _decoder(denoiser, options.decoder)
        return cls(denoiser, weights, labels, guidance, machine, paths, decoder, model.tables)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        shape: tuple[int, int, int] = (self.decoder or self.denoiser).image_shape
        return shape

    def job(self, sampler: "Sampler", nfe: int, seeds: Sequence[int]) -> "Job":
        """The sampling of these seeds; raises UserError where the labels do not go with the model."""
        from ersde_lit.sampling.run import Job

        how = self.machine.arithmetic | ({} if self.decoder is None else {"to_bytes": self.decoder})
        job = Job(self.denoiser, sampler, nfe, self.labels, **how)
        job.labels_of(seeds[:1])
        return job

    @cached_property
    def digests(self) -> dict[str, str]:
        return digests_of(self.paths)

    def describe(
        self, seeds: Sequence[int], sampler: "Sampler", named: Mapping[str, Any], **layout: Any
    ) -> dict[str, Any]:
        """As the function `describe`, of images that lie in their file as `layout` says, where not as usual."""
        labels = {"labels": self.labels or "random"} if self.denoiser.num_classes else {}
        others = {**self.guidance.named(), **labels, **self.machine.named(), **layout}
        return describe(seeds, sampler, named, others, self.paths, self.digests)

    def warnings(self, sampler: "Sampler", name: str) -> list[str]:
        """Lines on what the tables of a sampler, called `name`, were learned for, where that is not what is sampled."""
        facts = getattr(tables_of(sampler), "facts", {})
        lines = of_other_network(facts, self.network_digest, name) if "network" in facts else []
        own = self.guidance.named()
        if (guidance := facts.get("guidance", own) or {}) != own:
            lines.append(f"warning: {name} was learned with {_in_words(guidance)}, and here is {_in_words(own)}")
        if isinstance(files := facts.get("files"), Mapping):
            others = [option for option in self.guidance.checkpoints if files.get(option) != self.digests[option]]
            lines += [f"warning: {name} was learned with another --{option}, or without" for option in others]
        labels, here = ("without" if of == "none" else "with" for of in (facts.get("labels", self.labels), self.labels))
        if labels != here:
            lines.append(f"warning: {name} was learned {labels} labels, and here it samples {here} them")
        return lines

    @cached_property
    def network_digest(self) -> str:
        """`ersde_lit.training.weights_digest` of the network."""
        from ersde_lit.training import weights_digest

        return weights_digest(self.denoiser.network)


def describe(
    seeds: Sequence[int], sampler: "Sampler", named: Mapping[str, Any], others: Mapping[str, Any],
    paths: Mapping[str, str], digests: Mapping[str, str],
) -> Meta:  # fmt: skip
    """Plain data kept with images of these seeds, as `sampling.description` has it.

    Args:
        named: options and number of calls of the sampler, as `SamplerOptions.sampler` returns them. A file of
            tables is described by the digest of the one that samples.
        others: further options that images depend on.
        paths: files that they are made with, by option.
        digests: those of the files.
    """
    named, paths, digests = {**named}, {**paths}, {**digests}
    if (tables := tables_of(sampler)) is not None:
        digests["sampler" if "sampler" in named else "solver"] = tables.digest(named["nfe"])
        if named.get("solver", CARRIED) != CARRIED:
            paths["solver"] = named.pop("solver")
    return {
        "seeds": format_seeds(seeds),
        "options": {**named, **others},
        "checkpoints": digests,
        "paths": paths,
        "versions": {name: metadata.version(name) for name in ("ersde-lit", "torch")},
    }


def digests_of(paths: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each file, and of the digests of the decoder's files, by option."""
    from ersde_lit.sampling.decoder import FILES

    found = {name: sha256(path) for name, path in paths.items() if name != "decoder"}
    if folder := paths.get("decoder"):
        parts = "".join(sha256(Path(folder) / name) for name in FILES)
        found["decoder"] = hashlib.sha256(parts.encode()).hexdigest()
    return found


def of_other_network(facts: Mapping[str, Any], own: str, name: str) -> list[str]:
    """A line where tables called `name`, with these facts, were learned for another network than the own."""
    if facts["network"] == own:
        return []
    return [f"warning: {name} was learned for another network (digest {str(facts['network'])[:16]}; here {own})"]


def tables_of(sampler: "Sampler") -> "SavedTables | None":
    """The saved tables that a sampler runs; None of others."""
    from ersde_lit.solvers import SavedTables, TableSampler

    solver = sampler.solver if isinstance(sampler, TableSampler) else None
    return solver if isinstance(solver, SavedTables) else None


def _in_words(guidance: Any) -> str:
    if not guidance or not isinstance(guidance, dict):
        return "no guidance"
    return ", ".join(f"{name} {value}" for name, value in guidance.items())[:120]


def _decoder(denoiser: Any, folder: str | None) -> "Decoder | None":
    """The decoder of a model of latents, which needs one; UserError where it has none, or needs none."""
    if denoiser.latents is None:
        if folder is not None:
            raise UserError("--decoder is for models of latents, and this one samples pixels: leave it out")
        return None
    if folder is None:
        raise UserError(
            "the model samples latents: give --decoder, the folder of its autoencoder as diffusers keeps it "
            "(EDM2's is huggingface.co/stabilityai/sd-vae-ft-mse); in Python, model.sample(...) returns latents"
        )
    from ersde_lit.sampling.decoder import Decoder

    return Decoder(folder, denoiser.latents, denoiser.image_shape)
