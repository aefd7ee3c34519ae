"""Parity with outputs of the published code and with vectors of the exact formulas, all of them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ersde_lit.solvers import ERSDE, grids, sample
from ersde_lit.solvers.oracles import Mixture

VECTORS = {
    name: torch.from_numpy(np.asarray(array))
    for name, array in np.load(Path(__file__).parents[1] / "data" / "er_sde_vectors.npz").items()
}
PHI = ("ode", "sde", "er_sde_1", "er_sde_2", "er_sde_3", "er_sde_4", "er_sde_5")
RUN = re.compile(r"(rootve|rootvp|exact_ve|exact_vp|pc_ve|pc_vp|venz|ve|vp)_o(\d)_phi(\d)_nfe(\d+)")
RUNS = [match.groups() for match in map(RUN.fullmatch, VECTORS) if match]
DENOISER = Mixture(VECTORS["weights"], VECTORS["mu"], VECTORS["std"].unsqueeze(1))


class FixedNoise:
    def step(self, i: int) -> Tensor:
        return VECTORS["noise"][i]


def test_every_vector_is_run() -> None:
    assert len(RUNS) == 63 * 4 + 42 * 2 + 27 + 14 + 7


@pytest.mark.parametrize(("kind", "order", "phi", "nfe"), RUNS)
def test_run(kind: str, order: str, phi: str, nfe: str) -> None:
    exact = kind.startswith(("exact", "pc"))
    solver = ERSDE(
        int(order), PHI[int(phi) - 1], corrector=int(order) if kind.startswith("pc") else None, paper=not exact
    )
    if kind.endswith("vp"):
        lams, alphas = VECTORS[f"vp_lambdas_nfe{nfe}"], VECTORS[f"vp_alphas_nfe{nfe}"]
        y, scale = VECTORS["x_unit"] / alphas[0], alphas[-1]
    else:
        lams = VECTORS[f"ve_sigmas_nfe{nfe}"][: -1 if kind == "venz" else None]
        y, scale = VECTORS["x_unit"] * lams[0], 1
    out = sample(DENOISER, solver.tableau(lams), y, noise=FixedNoise()) * scale
    torch.testing.assert_close(
        out, VECTORS["_".join([kind, f"o{order}", f"phi{phi}", f"nfe{nfe}"])], rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_rows(nfe: int) -> None:
    tableau = ERSDE().tableau(VECTORS[f"ve_sigmas_nfe{nfe}"])
    for name in "rcb":
        torch.testing.assert_close(getattr(tableau, name), VECTORS[f"table_{name}_nfe{nfe}"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_grids(nfe: int) -> None:
    torch.testing.assert_close(grids.edm(nfe), VECTORS[f"ve_sigmas_nfe{nfe}"], rtol=1e-14, atol=0)
    torch.testing.assert_close(grids.vp_discrete(nfe), VECTORS[f"vp_lambdas_nfe{nfe}"], rtol=1e-12, atol=0)


def test_denoiser() -> None:
    for y, lam, x0 in zip(*(VECTORS[f"denoiser_{name}"] for name in ("x", "lambda", "x0")), strict=True):
        torch.testing.assert_close(DENOISER(y.unsqueeze(0), lam).squeeze(0), x0, rtol=0, atol=1e-13)
