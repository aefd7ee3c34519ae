"""Options of a sweep: samplers x grids x NFE, and sets of seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ersde_lit.cli.options.sampler import OF_GRID, SamplerOptions
from ersde_lit.cli.parser import make, options_of, split
from ersde_lit.errors import UserError
from ersde_lit.sampling.seeds import parse_seeds

if TYPE_CHECKING:
    from ersde_lit.solvers import Sampler, SavedTables


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
        solvers: those of `sample`, with options of theirs, as in default,er_sde:order=3:corrector=3,unipc2,heun, and
            files of learned tables, as NAME.tables.
        grids: noise levels, as in edm,log_uniform:sigma_max=20; each solver's own if not given.
        samplers: in YAML, label to options of `sample`, nfe included, or to class_path and init_args of any sampler.
    """

    nfe: str | int | list[int] = 20
    solvers: str | list[str] | None = None
    grids: str | list[str] | None = None
    samplers: dict[str, dict[str, Any]] | None = None

    @property
    def nfes(self) -> list[int]:
        """The NFEs that were asked for, of samplers without their own."""
        return _nfes("--nfe", self.nfe)

    def choices(self, denoiser: Any, carried: "SavedTables | None" = None) -> list[Choice]:
        """Makes every sampler at every NFE; raises UserError, naming the sampler, for options that conflict.

        Args:
            carried: the tables in the denoiser's checkpoint.
        """
        found: dict[tuple[str, int], Choice] = {}
        for label, given, nfes in self._samplers():
            for nfe in nfes:
                try:
                    if isinstance(given, SamplerOptions):
                        sampler, named = replace(given, nfe=nfe).sampler(denoiser, carried)
                    else:
                        sampler, named = given[0], {"nfe": given[0].calls(nfe), "sampler": given[1]}
                except ValueError as error:
                    raise UserError(f"sampler {label}, NFE {nfe}: {error}") from None
                found.setdefault((label, named["nfe"]), Choice(label, nfe, named["nfe"], sampler, named))
        return [*found.values()]

    def _samplers(self) -> Iterator[tuple[str, "SamplerOptions | tuple[Sampler, dict[str, Any]]", list[int]]]:
        """Yields each sampler's label; its options, or the sampler and its description; its NFEs."""
        from ersde_lit.solvers import Sampler

        chosen = {text: {"solver": text} for text in split(self.solvers or [])} | (self.samplers or {})
        for label, given in (chosen or {"default": {}}).items():
            if "class_path" in given:
                yield label, make("samplers", Sampler, given), self.nfes
                continue
            given, nfes = {**given}, _nfes(f"samplers: nfe of {label}:", given["nfe"]) if "nfe" in given else self.nfes
            given.pop("nfe", None)
            if self.grids and (own := {"grid", *OF_GRID} & given.keys()):
                raise UserError(f"sampler {label} has a {min(own)} of its own: leave it or --grids out")
            grids = split(self.grids or [])
            for grid in grids or [""]:
                choice = {**given, "grid": grid} if grid else given
                options = options_of(f"solvers {label}", SamplerOptions, choice, ["preset", "nfe"])
                yield f"{label} on {grid}" if len(grids) > 1 else label, options, nfes


def _nfes(option: str, given: str | int | list[int]) -> list[int]:
    numbers = split(given)
    if not numbers or not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
        raise UserError(f"{option} {given}: write numbers of network calls as in 5,10,20")
    return sorted({int(number) for number in numbers})


def seed_sets(texts: Sequence[str]) -> list[Sequence[int]]:
    """Parses sets of seeds; raises UserError unless they are disjoint, of one size, and of two seeds or more."""
    sets = [parse_seeds(text) for text in texts]
    seen: set[int] = set()
    for seeds, text in zip(sets, texts, strict=True):
        if len(seeds) < 2:
            raise UserError(f"--seeds {text}: a set needs at least two images to be measured")
        if len(seeds) != len(sets[0]):
            raise UserError(f"--seeds: {text} are {len(seeds)} and {texts[0]} {len(sets[0])}: take sets of one size")
        if not seen.isdisjoint(seeds):
            raise UserError(f"--seeds {text} has seeds of another set: their spread would be too small")
        seen |= set(seeds)
    return sets
