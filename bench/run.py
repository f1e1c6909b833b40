"""`python bench/run.py`: the benchmarks of the installed package."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder: its modules belong to the package
    from natgrad_fast.bench.app import main

    sys.exit(main())
