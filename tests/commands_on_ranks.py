"""Runs commands of ersde_lit one after the other in the same process, and so on the same ranks.

Arguments: the commands, each as a JSON list. With SAVE_FAILS_AT=K in the environment, block K of a sampling run cannot
be written where `--out` is a.npz. Exits with the code of the last command; all others must succeed.
"""

import json
import os
import sys

from ersde_lit.cli import main
from ersde_lit.files import disk_errors
from ersde_lit.sampling.work import Work

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
