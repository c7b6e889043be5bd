"""What is seen: here, and in a file that somebody sent."""

import json

import pytest

from trainkit.errors import DataError, InputMissingError, NoPermissionError
from trainkit.topology import Sight


@pytest.fixture
def written(tmp_path):
    def _written(text):
        path = tmp_path / "seen"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Sight.from_file(str(path))

    return _written


class TestLines:
    def test_what_env_prints(self, written):
        sight = written("RANK=1\nPATH=/a:/b\nEMPTY=\nEQUALS=a=b=c\n")
        assert sight.environ == {"RANK": "1", "PATH": "/a:/b", "EMPTY": "", "EQUALS": "a=b=c"}
        assert sight.files == {}
        assert sight.gpus() == 0

    def test_values_over_several_lines(self, written):
        text = '{\n "cluster": {\n\n "worker": ["a:1"]}}'
        sight = written(f"A=1\nTF_CONFIG={text}\nB=2\n")
        assert sight.environ == {"A": "1", "TF_CONFIG": text, "B": "2"}

    def test_a_value_that_ends_the_file(self, written):
        assert written("A=one\ntwo\n").environ == {"A": "one\ntwo"}

    def test_functions_that_bash_exports(self, written):
        sight = written("RANK=1\nBASH_FUNC_module%%=() {  eval x=1\n local y=2\n}\nWORLD_SIZE=2\n")
        assert sight.get("RANK") == "1"
        assert sight.get("WORLD_SIZE") == "2"

    def test_names_that_kubernetes_allows(self, written):
        assert written("my.app-name=x\n").environ == {"my.app-name": "x"}

    def test_nul_bytes_between(self, written):
        sight = written("A=1\0B=two\nlines=3\0")
        assert sight.environ == {"A": "1", "B": "two\nlines=3"}

    def test_windows_line_ends_and_byte_order_mark(self, written):
        assert written(b"\xef\xbb\xbfRANK=1\r\nWORLD_SIZE=2\r\n").get("RANK") == "1"

    def test_bytes_that_are_no_text(self, written):
        assert written(b"A=\xff\xfe\nRANK=1\n").get("RANK") == "1"

    def test_host_name_of_a_pod(self, written):
        assert written("HOSTNAME=job-worker-2\n").hostname == "job-worker-2"

    def test_an_empty_file_is_an_empty_environment(self, written):
        assert written("").environ == {}

    def test_neither_form(self, written):
        with pytest.raises(DataError, match=r"line 2.*'# Heading'"):
            written("\n# Heading\n")


class TestJson:
    def test_a_golden_case(self, written):
        case = {
            "id": "x",
            "environ": {"RANK": "1"},
            "files": {"/h": "a"},
            "hostname": "h",
            "visible_gpus": 2,
        }
        sight = written(json.dumps(case))
        assert sight == Sight({"RANK": "1"}, {"/h": "a"}, "h", 2)
        assert sight.read("/h") == "a"
        assert sight.read("/etc/passwd") is None

    def test_only_what_is_written_is_seen(self, written):
        sight = written('{"environ": {}}')
        assert sight == Sight({}, {}, "", 0)
        assert sight.cpu_limit() is None

    def test_numbers_and_nulls(self, written):
        assert written('{"environ": {"RANK": 1, "X": null}}').environ == {"RANK": "1"}

    @pytest.mark.parametrize(
        "text",
        [
            '{"environ": ',
            "{}",
            '{"environ": []}',
            '{"environ": {}, "files": [1]}',
            '{"environ": {}, "visible_gpus": "two"}',
            '{"environ": {}, "visible_gpus": -1}',
        ],
    )
    def test_another_form(self, written, text):
        with pytest.raises(DataError, match="seen"):
            written(text)


class TestFile:
    def test_missing(self, tmp_path):
        with pytest.raises(InputMissingError, match="nowhere"):
            Sight.from_file(str(tmp_path / "nowhere"))

    def test_a_folder(self, tmp_path):
        with pytest.raises(InputMissingError):
            Sight.from_file(str(tmp_path))

    def test_not_readable(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(NoPermissionError, match="secret"):
            Sight.from_file(str(tmp_path / "secret"))


class TestGet:
    @pytest.mark.parametrize("value", ["", "  ", "\n"])
    def test_empty_is_unset(self, value):
        assert Sight({"RANK": value}).get("RANK") is None

    @pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "udp://10.0.0.1:80"])
    def test_a_service_link_is_unset(self, value):
        assert Sight({"MASTER_PORT": value}).get("MASTER_PORT") is None

    def test_another_address_is_not(self):
        assert Sight({"MASTER_ADDR": "tcp://h"}).get("MASTER_ADDR") == "tcp://h"


class TestHere:
    def test_sees_this_process(self, monkeypatch, tmp_path):
        monkeypatch.setenv("RANK", "7")
        (tmp_path / "hostfile").write_text("a slots=1\n")
        sight = Sight.here()
        assert sight.get("RANK") == "7"
        assert sight.hostname
        assert sight.read(str(tmp_path / "hostfile")) == "a slots=1\n"
        assert sight.read(str(tmp_path / "nothing")) is None
        cpus, source = sight.cpu_limit()
        assert cpus > 0
        assert source

    def test_counts_gpus_once_and_only_when_asked(self, monkeypatch):
        from trainkit.resources import gpus

        calls = []
        monkeypatch.setattr(gpus, "visible_gpu_count", lambda: calls.append(1) or 3)
        sight = Sight.here()
        assert calls == []
        assert [sight.gpus(), sight.gpus()] == [3, 3]
        assert calls == [1]
