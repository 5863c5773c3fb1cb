"""`python -m heptad`: the command line."""

import sys

from heptad.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
