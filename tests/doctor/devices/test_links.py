"""Speeds that the kernel tells of interfaces."""

from trainkit.doctor.devices.links import between_gpus, network, speed_of_interface
from trainkit.resources.gpus import visible_gpu_count


def test_speed_of_an_interface(tmp_path):
    folder = tmp_path / "sys/class/net/eth0"
    folder.mkdir(parents=True)
    (folder / "speed").write_text("25000\n")
    assert speed_of_interface("eth0", str(tmp_path)) == 3.125e9
    (folder / "speed").write_text("-1\n")
    assert speed_of_interface("eth0", str(tmp_path)) is None
    assert speed_of_interface("eth1", str(tmp_path)) is None


def test_a_way_that_nobody_tells_of():
    speed, words = network("name.invalid", 1)
    assert speed is None or speed > 0
    assert words
    if visible_gpu_count() == 0:
        assert between_gpus(0) == (None, "nothing tells")
