"""`python -m natgrad_fast.bench`."""

import sys

from .app import main

if __name__ == "__main__":
    sys.exit(main())
