"""`python -m fastglow`: the `fastglow` command, without an installed script."""

import sys

from fastglow.cli import main

if __name__ == "__main__":
    sys.exit(main())
