import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys

for name in ("lightning", "pytorch_lightning", "torchmetrics", "torchvision", "diffusers", "jsonargparse", "scipy"):
    sys.modules[name] = None  # so that importing it raises

def import_all(room):
    room = importlib.import_module("ersde_lit." + room)
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
    return {name.split(".")[1] for name in sys.modules if name.startswith("ersde_lit.")}

GROUND = {"errors", "names"}
assert import_all("solvers") <= {"solvers", *GROUND}
import_all("networks")
assert import_all("denoisers") <= {"solvers", "networks", "denoisers", *GROUND}
"""


def test_lower_rooms_need_torch_numpy_and_einops_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
