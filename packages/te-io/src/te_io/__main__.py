"""`python -m te_io` is `te-io`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
