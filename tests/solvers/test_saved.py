"""Saved tables: what is written is read, what is damaged is refused, and a table runs as the solver that made it."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import (
    DEIS,
    ERSDE,
    Sampler,
    SavedTables,
    SeededNoise,
    Solver,
    Tableau,
    TableSampler,
    UniPC,
    grids,
    learned,
    read_tables,
    registry,
    sample,
    write_tables,
)

NOISE = SeededNoise([1, 2], (3,), dtype=torch.float64)
SOLVERS = [ERSDE(2, "sde", corrector=3), ERSDE(3, "er_sde_3"), UniPC(3), DEIS()]
FACTS = {"network": "0123456789abcdef", "guidance": {"cfg_scale": 2.0}, "scores": [[0.1, None], "KID"]}


def exact(y: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
    return (0.25 * y + lam**2 * 0.3) / (0.25 + lam**2)


def saved(solver: Solver, *nfes: int, grid: grids.Grid = grids.edm, **changes: Any) -> SavedTables:
    return SavedTables({n: solver.tableau(grid(n))._replace(**changes) for n in nfes}, FACTS)


class Levels:
    """A denoiser of discrete levels."""

    def __init__(self, levels: Tensor, low: float = 0.0, high: float = 1e9) -> None:
        self.levels, self.lam_min, self.lam_max = levels, low, high

    __call__ = staticmethod(exact)


# What is written is read

NUMBER = st.floats(-1e300, 1e300, allow_subnormal=True)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tables(draw: st.DrawFn, n: int) -> Tableau:
    def rows(of: st.SearchStrategy[float], count: int | None = None) -> Tensor:
        size = n if count is None else n * count
        numbers = torch.tensor(draw(st.lists(of, min_size=size, max_size=size)), dtype=torch.float64)
        return numbers if count is None else numbers.view(n, count)

    levels = draw(st.lists(st.floats(1e-6, 1e6), min_size=n, max_size=n, unique=True))
    lams = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    positive = st.floats(1e-300, 1e300)
    corrector = rows(NUMBER, draw(st.integers(1, 4))).tril(1) if draw(st.booleans()) else None
    calls = rows(positive) if draw(st.booleans()) else None
    history: Any = draw(st.sampled_from(["x0", "d"]))
    c = rows(NUMBER, draw(st.integers(1, 4))).tril()
    return Tableau(lams, rows(NUMBER), c, rows(st.floats(0, 1e300)), corrector, history, calls)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_to_the_last_bit(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    nfes = data.draw(st.sets(st.integers(1, 6), min_size=1, max_size=3))
    before = SavedTables(
        {n: data.draw(tables(n)) for n in nfes}, data.draw(st.dictionaries(st.text(), PLAIN, max_size=3))
    )
    path = tmp_path_factory.getbasetemp() / "round.tables"
    write_tables(path, before)
    after = read_tables(path)
    assert after == before
    assert hash(after) == hash(before)
    assert [*after.tables] == sorted(nfes)
    for n in nfes:
        assert after.digest(n) == before.digest(n)
        for one, other in zip(before.tables[n], after.tables[n], strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes() if isinstance(one, Tensor) else one == other


def test_the_file_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "x.tables"
    write_tables(path, saved(UniPC(), 2, 5, calls=None))
    plain = json.loads(path.read_text())
    assert plain.keys() == {"format", "facts", "tables"}
    assert (plain["format"], plain["facts"]) == ("ersde-lit tables 1", FACTS)
    assert plain["tables"].keys() == {"2", "5"}
    assert plain["tables"]["5"].keys() == {"lams", "r", "c", "b", "corrector", "history", "calls"}
    assert plain["tables"]["5"]["lams"] == grids.edm(5).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tables"]


def test_copies_are_equal_and_others_are_not() -> None:
    tables = saved(ERSDE(), 4)
    for twin in (pickle.loads(pickle.dumps(tables)), copy.deepcopy(tables), SavedTables.of_plain(tables.plain())):
        assert twin == tables
        assert len({twin, tables}) == 1
    assert tables != saved(ERSDE(2), 4)
    assert tables != SavedTables(tables.tables, {})
    assert tables.digest(4) == SavedTables(tables.tables, {}).digest(4) != saved(ERSDE(2), 4).digest(4)
    assert "tensor" not in repr(tables)


# A table runs as the solver that made it


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_it_samples_as_its_solver(solver: Solver, tmp_path: Path) -> None:
    write_tables(tmp_path / "x.tables", saved(solver, 3, 8))
    tables = read_tables(tmp_path / "x.tables")
    for n in (3, 8):
        expected = TableSampler(solver)(exact, NOISE, n)
        for sampler in (TableSampler(tables, tables.grid), tables.sampler, registry.as_sampler(tables)):
            assert torch.equal(sampler(exact, NOISE, n), expected)


def test_calls_are_told() -> None:
    calls = grids.edm(5)[:-1] * torch.tensor([0.8, 0.9, 1.1, 0.95, 0.9], dtype=torch.float64)
    tables = saved(UniPC(), 5, calls=calls)
    heard: list[float] = []

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        heard.append(float(lam))
        return exact(y, lam)

    out = tables.sampler(denoiser, NOISE, 5)
    assert heard == calls.tolist() == tables.tables[5].told.tolist()
    table = UniPC().tableau(grids.edm(5))._replace(calls=calls)
    assert torch.equal(out, sample(exact, table, 80 * NOISE.initial()))


def test_the_levels_of_a_discrete_process_fit_to_rounding() -> None:
    grid = grids.vp_discrete(6)
    tables = SavedTables({6: ERSDE(2).tableau(grid)})
    denoiser = Levels(grids.vp_levels() * (1 + 1e-7), 0.01, 158)
    assert torch.equal(tables.sampler(denoiser, NOISE, 6), TableSampler(ERSDE(2), grids.vp_discrete)(exact, NOISE, 6))
    with pytest.raises(UserError, match=r"its own noise levels alone: level 0 is 41\.5"):
        tables.sampler(Levels(grids.vp_levels()[::7]), NOISE, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tables: tables.grid(6), "no table of 6 calls, only of 4, 5$"),
        (lambda tables: tables.sampler(exact, NOISE, 3), "no table of 3 calls, only of 4, 5$"),
        (lambda tables: tables.grid(0), "integer"),
        (lambda tables: tables.digest(6), "only of 4, 5"),
        (lambda tables: TableSampler(tables)(exact, NOISE, 5), "level 1 is 15.* and here 17.*its own grid"),
        (lambda tables: tables.tableau(tables.grid(5) * 1.001), "level 0 is 80, and here 80.08"),
        (lambda tables: tables.sampler(Levels(None, 0.0, 40.0), NOISE, 5), "level 0 is 80, and here 40"),  # type: ignore[arg-type]
    ],
)
def test_it_runs_nowhere_else(make: Any, message: str) -> None:
    tables = saved(ERSDE(), 4, 5, grid=lambda n: grids.log_uniform(n, lam_min=0.1))
    with pytest.raises(UserError, match=message) as error:
        make(tables)
    assert "\n" not in str(error.value)
    assert torch.equal(tables.tableau(tables.grid(5).float()).lams, tables.grid(5))  # single precision will do


# Names


def test_a_name_and_yaml_find_it(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tables")
    write_tables(path, saved(ERSDE(2), 5))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--samplers", type=dict[str, Sampler])
    of_yaml = {"mine": {"class_path": "ersde_lit.solvers.learned", "init_args": {"path": path}}}
    samplers = parser.instantiate(parser.parse_object({"samplers": of_yaml})).samplers
    for sampler in (samplers["mine"], learned(path), registry.as_sampler(path), registry.as_sampler(Path(path))):
        assert torch.equal(sampler(exact, NOISE, 5), TableSampler(ERSDE(2))(exact, NOISE, 5))
    for options in ({"grid": grids.edm}, {"order": 2}):
        with pytest.raises(UserError, match="of its own, and no options"):
            registry.sampler(path, **options)


# What is damaged is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "ersde-lit tables 2"}, "its format is 'ersde-lit tables 2'.* update it"),
        ({"format": "other"}, "holds no tables"),
        ({"format": None}, "holds no tables"),
        ({"tables": {}}, "there are no tables"),
        ({"tables": [1]}, "damaged"),
        ({"tables": None}, "damaged"),
        ({"tables": {"4": {}}}, "damaged"),
        ({"tables": {"four": {}}}, "damaged"),
        ({"facts": [1]}, "facts must be plain data"),
        ({"lams": [5.0, 1.0, 0.0]}, "its 3 lams are not those of 4 calls"),
        ({"lams": [5.0, 4.0, 4.0, 1.0, 0.0]}, "strictly descending"),
        ({"lams": [5.0, 4.0, 3.0, "x", 0.0]}, "no numbers"),
        ({"lams": [[5.0], 4.0, 3.0, 1.0, 0.0]}, "no numbers"),
        ({"r": [1.0, 1.0, 1.0]}, r"its r has the shape \[3\]"),
        ({"r": None}, "no numbers"),
        ({"r": [1.0, 1.0, 1.0, float("nan")]}, "its r must be finite"),
        ({"r": [1.0, 1.0, 1.0, 10**400]}, "no numbers"),
        ({"c": [1.0, 1.0, 1.0, 1.0]}, r"its c has the shape \[4\]"),
        ({"c": [[], [], [], []]}, "its c has the shape"),
        ({"c": [[1.0, 1.0]] * 4}, "its c weighs a history that does not exist"),
        ({"corrector": [[1.0, 1.0, 1.0]] * 4}, "its corrector weighs a history"),
        ({"b": [0.0, -1.0, 0.0, 0.0]}, "its b must be finite, and not negative"),
        ({"calls": [1.0, 1.0, 1.0, 0.0]}, "its calls must be finite, and not negative"),
        ({"calls": [1.0]}, "its calls has the shape"),
        ({"history": "eps"}, "history must be x0 or d, not 'eps'"),
        ({"more": 1}, "damaged"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(saved(ERSDE(2), 4).plain()))
    top = change.keys() <= plain.keys()
    (plain if top else plain["tables"]["4"]).update(change)
    path = tmp_path / "x.tables"
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=message) as error:
        read_tables(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_two_tables_of_one_number_of_calls_are_refused() -> None:
    plain = saved(ERSDE(2), 4).plain()
    plain["tables"]["04"] = plain["tables"]["4"]
    with pytest.raises(UserError, match=r"^two of its tables are of the same number of calls$"):
        SavedTables.of_plain(plain)
    del plain["tables"]["4"]
    assert SavedTables.of_plain(plain) == saved(ERSDE(2), 4)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 10_000, b"PK\x03\x04", b"[1]", b"3", b'"x"'])
def test_what_is_no_table_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tables"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"no (file of )?tables") as error:
        read_tables(path)
    assert "\n" not in str(error.value)


def test_what_is_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.tables"
    write_tables(path, saved(ERSDE(2), 2))
    text = path.read_text()
    for length in range(0, len(text) - 2, 7):
        path.write_text(text[:length])
        with pytest.raises(UserError, match="damaged, truncated"):
            read_tables(path)


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing at"):
        read_tables(tmp_path / "absent.tables")
    with pytest.raises(UserError, match="cannot be read"):
        read_tables(tmp_path)
    for facts in ({"x": torch.ones(1)}, {"x": {1, 2}}):
        with pytest.raises(UserError, match="facts must be plain data"):
            SavedTables(saved(ERSDE(), 2).tables, facts)
