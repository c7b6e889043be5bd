"""The fault matrix; `counting` has its options and the table at the end."""

import numpy  # noqa: F401 - says that this folder is not for an environment without it
