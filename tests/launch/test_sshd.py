import os
import shutil
import socket
import stat
import subprocess

import pytest

from trainkit.errors import EnvironmentFaultError
from trainkit.launch.sshd import main, plan_sshd
from trainkit.waiting import Deadline, wait_until

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="needs sshd")


def fake(tmp_path):
    path = tmp_path / "sshd"
    path.write_text('#!/bin/sh\necho "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(tmp_path)}


def option(argv, flag):
    return argv[argv.index(flag) + 1]


def test_sshd_stays_in_the_foreground_with_a_key_of_its_own(tmp_path):
    argv = plan_sshd(fake(tmp_path)).command
    line = argv[argv.index("--") + 1 :]
    assert line[:3] == (str(tmp_path / "sshd"), "-D", "-e")
    assert option(line, "-h") == option(argv, "--host-key")
    assert "StrictModes=no" in line
    assert "PasswordAuthentication=no" in line


def test_without_root_it_listens_where_others_may(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", os.getuid if os.getuid() else lambda: 65534)
    argv = plan_sshd(fake(tmp_path)).command
    assert option(argv, "-p") == "2222"


def test_the_setting_of_the_port_goes_before_all(tmp_path):
    argv = plan_sshd({**fake(tmp_path), "TRAINKIT_SSH_PORT": "2022"}).command
    assert option(argv, "-p") == "2022"


def test_a_user_without_an_entry_is_told_before_sshd_refuses_him(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000650000)
    with pytest.raises(EnvironmentFaultError, match="uid 1000650000 has no entry in /etc/passwd"):
        plan_sshd(fake(tmp_path))


def test_no_sshd_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(EnvironmentFaultError, match="openssh-server"):
        plan_sshd({"PATH": str(tmp_path)})


def test_a_program_that_is_not_there_is_an_error_of_the_environment(tmp_path, capsys):
    key = tmp_path / "keys" / "host_key"
    key.parent.mkdir()
    key.touch()
    (tmp_path / "none").touch()  # no program either
    assert main(["--host-key", str(key), "--", str(tmp_path / "none")]) == 78
    assert f"cannot run {tmp_path / 'none'}" in capsys.readouterr().err


@needs_sshd
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_real_sshd_comes_up_with_the_key_that_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = plan_sshd({**os.environ, "TRAINKIT_SSH_PORT": str(port)}).command
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen([*argv, "-o", "ListenAddress=127.0.0.1"], stderr=output)
    try:
        wait_until(
            lambda: "Server listening" in log.read_text() or process.poll() is not None,
            what="sshd to listen",
            deadline=Deadline(30),
        )
        assert process.poll() is None, log.read_text()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            assert connection.recv(64).startswith(b"SSH-2.0")
    finally:
        process.kill()
        process.wait()
    key = next(tmp_path.glob("trainkit-sshd-*/host_key"))
    assert key.stat().st_mode & 0o077 == 0
