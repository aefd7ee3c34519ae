"""The structure of the package: rooms import only downward, files without circles, few things at the top."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ersde_lit"
# From top to bottom; each room imports from those below it only.
ROOMS = [
    "cli", "interop", "tuning", "sweeps", "callbacks", "training", "sampling", "analysis", "metrics", "denoisers",
    "networks", "solvers", "data", "untrusted", "ranks", "progress", "tf32", "files", "renamed", "names", "errors",
]  # fmt: skip
OLD_NAMES = {"evaluation"}  # stands for rooms of today
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Modules of ours that a file imports: when it is imported itself, or in its functions too."""
    nodes = [*ast.parse(path.read_text()).body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ersde_lit":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if everywhere or not (is_function or is_typing):
            nodes += ast.iter_child_nodes(node)


def test_every_room_has_its_place() -> None:
    rooms = {room(module) for module in MODULES} - {"", "__main__"} - OLD_NAMES
    assert rooms == {*ROOMS}


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in ROOMS])
def test_rooms_import_only_downward(module: str) -> None:
    own = ROOMS.index(room(module))
    for other in imports(MODULES[module], everywhere=True):
        if other != "ersde_lit":
            assert room(other) in ROOMS[own:], f"{module} imports {other}, which is above it"


def test_files_import_without_circles() -> None:
    graph = {module: {*imports(path, everywhere=False)} - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_lowest_rooms_need_torch_numpy_and_einops_alone() -> None:
    for module, path in MODULES.items():
        if room(module) in ("solvers", "networks", "denoisers"):
            found = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
            assert found - sys.stdlib_module_names <= {"torch", "numpy", "einops", "ersde_lit"}, module


def test_the_top_level_holds_nothing_else() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    top = {path.split("/")[0] for path in tracked}
    expected = {"pyproject.toml", "README.md", "LICENSE", "ersde_lit", "configs", "tests", "tools"}
    assert {name for name in top if not name.startswith(".")} == expected


def test_every_module_says_what_it_is() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), module
