"""The one table of ``TRAINKIT_*`` settings, and the only door to ``os.environ``.

Precedence: explicit argument > flag > ``TRAINKIT_*`` > default. An empty value is unset.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

from trainkit.errors import UsageError

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SECRET_WORDS", "Settings", "environ", "is_secret", "set_environ", "settings"]

SECRET_WORDS = ("TOKEN", "SECRET", "KEY", "PASSWORD", "CREDENTIAL")
"""A variable whose name holds one of these is never shown."""


def environ() -> Mapping[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def set_environ(changes: Mapping[str, str | None]) -> None:
    """Set variables of this process, or remove those whose value is None.

    Only for what a framework reads from the environment alone (gloo's interface, say).
    """
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def is_secret(name: str) -> bool:
    """Whether the value of the variable ``name`` must not be shown."""
    upper = name.upper()
    return any(word in upper for word in SECRET_WORDS)


def _setting(variable: str, parse: Callable[[str], Any], default: Any, text: str) -> Any:
    return field(default=default, metadata={"variable": variable, "parse": parse, "help": text})


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive, finite number of seconds")
    return value


def _seconds_or_never(text: str) -> float:
    return 0.0 if float(text) == 0 else _seconds(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError("expected a number from 0 to below 1")
    return value


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("expected 0 or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a positive integer")
    return value


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError("expected one of " + ", ".join(allowed))
        return text.lower()

    return parse


def _signals(text: str) -> tuple[signal.Signals, ...]:
    names = [part.strip().upper() for part in text.split(",") if part.strip()]
    try:
        found = tuple(signal.Signals[n if n.startswith("SIG") else f"SIG{n}"] for n in names)
    except KeyError as unknown:
        raise ValueError(f"expected signal names such as SIGTERM,SIGUSR1, not {unknown}") from None
    if not found or set(found) & {signal.SIGKILL, signal.SIGSTOP}:
        raise ValueError("expected signals that a process can hear, such as SIGTERM,SIGUSR1")
    return found


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that have no better place than the environment."""

    checkpoint_dir: str | None = _setting(
        "TRAINKIT_CHECKPOINT_DIR", str, None, "folder or URL of checkpoints when none is given"
    )
    device: str = _setting(
        "TRAINKIT_DEVICE",
        _one_of("auto", "cpu", "cuda"),
        "auto",
        "device of the ranks: auto, cpu or cuda",
    )
    grace_period: float = _setting(
        "TRAINKIT_GRACE_PERIOD",
        _seconds,
        30.0,
        "seconds between the notice to stop and the kill; as terminationGracePeriodSeconds",
    )
    hang_timeout: float = _setting(
        "TRAINKIT_HANG_TIMEOUT",
        _seconds_or_never,
        1800.0,
        "seconds without a step after which trainkit launch takes a rank to hang; 0 is never",
    )
    heartbeat_file: str | None = _setting(
        "TRAINKIT_HEARTBEAT_FILE", str, None, "set by trainkit launch: where a rank notes its step"
    )
    local_tier: str | None = _setting(
        "TRAINKIT_LOCAL_TIER",
        str,
        None,
        "folder on each node that a checkpoint reaches before the checkpoint folder",
    )
    mnist_url: str | None = _setting(
        "TRAINKIT_MNIST_URL", str, None, "mirrors of the MNIST files, separated by commas"
    )
    mpi_placement: str = _setting(
        "TRAINKIT_MPI_PLACEMENT",
        _one_of("check", "warn"),
        "check",
        "ranks that mpirun put elsewhere than the hostfile says: check ends the job, warn goes on",
    )
    mpi_transport: str = _setting(
        "TRAINKIT_MPI_TRANSPORT",
        _one_of("auto", "cuda-aware", "nccl", "staged"),
        "auto",
        "way of CUDA tensors under strategy mpi: auto takes the first of the others that works",
    )
    num_nodes: int | None = _setting(
        "TRAINKIT_NUM_NODES", _count, None, "pods of an Indexed Job or JobSet that train together"
    )
    platform: str | None = _setting(
        "TRAINKIT_PLATFORM", str, None, "platform to take the topology from; no detection then"
    )
    object_store: str = _setting(
        "TRAINKIT_OBJECT_STORE",
        _one_of("auto", "fsspec"),
        "auto",
        "library for s3://: auto takes obstore where it can do the same as fsspec; or fsspec",
    )
    outer_lr: float = _setting(
        "TRAINKIT_OUTER_LR",
        _positive,
        0.7,
        "learning rate of the outer optimizer on parameter servers",
    )
    outer_momentum: float = _setting(
        "TRAINKIT_OUTER_MOMENTUM",
        _share,
        0.9,
        "Nesterov momentum of the outer optimizer on parameter servers; 0 with an lr of 1 averages",
    )
    ps_hosts: tuple[str, ...] = _setting(
        "TRAINKIT_PS_HOSTS",
        _parts,
        (),
        "host:port of each parameter server, by commas, where no operator says it",
    )
    ps_index: int | None = _setting(
        "TRAINKIT_PS_INDEX",
        _index,
        None,
        "makes this process the parameter server of that place in TRAINKIT_PS_HOSTS, from 0",
    )
    quit_sidecar: str = _setting(
        "TRAINKIT_QUIT_SIDECAR",
        _one_of("done", "always", "never"),
        "done",
        "when trainkit launch tells Istio's sidecar to end: done (exit code 0), always or never",
    )
    preemption_signals: tuple[signal.Signals, ...] = _setting(
        "TRAINKIT_PREEMPTION_SIGNALS",
        _signals,
        (signal.SIGTERM,),
        "signals that announce a pre-emption, separated by commas",
    )
    termination_log: str | None = _setting(
        "TRAINKIT_TERMINATION_LOG",
        str,
        None,
        "file for the failure in short; /dev/termination-log, where that exists, by default",
    )
    stacks_file: str | None = _setting(
        "TRAINKIT_STACKS_FILE", str, None, "set by trainkit launch: where a rank writes its stacks"
    )
    ssh_port: int | None = _setting(
        "TRAINKIT_SSH_PORT",
        _count,
        None,
        "port of sshd in an MPI job's pods; else the image's, or 2222 where sshd is not root's",
    )
    sync_every: int = _setting(
        "TRAINKIT_SYNC_EVERY",
        _count,
        16,
        "optimizer steps between two rounds with parameter servers",
    )
    wait_for: tuple[str, ...] = _setting(
        "TRAINKIT_WAIT_FOR",
        _parts,
        (),
        "what trainkit launch waits for: /path, mount:/path, host:port or host, by commas",
    )
    timeout: float = _setting(
        "TRAINKIT_TIMEOUT",
        _seconds,
        600.0,
        "seconds to wait for peers at the start, and for each agreement among ranks",
    )
    wire: str = _setting(
        "TRAINKIT_WIRE",
        _one_of("fp32", "bf16"),
        "fp32",
        "numbers between workers and parameter servers: fp32, or bf16 for half the bytes",
    )


def settings(variables: Mapping[str, str] | None = None) -> Settings:
    """Read all settings.

    Args:
        variables: where to read from; this process's environment by default.

    Raises:
        UsageError: a value cannot be parsed; the message names the variable and its value.
    """
    variables = os.environ if variables is None else variables
    found = {}
    for spec in fields(Settings):
        name = spec.metadata["variable"]
        text = variables.get(name, "").strip()
        if not text:
            continue
        try:
            found[spec.name] = spec.metadata["parse"](text)
        except ValueError as reason:
            shown = "<hidden>" if is_secret(name) else repr(text)
            raise UsageError(
                f"{name}={shown} cannot be used ({reason}). It sets the {spec.metadata['help']}."
            ) from None
    return Settings(**found)


def describe() -> Iterable[tuple[str, Any, str]]:
    """The table of settings: variable, default, meaning. The docs are made from it."""
    for spec in fields(Settings):
        yield spec.metadata["variable"], spec.default, spec.metadata["help"]
