"""`python -m cmsolvers` is the command `cmsolvers`."""

import sys

from cmsolvers.cli import main

if __name__ == "__main__":
    sys.exit(main())
