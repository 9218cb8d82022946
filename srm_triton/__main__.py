"""`python -m srm_triton` is `srm-triton`."""

import sys

from srm_triton.cli import main

if __name__ == "__main__":
    sys.exit(main())
