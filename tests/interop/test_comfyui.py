"""The node for ComfyUI, called as ComfyUI calls it; and in ComfyUI itself where COMFYUI names a checkout of it."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from itertools import pairwise
from operator import lt
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import ersde_lit.interop.comfyui
from ersde_lit.interop.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, NOISE_SCALES
from ersde_lit.interop.k_diffusion import sample_er_sde
from ersde_lit.solvers import ERSDE, SavedTables, SeededNoise, grids, write_tables
from ersde_lit.solvers import noise_scale as noise_scales

ROOT = Path(__file__).parents[2]
SHAPE = (3, 4, 4)
SIGMAS = grids.edm(8, lam_max=14.6, lam_min=0.03)
NOISE = SeededNoise([5, 6], SHAPE, dtype=torch.float64)
NODE, TABLES_NODE = NODE_CLASS_MAPPINGS.values()
INPUTS = NODE.INPUT_TYPES()["required"]


class KSAMPLER:
    """Calls its function as ComfyUI's does: three arguments by position, the others by name."""

    def __init__(self, function: Any, extra_options: dict[str, Any] = {}, inpaint_options: dict[str, Any] = {}):  # noqa: B006
        self.function, self.extra_options = function, extra_options

    def sample(self, model: Any, sigmas: Tensor, extra_args: dict[str, Any], x: Tensor) -> Tensor:
        extra_args["denoise_mask"] = None
        return self.function(model, x, sigmas, extra_args=extra_args, callback=None, disable=True, **self.extra_options)


@pytest.fixture(autouse=True)
def _comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = ModuleType("comfy.samplers")
    samplers.KSAMPLER = KSAMPLER  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


class CONST:
    """ComfyUI's mark of a flow model."""

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


class Model:
    """As ComfyUI wraps one, exact for two Gaussians in each coordinate; keeps what it was called with."""

    def __init__(self, flow: bool = False):
        self.sigmas: list[float] = []
        sampling = CONST() if flow else SimpleNamespace()
        patcher = SimpleNamespace(get_model_object={"model_sampling": sampling}.get)
        self.inner_model, self.flow = SimpleNamespace(model_patcher=patcher), flow

    def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Any, seed: Any = None) -> Tensor:
        self.sigmas.append(float(sigma[0]))
        sigma = sigma.view(-1, 1, 1, 1)
        y, lam = (x / (1 - sigma), sigma / (1 - sigma)) if self.flow else (x, sigma)
        return (0.04 * y + lam**2 * 0.4 * torch.tanh(0.4 * y / (0.04 + lam**2))) / (0.04 + lam**2)


def run(model: Model, sigmas: Tensor = SIGMAS, seed: int = 5, **options: Any) -> Tensor:
    defaults = {name: more.get("default", kind[0]) for name, (kind, more) in INPUTS.items()}
    (sampler,) = getattr(NODE(), NODE.FUNCTION)(**{**defaults, **options})
    return sampler.sample(model, sigmas, {"seed": seed}, sigmas[0] * NOISE.initial())


def plain(model: Model, sigmas: Tensor = SIGMAS, x: Tensor | None = None, **options: Any) -> Tensor:
    x = sigmas[0] * NOISE.initial() if x is None else x
    return sample_er_sde(model, x, sigmas, {"seed": 5, "denoise_mask": None}, disable=True, **options)


def test_it_needs_no_comfyui_and_little_else() -> None:
    code = "import sys, ersde_lit.interop.comfyui; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"comfy", "lightning", "torchvision", "torchmetrics", "diffusers"} & {*done.stdout.split()}


