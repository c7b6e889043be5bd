"""A launch from its flags to the exit code."""

import contextlib
import json
import logging
import socket
from collections.abc import Mapping
from typing import Any

from trainkit import config
from trainkit.errors import DeadlineError, ExitCode, TrainkitError
from trainkit.launch.announcing import log_to_stderr, log_topology
from trainkit.launch.options import read_options
from trainkit.launch.pod import PodJob
from trainkit.launch.prerequisites import await_file
from trainkit.launch.supervisor import end_by_signals
from trainkit.launch.termination import cut, write_termination_message
from trainkit.redaction import redacted
from trainkit.topology import detect
from trainkit.topology.environments.mpijob import awaited_hostfile
from trainkit.waiting import Deadline

__all__ = ["launch"]

log = logging.getLogger("trainkit")

_HOSTFILE = 60.0
"""Seconds for a hostfile to be mounted: a ConfigMap mostly is before the container begins."""


def launch(given: Mapping[str, Any]) -> int:
    """Find out what this pod is for, wait for what that needs, and run it to its end.

    Args:
        given: as ``parse_flags`` returns them.

    Returns:
        The exit code of this process.

    Raises:
        TrainkitError: with the exit code of this process.
    """
    try:
        return _launch(given)
    except TrainkitError as error:
        code = int(getattr(error, "code", error.exit_code))
        if code not in (ExitCode.PREEMPTED, ExitCode.INTERRUPTED):
            path = config.environ().get("TRAINKIT_TERMINATION_LOG")
            write_termination_message(_in_short(error, code), path or None)
        raise


def _in_short(error: TrainkitError, code: int) -> str:
    """As the report of ranks that failed: a sentence, and a line of JSON."""
    text = " ".join(redacted(str(error)).split())
    values = {
        "exit_code": code,
        "rank": None,
        "host": socket.gethostname(),
        "error": type(error).__name__,
        "message": cut(text, 500),
        "hint": "",
        "restarts": 0,
    }
    return f"{cut(text, 1500)}\n{json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n"


def _launch(given: Mapping[str, Any]) -> int:
    environ = dict(config.environ())
    options = read_options(given, environ)
    config.set_environ(options.pet)
    if options.grace_period is not None:
        config.set_environ({"TRAINKIT_GRACE_PERIOD": f"{options.grace_period:g}"})
        environ["TRAINKIT_GRACE_PERIOD"] = f"{options.grace_period:g}"
    settings = config.settings()
    end_by_signals(settings.preemption_signals)
    _await_hostfile(environ, settings.timeout)
    job = PodJob.of(detect(), options, environ)
    if options.dry_run:
        for line in job.describe():
            print(redacted(line))
        return 0
    log_topology(job.topology, by_all=True)
    code: int | None = None
    try:
        code = job.run(environ, settings)
    finally:
        if settings.quit_sidecar == "always" or (code == 0 and settings.quit_sidecar == "done"):
            _quit_sidecar()
    return code


def _await_hostfile(environ: Mapping[str, str], timeout: float) -> None:
    """Without an MPI launcher's hostfile nobody knows its hosts; if it does not come, ``detect``
    says what to do."""
    path = awaited_hostfile(environ)
    if path is not None:
        log_to_stderr()
        with contextlib.suppress(DeadlineError):
            deadline = Deadline(min(timeout, _HOSTFILE))
            await_file(path, what="the hostfile", deadline=deadline)


def _quit_sidecar() -> None:
    from trainkit.resources.istio import quit_sidecar

    if quit_sidecar():
        log.info("told Istio's sidecar to end, so that the pod can complete")
