"""Options of a sweep: samplers x grids x NFE, and sets of seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ersde_lit.cli.options.sampler import OF_GRID, SamplerOptions
from ersde_lit.cli.parser import make, options_of, split
from ersde_lit.errors import UserError
from ersde_lit.sampling.seeds import parse_seeds

if TYPE_CHECKING:
    from ersde_lit.solvers import Sampler


class Choice(NamedTuple):
    """A sampler at one NFE."""

    label: str
    asked: int  # NFE
    nfe: int  # the calls it really makes
    sampler: "Sampler"
    named: dict[str, Any]  # NFE and sampler as plain data


@dataclass(frozen=True)
class SweepOptions:
    """Which samplers are compared: each solver on each grid at each NFE, for each set of seeds.

    Args:
        nfe: network calls an image, as in 5,10,20 (heun makes an odd number: one less where this is even).
        solvers: those of `sample`, with options of theirs, as in default,er_sde:order=3:corrector=3,unipc2,heun.
        grids: noise levels, as in edm,log_uniform:sigma_max=20; each solver's own if not given.
        samplers: in YAML, label to options of `sample`, or to class_path and init_args of any sampler.
    """

    nfe: str | int | list[int] = 20
    solvers: str | list[str] | None = None
    grids: str | list[str] | None = None
    samplers: dict[str, dict[str, Any]] | None = None

    @property
    def nfes(self) -> list[int]:
        """The numbers of calls asked for."""
        numbers = split(self.nfe)
        if not numbers or not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
            raise UserError(f"--nfe {self.nfe}: write numbers of network calls as in 5,10,20")
        return sorted({int(number) for number in numbers})

    def choices(self, denoiser: Any) -> list[Choice]:
        """Every sampler at every NFE, for this denoiser.

        Raises:
            ValueError: a solver, options, grid and denoiser that do not go together; names the sampler.
        """
        found: dict[tuple[str, int], Choice] = {}
        for label, at in self._samplers(denoiser):
            for nfe in self.nfes:
                try:
                    sampler, named = at(nfe)
                except ValueError as error:
                    raise UserError(f"sampler {label}, NFE {nfe}: {error}") from None
                found.setdefault((label, named["nfe"]), Choice(label, nfe, named["nfe"], sampler, named))
        return [*found.values()]

    def _samplers(self, denoiser: Any) -> Iterator[tuple[str, Callable[[int], tuple["Sampler", dict[str, Any]]]]]:
        """Each sampler's label, and NFE -> the sampler and the choice as plain data."""
        chosen = {text: {"solver": text} for text in split(self.solvers or [])} | (self.samplers or {})
        for label, given in (chosen or {"default": {}}).items():
            if "class_path" in given:
                yield label, _of_class(given)
                continue
            if self.grids and (own := {"grid", *OF_GRID} & given.keys()):
                raise UserError(f"sampler {label} has a {min(own)} of its own: leave it or --grids out")
            grids = split(self.grids or [])
            for grid in grids or [""]:
                choice = {**given, "grid": grid} if grid else given
                options = options_of(f"solvers {label}", SamplerOptions, choice, ["preset", "nfe"])
                yield f"{label} on {grid}" if len(grids) > 1 else label, _of_options(options, denoiser)


def seed_sets(texts: Sequence[str]) -> list[Sequence[int]]:
    """The sets of seeds: each as `parse_seeds` reads it.

    Raises:
        ValueError: as `parse_seeds`; or a seed is in two sets, fewer than two are in one, or sets differ in size.
    """
    sets = [parse_seeds(text) for text in texts]
    for seeds, text in zip(sets, texts, strict=True):
        if len(seeds) < 2:
            raise UserError(f"--seeds {text}: a set needs at least two images to be measured")
        if len(seeds) != len(sets[0]):
            raise UserError(f"--seeds: {text} are {len(seeds)} and {texts[0]} {len(sets[0])}: take sets of one size")
    seen: set[int] = set()
    for seeds, text in zip(sets, texts, strict=True):
        if not seen.isdisjoint(seeds):
            raise UserError(f"--seeds {text} has seeds of another set: their spread would be too small")
        seen |= set(seeds)
    return sets


def _of_options(options: SamplerOptions, denoiser: Any) -> Callable[[int], tuple["Sampler", dict[str, Any]]]:
    return lambda nfe: replace(options, nfe=nfe).sampler(denoiser)


def _of_class(given: Mapping[str, Any]) -> Callable[[int], tuple["Sampler", dict[str, Any]]]:
    from ersde_lit.solvers import Sampler

    sampler, plain = make("samplers", Sampler, given)
    return lambda nfe: (sampler, {"nfe": sampler.calls(nfe), "sampler": plain})