def test_one_line_installs_it(tmp_path: Path) -> None:
    """The line shown, in a file that is loaded as ComfyUI loads those in custom_nodes."""
    for text in (ersde_lit.interop.comfyui.__doc__, ersde_lit.interop.__doc__):
        (line, name), *_ = re.findall(r'echo "(.*)" > custom_nodes/(.*)', text or "")
        path = tmp_path / name
        path.write_text(line)
        spec = importlib.util.spec_from_file_location(str(path.with_suffix("")), path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
        assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()
        assert [*NODE_DISPLAY_NAME_MAPPINGS.values()] == ["ER-SDE sampler (ersde-lit)", "Learned sampler (ersde-lit)"]


def test_inputs_are_what_comfyui_reads() -> None:
    assert NODE.RETURN_TYPES == ("SAMPLER",)
    assert [*INPUTS] == [*inspect.signature(getattr(NODE, NODE.FUNCTION)).parameters][1:]
    assert "seed" not in INPUTS  # ComfyUI's page changes one of that name after each run
    for kind, more in INPUTS.values():
        assert len(more["tooltip"]) > 20
        if kind in ("INT", "FLOAT"):
            assert more["min"] <= more["default"] <= more["max"] <= 2**53  # what JavaScript can count to
        else:
            assert kind == "BOOLEAN" or (isinstance(kind, list) and len({*kind}) == len(kind) > 1)
    assert {*NOISE_SCALES} == {*sys.modules[noise_scales.__module__]._NAMED}


@pytest.mark.parametrize("flow", [False, True])
def test_the_node_of_tables_gives_the_sampler_with_its_sigmas(flow: bool, tmp_path: Path) -> None:
    solver = ERSDE(2, "sde", corrector=3)
    write_tables(tmp_path / "x.tables", SavedTables({8: solver.tableau(SIGMAS)}))
    sampling = CONST() if flow else SimpleNamespace()
    patcher = SimpleNamespace(get_model_object={"model_sampling": sampling}.get)
    names = [*TABLES_NODE.INPUT_TYPES()["required"]]
    given = dict(zip(names, (patcher, str(tmp_path / "x.tables"), 8, -1), strict=True))
    sampler, sigmas = getattr(TABLES_NODE(), TABLES_NODE.FUNCTION)(**given)
    assert TABLES_NODE.RETURN_TYPES == ("SAMPLER", "SIGMAS")
    torch.testing.assert_close(sigmas.double(), SIGMAS / (1 + SIGMAS) if flow else SIGMAS)
    model = Model(flow)
    x = (sigmas[0] * NOISE.initial()).double()
    out = sampler.sample(model, sigmas, {"seed": 5}, x)
    like = plain(Model(flow), sigmas, x, order=2, noise_scale="sde", corrector=3)
    torch.testing.assert_close(out, like, rtol=0, atol=1e-4)
    assert model.sigmas == pytest.approx(sigmas[:-1].tolist())
    with pytest.raises(ValueError, match="no table of 5 calls, only of 8"):
        getattr(TABLES_NODE(), TABLES_NODE.FUNCTION)(**{**given, "steps": 5})


def test_a_file_that_was_learned_anew_is_read_again(tmp_path: Path) -> None:
    """ComfyUI runs a node again where IS_CHANGED gives something else; it passes None for what is linked."""
    path = tmp_path / "x.tables"
    given = {"model": None, "file": str(path), "steps": 8, "step_seed": -1}

    def changed(**other: Any) -> Any:
        return TABLES_NODE.IS_CHANGED(**{**given, **other})

    write_tables(path, SavedTables({8: ERSDE(2).tableau(SIGMAS)}))
    first = changed()
    assert changed() == first
    write_tables(path, SavedTables({8: ERSDE(3).tableau(SIGMAS)}))
    assert changed() != first
    for file in (None, "", str(tmp_path / "absent.tables")):
        found = changed(file=file)
        assert found != found  # NaN


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({}, {"corrector": 3}),
        ({"corrector": 0}, {}),
        ({"order": 5, "noise_scale": "sde", "corrector": 1}, {"order": 5, "noise_scale": "sde", "corrector": 1}),
        ({"eta": 0.5}, {"corrector": 3, "noise_scale": "eta:er_sde_5:0.5"}),
        ({"eta": 0.0}, {"corrector": 3, "noise_scale": "ode"}),
        ({"order": 2, "nodes": "log"}, {"order": 2, "corrector": 3, "nodes": "log"}),
        ({"nodes": "asinh", "nodes_scale": 0.5}, {"corrector": 3, "nodes": 0.5}),
        ({"nodes": "asinh, relative"}, {"corrector": 3, "nodes": 2.0, "relative": True}),
        ({"s_noise": 1.1}, {"corrector": 3, "s_noise": 1.1}),
    ],
)
def test_it_is_sample_er_sde(inputs: dict[str, Any], options: dict[str, Any]) -> None:
    torch.testing.assert_close(run(Model(), **inputs), plain(Model(), **options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NOISE_SCALES)
def test_every_noise_scale_runs(name: str) -> None:
    assert run(Model(), noise_scale=name).isfinite().all()


def test_seeds_of_the_noise() -> None:
    """ComfyUI's, or the node's own, whatever ComfyUI's is."""
    five = run(Model(), seed=5)
    assert torch.equal(run(Model(), seed=6, step_seed=5), five)
    assert not torch.equal(run(Model(), seed=6), five)
    assert torch.equal(run(Model(), seed=5, step_seed=0), run(Model(), seed=0))
    assert torch.equal(run(Model(), seed=2**64 - 1), run(Model(), seed=2**48 - 1))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_paper_is_their_algorithm(order: int) -> None:
    """Differences for derivatives and sums of 200 points, written down anew; steps small enough for tiny variances."""
    lams = torch.cat([torch.logspace(1, -3, 60, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    model, y, slopes, old = Model(), lams[0] * NOISE.initial(), [], None

    def phi(lam: Tensor) -> Tensor:
        return lam * ((lam**0.3).exp() + 10)

    for i, (s, t) in enumerate(pairwise(lams[:-1])):
        x0 = model(y, s.expand(2), None)
        r, points = phi(t) / phi(s), t + (s - t) / 200 * torch.arange(200)
        y = r * y + (1 - r) * x0 + (t**2 - (s * r) ** 2).sqrt() * NOISE.step(i)
        if old is not None:
            slopes.append((x0 - old) / (s - lams[i - 1]))
        if slopes and order > 1:
            y += (t - s + phi(t) * (s - t) / 200 * (1 / phi(points)).sum()) * slopes[-1]
        if len(slopes) > 1 and order > 2:
            curve = 2 * (slopes[-1] - slopes[-2]) / (s - lams[i - 2])
            y += ((t - s) ** 2 / 2 + phi(t) * (s - t) / 200 * ((points - s) / phi(points)).sum()) * curve
        old = x0
    expected = model(y, lams[-2].expand(2), None)
    torch.testing.assert_close(run(Model(), lams, paper=True, order=order), expected, rtol=0, atol=1e-10)


def test_flow_models_start_where_comfyuis_samplers_start() -> None:
    """Pure noise, which has no finite lam, 1e-4 of the schedule later; what is not pure noise where it is."""
    pure = torch.linspace(1, 0, 9, dtype=torch.float64)
    start = torch.cat([torch.tensor([1 - 1e-4], dtype=torch.float64), pure[1:]])
    model, same = Model(flow=True), Model(flow=True)
    x0 = run(model, pure)
    assert model.sigmas == start[:-1].tolist()
    torch.testing.assert_close(x0, plain(same, start, corrector=3, x=NOISE.initial()), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(model, pure[1:]), plain(same, pure[1:], corrector=3), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(Model(), pure), plain(Model(), pure, corrector=3), rtol=0, atol=1e-12)
    assert torch.equal(run(model, pure[:1]), NOISE.initial())


def test_refuses_in_the_solvers_words() -> None:
    with pytest.raises(ValueError, match="orders 1 to 3, not 4"):
        run(Model(), order=4, paper=True)
    with pytest.raises(ValueError, match="unstable with noise"):
        run(Model(), order=3, nodes="log")
    with pytest.raises(ValueError, match=r"er_sde_4.* is not valid from lam 99"):
        run(Model(flow=True), torch.linspace(1, 0, 201), noise_scale="er_sde_4")
    with pytest.raises(ValueError, match="eta s must be"):
        run(Model(), eta=-1)


@pytest.mark.skipif("COMFYUI" not in os.environ, reason="COMFYUI names no checkout of ComfyUI")
def test_in_comfyui_itself(tmp_path: Path) -> None:
    """Its er_sde with the published settings to 1e-4, and nearer to exact than that."""
    out = tmp_path / "comfyui.md"
    tool = [sys.executable, ROOT / "tools/comfyui.py", os.environ["COMFYUI"], "--nfe", "[5,10]", "--out", out]
    subprocess.run(tool, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    same, exact, _ = (
        {title.strip(): [float(cell.strip(" *")) for cell in cells] for title, *cells in map(split, rows[2:])}
        for rows in map(str.splitlines, out.read_text().split("\n\n")[:3])
    )
    assert len(same) == 8
    assert max(map(max, same.values())) < 1e-4
    for schedule in ("eps, simple", "flow, simple", "flow, beta"):
        for name in ("node, corrector 0", "node as it comes (corrector 3)"):
            assert all(map(lt, exact[f"{schedule}: {name}"], exact[f"{schedule}: er_sde"]))


def split(row: str) -> list[str]:
    return row.strip("| ").split("|")
