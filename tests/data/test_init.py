import subprocess
import sys

import pytest

import trainkit.data

HEAVY = "torch", "numpy", "torchvision", "PIL", "fsspec"


def test_every_name_can_be_imported():
    pytest.importorskip("torch")
    assert sorted(trainkit.data.__all__) == trainkit.data.__all__ == dir(trainkit.data)
    for name in trainkit.data.__all__:
        assert getattr(trainkit.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainkit.data.nothing  # noqa: B018


def test_what_needs_no_torch_loads_none():
    code = f"""
import sys
from trainkit.data import SamplePosition, load_mnist, scan_images
import trainkit.data.download
print(sorted(set(sys.modules) & {set(HEAVY)}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
