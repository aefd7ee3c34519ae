"""Model that `sample` and `evaluate` run: averaged denoiser of a checkpoint with guidance, and its description."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.errors import UserError
from ersde_lit.names import CARRIED
from ersde_lit.sampling.seeds import format_seeds

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from ersde_lit.sampling.decoder import Decoder
    from ersde_lit.sampling.run import Job
    from ersde_lit.solvers import Sampler, SavedTables
    from ersde_lit.training import DiffusionModule


def load_model(ckpt_path: str, labels: str | int | None, trust: bool, unconditional: bool = False) -> "DiffusionModule":
    """A checkpoint's module; UserError where it restores, or must make images without labels and was not trained to."""
    from ersde_lit.training import load

    model = load(ckpt_path, trust)
    model.check_samples()
    if not model.label_dropout and (unconditional or labels == "none"):
        raise UserError("the model was trained with labels only, without label_dropout: it knows no other images")
    return model


@dataclass(frozen=True)
class GuidedModel:
    """A denoiser with guidance, and what is kept with its images.

    Attributes:
        weights: description of the averaged weights.
        paths: the checkpoints, and the decoder's folder, by the option that names them.
        network: with the averaged weights.
        decoder: of a model of latents.
        carried: tables in the checkpoint, to sample with.
    """

    denoiser: Any
    weights: str
    labels: str | None
    guidance: GuidanceOptions
    machine: MachineOptions
    paths: dict[str, str]
    network: Any
    decoder: "Decoder | None" = None
    carried: "SavedTables | None" = None

    @classmethod
    def open(
        cls, ckpt_path: str, labels: str | int | None, guidance: GuidanceOptions, machine: MachineOptions, trust: bool,
        decoder: str | None = None,
    ) -> "GuidedModel":  # fmt: skip
        labels = None if labels is None else str(labels)
        if labels == "none" and guidance.cfg_scale is not None:
            raise UserError("--cfg_scale guides images to labels, and --labels none gives them none: leave one out")
        model = load_model(ckpt_path, labels, trust, unconditional=guidance.cfg_scale is not None)
        how, images = f"EMA, half-life {model.ema.half_life:,.0f} images", model.images_seen
        if model.power_ema is not None:
            sigma_rel, images = model.power_ema
            how = f"power-function average, sigma_rel {sigma_rel:.4g}"
        weights = f"averaged weights ({how}) after {images:,} images"
        denoiser = guidance.wrap(model.ema_denoiser, trust, unlabelled=labels == "none")
        paths = {"ckpt_path": ckpt_path, **guidance.checkpoints}
        if decoder is not None:
            paths["decoder"] = decoder
        network, its_decoder = model.ema_denoiser.network, _decoder(denoiser, decoder)
        return cls(denoiser, weights, labels, guidance, machine, paths, network, its_decoder, model.tables)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        shape: tuple[int, int, int] = (self.decoder or self.denoiser).image_shape
        return shape

    def job(self, sampler: "Sampler", nfe: int, seeds: Sequence[int]) -> "Job":
        """The sampling of these seeds; raises UserError where the labels do not go with the model."""
        from ersde_lit.sampling.run import Job

        how = self.precision | ({} if self.decoder is None else {"to_bytes": self.decoder})
        job = Job(self.denoiser, sampler, nfe, self.labels, **how)
        job.labels_of(seeds[:1])
        return job

    @property
    def precision(self) -> dict[str, Any]:
        """`dtype` and `allow_tf32` of a job."""
        import torch

        name = self.machine.precision
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        return {"dtype": dtype, "allow_tf32": name == "tf32"}

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each checkpoint, and of the digests of the decoder's files."""
        from ersde_lit.sampling.decoder import FILES

        found = {name: _sha256(path) for name, path in self.paths.items() if name != "decoder"}
        if folder := self.paths.get("decoder"):
            parts = "".join(_sha256(Path(folder) / name) for name in FILES)
            found["decoder"] = hashlib.sha256(parts.encode()).hexdigest()
        return found

    def describe(
        self, seeds: Sequence[int], sampler: "Sampler", named: Mapping[str, Any], **layout: Any
    ) -> dict[str, Any]:
        """Plain data kept with images of these seeds, as `sampling.description` has it.

        Args:
            named: options and number of calls of the sampler, as `SamplerOptions.sampler` returns them. A file of
                tables is described by the digest of the one that samples.
            layout: how the images lie in their file, where not as usual.
        """
        labels = {"labels": self.labels or "random"} if self.denoiser.num_classes else {}
        named, digests, paths = {**named}, {**self.digests}, {**self.paths}
        if (tables := tables_of(sampler)) is not None:
            digests["sampler" if "sampler" in named else "solver"] = tables.digest(named["nfe"])
            if named.get("solver", CARRIED) != CARRIED:
                paths["solver"] = named.pop("solver")
        return {
            "seeds": format_seeds(seeds),
            "options": {**named, **self.guidance.named(), **labels, **self.machine.named(), **layout},
            "checkpoints": digests,
            "paths": paths,
            "versions": {name: metadata.version(name) for name in ("ersde-lit", "torch")},
        }

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

        return weights_digest(self.network)

    def start(self) -> "Fabric":
        """Starts the ranks, moves the denoiser to each one's device and compiles its networks with `--compile`."""
        from ersde_lit.networks import Network
        from ersde_lit.ranks import fabric

        machine = self.machine
        ranks = fabric(machine.accelerator, machine.devices, machine.num_nodes)
        self.denoiser.to(ranks.device)
        for module in self.denoiser.modules():
            if machine.compile is not None and isinstance(module, Network):
                module.compile(mode=machine.compile, dynamic=False)  # at first use, once more for each batch size
        return ranks


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


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
