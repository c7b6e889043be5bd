"""The same on a real S3 server."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter
from trainkit.storage import ObjectStorage


def test_states_are_saved_to_s3_and_verified_on_load(s3):
    writer = TrainkitWriter(s3)
    for step in (1, 2):
        state = {"w": torch.full((3000,), step), "n": (step,)}
        dcp.save(state, checkpoint_id=f"step-{step}", storage_writer=writer)
    back = {"w": torch.zeros(3000, dtype=int), "n": None}
    dcp.load(back, storage_reader=TrainkitReader(s3))
    assert (back["w"] == 2).all()
    assert back["n"] == (2,)
    dcp.load(back, checkpoint_id=f"{s3}/step-1", storage_reader=TrainkitReader())
    assert (back["w"] == 1).all()
    storage = ObjectStorage(s3)
    (key,) = (k for k in storage._fs.find(storage._root) if "0002.g" in k and "00-0.safe" in k)
    data = bytearray(storage._fs.cat_file(key))
    data[-1] ^= 1
    storage._fs.pipe_file(key, bytes(data))
    with pytest.raises(dcp.CheckpointException, match="do not match their checksum"):
        dcp.load(back, storage_reader=TrainkitReader(s3))
    dcp.load(back, storage_reader=TrainkitReader(s3, step=1))
