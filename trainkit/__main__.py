"""``python -m trainkit``: the same as the ``trainkit`` command."""

import sys

from trainkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
