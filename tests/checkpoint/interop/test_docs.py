"""Every line of code in docs/checkpoint-interop.md is run."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

DOCS = Path(__file__).parents[3] / "docs/checkpoint-interop.md"


class Odd:
    """A value that JSON does not have."""


@pytest.fixture
def alone():
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_code_in_the_docs(tmp_path, monkeypatch, alone):
    if not DOCS.exists():
        pytest.skip("no docs beside the installed package")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(blocks) == 5
    using, pickling, reading, importing, exporting = (
        block.replace("/checkpoints/", f"{tmp_path}/checkpoints/") for block in blocks
    )
    weight = torch.randn(4, 3)
    names = {"state": {"model": {"weight": weight.clone()}, "step": 7}}
    exec(using, names)
    assert torch.equal(names["state"]["model"]["weight"], weight)
    exec(pickling, {**names, "state": {"odd": Odd()}, "url": str(tmp_path / "odd")})
    (folder,) = (tmp_path / "checkpoints/run1").glob(f"step-{100:010d}.*")
    names = {"folder": folder}
    exec(reading, names)
    assert torch.equal(names["whole"], weight)

    # run1 is a run of its own here: imports go on in the same folder
    dcp.save({"model": {"weight": weight}}, checkpoint_id=tmp_path / "old/step-100")
    torch.save({"model": {"weight": weight}}, tmp_path / "old/checkpoint-5.pt")
    (tmp_path / "old/hf-model").mkdir()
    save_file({"weight": weight}, tmp_path / "old/hf-model/model.safetensors")
    exec(importing, {})
    exec(exporting, {})
    assert torch.equal(torch.load("out/step-100.pt")["model"]["weight"], weight)
    state = {"model": {"weight": torch.zeros(4, 3)}}
    dcp.load(state, checkpoint_id="out/step-100")
    assert torch.equal(state["model"]["weight"], weight)
