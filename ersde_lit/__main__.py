"""`python -m ersde_lit`."""

import sys

from ersde_lit.cli import main

if __name__ == "__main__":
    sys.exit(main())
