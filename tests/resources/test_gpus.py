"""How many GPUs a process may use, and whether one was asked for."""

import sys
from types import ModuleType

import pytest

from trainkit.resources import gpus
from trainkit.resources.gpus import Gpu, count_visible, gpu_was_asked_for, visible_gpu_count

FOUR = [Gpu(f"GPU-{letter}1111111-2222") for letter in "abcd"]
NAMELESS = [Gpu()] * 4
MIG = [Gpu("GPU-a", migs=("MIG-1a", "MIG-1b")), Gpu("GPU-b", migs=("MIG-2a",))]


class TestCountVisible:
    @pytest.mark.parametrize(
        ("requested", "count"),
        [
            (None, 4),
            ("", 0),
            ("-1", 0),
            ("NoDevFiles", 0),
            ("none", 0),
            ("0", 1),
            ("0,1,2,3", 4),
            (" 1 , 2 ", 2),
            ("0,1,7,2", 2),  # an index out of range ends the list
            ("0,-1,1", 1),
            ("0,,1", 1),
            ("0,x", 1),
            ("9", 0),
            ("0,0", 0),  # CUDA makes a list with repetitions void
            ("GPU-a1111111-2222", 1),
            ("GPU-a1,GPU-b1", 2),  # ids may be shortened
            ("GPU-", 0),  # but not so far that several fit
            ("GPU-a1,GPU-none,GPU-b1", 1),
            ("GPU-a1,GPU-a11", 0),
            ("MIG-1", 1),
            ("99999999999999999999", 0),
        ],
    )
    def test_of_four(self, requested, count):
        assert count_visible(FOUR, requested) == count

    @pytest.mark.parametrize(
        ("requested", "count"),
        [(None, 4), ("GPU-x,GPU-y", 2), ("MIG-x", 1), ("1,2", 2), ("", 0)],
    )
    def test_ids_are_believed_where_the_driver_tells_none(self, requested, count):
        assert count_visible(NAMELESS, requested) == count

    @pytest.mark.parametrize(
        ("requested", "count"),
        [(None, 3), ("MIG-1a,MIG-2a", 2), ("MIG-9", 0), ("MIG-1a", 1), ("0", 1)],
    )
    def test_mig_devices_count_each(self, requested, count):
        assert count_visible(MIG, requested) == count

    @pytest.mark.parametrize("requested", [None, "0", "GPU-x", "MIG-x"])
    def test_of_none(self, requested):
        assert count_visible([], requested) == 0


class TestDriverFiles:
    def test_proc_with_ids(self, tmp_path):
        for bus, uuid in (("0000:07:00.0", "GPU-aa"), ("0000:0b:00.0", "GPU-????")):
            folder = tmp_path / "proc/driver/nvidia/gpus" / bus
            folder.mkdir(parents=True)
            (folder / "information").write_text(f"Model: H100\nGPU UUID: \t {uuid}\n")
        assert gpus.from_driver_files(str(tmp_path)) == [Gpu("GPU-aa"), Gpu("")]

    def test_device_files(self, tmp_path):
        (tmp_path / "dev").mkdir()
        for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
            (tmp_path / "dev" / name).touch()
        assert gpus.from_driver_files(str(tmp_path)) == [Gpu(), Gpu()]

    def test_nothing(self, tmp_path):
        assert gpus.from_driver_files(str(tmp_path)) == []


class FakeNvml(ModuleType):
    """Two GPUs, the second one with MIG devices at two of its seven places."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails_at=""):
        super().__init__("pynvml")
        self.calls = []
        self._fails_at = fails_at

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args):
            self.calls.append(name)
            if name == self._fails_at:
                raise self.NVMLError("broken")
            return self._answer(name, *args)

        return call

    def _answer(self, name, *args):
        match name, args:
            case "nvmlDeviceGetCount", ():
                return 2
            case "nvmlDeviceGetHandleByIndex", (index,):
                return f"GPU-{index}"
            case "nvmlDeviceGetUUID", (handle,):
                return handle.encode()  # bytes in old bindings
            case "nvmlDeviceGetMigMode", ("GPU-0",):
                raise self.NVMLError("not supported")
            case "nvmlDeviceGetMigMode", _:
                return 1, 1
            case "nvmlDeviceGetMaxMigDeviceCount", _:
                return 7
            case "nvmlDeviceGetMigDeviceHandleByIndex", (_, index):
                if index not in (0, 3):
                    raise self.NVMLError("not found")
                return f"MIG-{index}"
        return None


@pytest.fixture
def driver(monkeypatch):
    def _driver(nvml, files=()):
        monkeypatch.setattr(gpus, "_driver_is_there", lambda root: True)
        monkeypatch.setattr(gpus, "from_driver_files", lambda root: list(files))
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return _driver


class TestVisibleGpuCount:
    def test_by_nvml(self, driver, monkeypatch):
        nvml = driver(FakeNvml())
        assert visible_gpu_count() == 3
        assert nvml.calls[0] == "nvmlInit"
        assert nvml.calls[-1] == "nvmlShutdown"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3")
        assert visible_gpu_count() == 1
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert visible_gpu_count() == 0

    @pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetUUID"])
    def test_by_files_where_nvml_fails(self, driver, call):
        driver(FakeNvml(fails_at=call), files=[Gpu()] * 5)
        assert visible_gpu_count() == 5

    def test_by_files_without_nvml(self, driver):
        driver(None, files=[Gpu()])
        assert visible_gpu_count() == 1

    def test_without_a_driver_nvml_is_not_even_imported(self, monkeypatch):
        monkeypatch.setattr(gpus, "_driver_is_there", lambda root: False)
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert visible_gpu_count() == 0


@pytest.mark.parametrize("device", ["nvidia0", "nvidiactl", "dxg", "nvgpu"])
def test_driver_is_there(tmp_path, device):
    assert not gpus._driver_is_there(str(tmp_path))
    (tmp_path / "dev").mkdir()
    assert not gpus._driver_is_there(str(tmp_path))
    (tmp_path / "dev" / device).touch()
    assert gpus._driver_is_there(str(tmp_path))


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES"),
        ({"CUDA_VISIBLE_DEVICES": "1,2"}, "CUDA_VISIBLE_DEVICES"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8d3f"}, "CUDA_VISIBLE_DEVICES"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-8d3f"}, "CUDA_VISIBLE_DEVICES"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-8d3f"}, "NVIDIA_VISIBLE_DEVICES"),
        ({"NVIDIA_VISIBLE_DEVICES": "0,1"}, "NVIDIA_VISIBLE_DEVICES"),
        ({"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices"}, "NVIDIA_VISIBLE_DEVICES"),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, None),
        # every CUDA base image sets it
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, None),
        # the CPU was asked for explicitly
        ({"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "GPU-8d3f"}, None),
    ],
)
def test_gpu_was_asked_for(environ, variable):
    assert gpu_was_asked_for(environ) == variable
