"""Every test in this folder needs torch."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
