"""Every test in this folder needs torch, and most save in a single process."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")


def pytest_collection_modifyitems(items):
    # DCP warns where no process group is there, which is what these tests mean.
    quiet = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(quiet)
