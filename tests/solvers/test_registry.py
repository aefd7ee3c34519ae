import pytest
import torch

from ersde_lit import names
from ersde_lit.solvers import DDIM, ERSDE, Default, Heun, NFECounter, SeededNoise, TableSampler, grids, registry


@pytest.mark.parametrize("name", [*registry.SOLVERS, *registry.SAMPLERS])
def test_every_sampler_runs(name: str) -> None:
    counter = NFECounter(lambda y, lam: y / (1 + lam**2))
    out = registry.sampler(name, registry.grid("edm", rho=5))(counter, SeededNoise([1], (2,)), 7)
    assert out.isfinite().all()
    assert counter.nfe == 7


def test_every_solver_has_a_table_of_its_own() -> None:
    lams = grids.edm(6, zero=False)
    tables = [make().tableau(lams) for name, make in registry.SOLVERS.items() if name != "euler"]  # it is ddim
    rows = [str([x.tolist() for x in table[1:5] if x is not None]) for table in tables]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("name", registry.GRIDS)
def test_every_grid_is_there(name: str) -> None:
    assert registry.grid(name, zero=True)(5).shape == (6,)


def test_names_mean_what_they_say() -> None:
    assert registry.solver("ddpm") == DDIM(1.0)
    assert registry.solver("euler") == registry.solver("ddim") == DDIM()
    assert registry.solver("er_sde", order=2, noise_scale="sde") == ERSDE(2, "sde")
    assert registry.sampler("er_sde", corrector=3) == TableSampler(ERSDE(corrector=3))
    assert registry.sampler("heun", churn=4.0) == Heun(churn=4.0)
    assert torch.equal(registry.grid("edm", rho=5)(4), grids.edm(4, rho=5))


def test_a_sampler_may_be_given_as_a_solver_or_a_name() -> None:
    assert registry.as_sampler(ERSDE(2)) == TableSampler(ERSDE(2))
    assert registry.as_sampler("ddim") == registry.as_sampler(DDIM()) == TableSampler(DDIM())
    assert registry.as_sampler("heun") == registry.as_sampler(Heun()) == Heun()
    assert registry.as_sampler("default") == registry.as_sampler(None) == Default()
    for other in (3, ERSDE, Heun, [DDIM()], lambda *arguments: None):
        with pytest.raises(ValueError, match="is no sampler, solver or name of one"):
            registry.as_sampler(other)
    for name in ("eular", ""):
        with pytest.raises(ValueError, match=f"unknown sampler '{name}', choose from er_sde"):
            registry.as_sampler(name)


def test_unknown_names_list_the_known_ones() -> None:
    for make in (registry.solver, registry.sampler):
        with pytest.raises(ValueError, match=r"unknown \w+ 'eular', choose from er_sde, euler"):
            make("eular")
    with pytest.raises(ValueError, match="unknown grid 'karras', choose from edm"):
        registry.grid("karras")
    with pytest.raises(ValueError, match="has no option 'ordre', only order, noise_scale"):
        registry.solver("er_sde", ordre=2)
    with pytest.raises(ValueError, match="has no option 'n', only lam_min"):
        registry.grid("edm", n=5)


def test_names_known_without_torch_are_those_of_the_registry() -> None:
    assert (*registry.SOLVERS,) == names.SOLVERS
    assert (*registry.SAMPLERS,) == names.SAMPLERS
    assert (*registry.GRIDS,) == names.GRIDS
