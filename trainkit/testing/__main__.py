"""``python -m trainkit.testing``: the nursery. `trainkit.testing.connection` starts it."""

import sys

from trainkit.testing.nursery import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
