"""Runs commands of ersde_lit one after the other in the same process, and so on the same ranks.

Arguments: the commands, each as a JSON list. With SAVE_FAILS_AT=K in the environment, block K of a sampling run cannot
be written where `--out` is a.npz. Exits with the code of the last command; all others must succeed. Says on standard
error where a process group is left at exit: its threads may abort the process.
"""

import atexit
import json
import os
import sys

import torch.distributed as dist


@atexit.register  # before ersde_lit's, so it runs after them
def check_group_was_left() -> None:
    if dist.is_initialized():
        print("a process group is left", file=sys.stderr)


from ersde_lit.cli import main  # noqa: E402
from ersde_lit.files import disk_errors  # noqa: E402
from ersde_lit.sampling.work import Work  # noqa: E402

save = Work.save


def save_on_a_full_disk(work, number, images):
    if str(work.out) == "a.npz" and str(number) == os.environ.get("SAVE_FAILS_AT"):
        with disk_errors(work.out):
            raise OSError(28, "No space left on device")
    save(work, number, images)


if __name__ == "__main__":
    Work.save = save_on_a_full_disk
    *earlier, last = map(json.loads, sys.argv[1:])
    for command in earlier:
        assert main(command) == 0
    sys.exit(main(last))
