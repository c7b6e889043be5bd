"""Whether there is anything to check: a GPU, and torch."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from trainkit.doctor.finding import Finding, Status
from trainkit.resources.gpus import visible_gpu_count

__all__ = ["nothing_to_check", "torch_folder", "torch_version"]

NO_GPU = "no GPU was granted: nothing to check"
NO_TORCH = "torch is not installed"


def nothing_to_check(name: str, *, torch: bool = False) -> Finding | None:
    """Why a check of GPUs has nothing to do, or None.

    Args:
        name: of the check.
        torch: whether it needs torch.
    """
    if visible_gpu_count() == 0:
        return Finding(name, Status.NOT_CHECKED, NO_GPU)
    if torch and torch_folder() is None:
        return Finding(name, Status.NOT_CHECKED, NO_TORCH, "Run the doctor in the job's image.")
    return None


def torch_folder() -> Path | None:
    """Where torch is installed, or None; imports nothing of it."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def torch_version(folder: Path) -> tuple[str, str | None]:
    """The version of the torch in ``folder``, and the CUDA that it is built for, if any.

    Out of the file that states both, since importing torch takes seconds.
    """
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown", None
    version = re.search(r"^__version__\s*=\s*'([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=\n]*=\s*'([^']+)'", text, re.MULTILINE)
    return version[1] if version else "unknown", cuda[1] if cuda else None
