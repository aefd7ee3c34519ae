"""Functions run on several gloo ranks, which are forked from one process that has imported everything.

`run_on_ranks("file.py", "function", arguments, ranks=2)` calls file.py's function on each rank, as torchrun would start
them. Starting Python and importing torch for each rank of each test would take most of the tests' time.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent


class Done(NamedTuple):
    """What each rank returned (as JSON holds it), its exit code and what it wrote."""

    values: list[Any]
    codes: list[int]
    said: list[str]


def run_on_ranks(file: str | Path, function: str, arguments: Sequence[Any] = (), ranks: int = 2) -> Done:
    """Calls a function with JSON-like arguments on every rank, in this process's working folder and environment."""
    job = {"file": str(file), "function": function, "arguments": [*arguments], "ranks": ranks}
    server = _server()
    server.stdin.write(json.dumps({**job, "folder": os.getcwd(), "environment": dict(os.environ)}) + "\n")
    server.stdin.flush()
    return Done(*json.loads(server.stdout.readline()))


def command(*arguments: str) -> None:
    """A command line of ours."""
    from ersde_lit.cli import main

    raise SystemExit(main(arguments))


@cache
def _server() -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    server = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    import lightning.pytorch  # noqa: F401  (before ranks are forked)

    import ersde_lit.callbacks
    import ersde_lit.cli.evaluate
    import ersde_lit.cli.fit
    import ersde_lit.sweeps.sweep  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryDirectory() as kept, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            pids = [_fork(job, rank, port, Path(kept)) for rank in range(job["ranks"])]
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            found = [Path(kept, f"{rank}.json") for rank in range(job["ranks"])]
            values = [json.loads(path.read_text()) if path.exists() else None for path in found]
            said = [Path(kept, f"{rank}.txt").read_text() for rank in range(job["ranks"])]
        print(json.dumps([values, codes, said]), flush=True)


def _fork(job: dict[str, Any], rank: int, port: int, kept: Path) -> int:
    if pid := os.fork():
        return pid
    output = os.open(kept / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    count = str(job["ranks"])
    of_torchrun = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests",
    }  # fmt: skip
    os.environ.clear()
    os.environ.update(job["environment"] | {"OMP_NUM_THREADS": "1"} | (of_torchrun if job["ranks"] > 1 else {}))
    code = 1
    try:
        os.chdir(job["folder"])
        sys.path.insert(0, job["folder"])  # as `python -m` does

        sys.path.insert(0, str(Path(job["file"]).parent))
        value = getattr(import_module(Path(job["file"]).stem), job["function"])(*job["arguments"])
        (kept / f"{rank}.json").write_text(json.dumps(value))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
