"""``trainkit.run`` and ``trainkit.init``: one script, whatever started it."""

import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from trainkit import config
from trainkit.coordination.mpi import abort_mpi
from trainkit.errors import (
    EnvironmentFaultError,
    ExitCode,
    Preempted,
    UsageError,
)
from trainkit.launch.announcing import log_topology
from trainkit.lifecycle import die_with_parent, report
from trainkit.processes.program import shut_down
from trainkit.runtime.context import Context
from trainkit.runtime.session import Session, choose_strategy, frameworks_of, serve
from trainkit.strategies import Duty, Strategy
from trainkit.topology import Role, Topology, detect

__all__ = ["init", "run"]

log = logging.getLogger("trainkit")


def run(
    main: Callable[[Context], Any],
    *,
    evaluate: Callable[[Context], Any] | None = None,
    strategy: str | Strategy = "auto",
    num_procs: int | None = None,
    checkpoint_dir: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
) -> Any:
    """Train with ``main`` on every rank of this job, whatever started this process.

    Detects the topology, starts the ranks of this pod if nobody else does, connects them,
    calls ``main(ctx)``, saves what is unsaved, and leaves in order. An exception ends the
    process with an exit code that tells the operator whether to try again.

    Args:
        main: the training; called in each rank.
        evaluate: called instead of ``main`` in an evaluator pod; without it such a pod ends.
        strategy: ``auto``, ``ddp``, ``single`` … or a ``Strategy``.
        num_procs: ranks to start from a bare ``python`` on one host; by default one a
            visible GPU, and one without GPUs.
        checkpoint_dir: default folder of ``ctx.checkpoints``; TRAINKIT_CHECKPOINT_DIR else.
        precision: ``fp32`` (default) or ``bf16``.
        seed: of data order and random generators; without it, data order is that of seed 0
            and generators are left alone.

    Returns:
        What ``main`` returned; None in a process that did not train itself.

    Raises:
        SystemExit: something failed; the code is one of ``trainkit.ExitCode``.
    """
    rank: int | None = None
    session: Session | None = None
    result: Any = None
    try:
        settings = config.settings()
        topology = _own_topology(1 if strategy == "single" else num_procs)
        log_topology(topology)
        if topology.starts_ranks:
            return _end(_start_ranks(topology, settings, frameworks_of(main)))
        rank = topology.rank
        _require_rank_or_server(topology, "trainkit.run")
        if topology.platform == "torchelastic":
            die_with_parent()
        chosen = choose_strategy(strategy, topology, precision=precision, main=main)
        duty = chosen.duty(topology)
        if duty is Duty.EVALUATE and evaluate is not None:
            main, topology = evaluate, topology.alone()
            chosen = choose_strategy(
                f"{chosen.framework}:auto", topology, precision=precision, main=main
            )
        elif duty is Duty.SERVE:
            log.info("%s serves until the job is over", topology.role)
            serve(chosen, topology, settings)
            return None
        elif duty is not Duty.TRAIN:
            log.info("%s has nothing to do under this strategy: done", topology.role)
            return None
        session = Session(chosen, topology, settings)
        context = session.open(checkpoint_dir=checkpoint_dir, seed=seed)
        with _clean_exit_is_return():
            result = main(context)
        session.finish()
    except BaseException as error:
        _fail(error, rank, session)
    try:
        session.close(failed=False)
    except Exception as error:
        # The work is done and saved: failing now would only have it done again.
        log.warning("the job is done; leaving it failed: %s", error)
    return result


@contextmanager
def init(
    *,
    strategy: str | Strategy = "auto",
    checkpoint_dir: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
) -> Iterator[Context]:
    """The context of this rank, for people who own their loop, and for notebooks.

    Unlike ``run`` it starts nothing, turns no exception into an exit code, and raises in a
    process that is no rank. What is unsaved at the end is not saved.

    Args:
        strategy: as for ``run``.
        checkpoint_dir: as for ``run``.
        precision: as for ``run``.
        seed: as for ``run``.

    Raises:
        EnvironmentFaultError: this process stands for ranks that are still to be started, or
            has a role that does not train; the message says how to start it instead.
    """
    settings = config.settings()
    topology = detect()
    log_topology(topology)
    if topology.starts_ranks:
        raise EnvironmentFaultError(
            f"this process stands for {topology.procs_to_launch} ranks that are still to be "
            f"started ({topology.summary()}). Put the training into a function and use "
            f"trainkit.run(main), or start the script with `trainkit launch` or torchrun."
        )
    _require_rank_or_server(topology, "trainkit.init")
    chosen = choose_strategy(strategy, topology, precision=precision)
    if chosen.duty(topology) is not Duty.TRAIN:
        raise EnvironmentFaultError(
            f"a {topology.role} process does not train under strategy {chosen.name!r}. Use "
            f"trainkit.run(main), which leaves such a process out."
        )
    session = Session(chosen, topology, settings)
    failed = True
    try:
        yield session.open(checkpoint_dir=checkpoint_dir, seed=seed)
        session.end()
        failed = False
    except Exception as error:
        found = session.diagnose(error)
        if found is error:
            raise
        raise found from error
    finally:
        session.close(failed=failed)


def _own_topology(num_procs: int | None) -> Topology:
    """The topology, with the ranks that a bare ``python`` on one host is to start."""
    if num_procs is not None and num_procs < 1:
        raise UsageError(f"num_procs={num_procs}: expected 1 or more")
    topology = detect()
    said = topology.sources.get("procs_to_launch", "default") != "default"
    if topology.platform != "local" or topology.starts_ranks or (said and num_procs is None):
        return topology
    wanted = num_procs if num_procs is not None else _visible_gpus()
    if wanted <= 1:
        return topology
    return replace(topology, world_size=wanted, local_world_size=wanted, procs_to_launch=wanted)


def _visible_gpus() -> int:
    from trainkit.resources.gpus import visible_gpu_count

    return 0 if config.settings().device == "cpu" else visible_gpu_count()


def _start_ranks(topology: Topology, settings: config.Settings, frameworks: list[str]) -> int:
    from trainkit.launch.entry import Entry
    from trainkit.launch.output import OutputOptions
    from trainkit.launch.plan import plan_ranks
    from trainkit.launch.running import Launch
    from trainkit.launch.static import needs_no_agent, plan_static
    from trainkit.resources.gpus import visible_gpu_count

    entry = Entry.of_this_process()
    environ = config.environ()
    launch = Launch(
        entry=entry,
        name=topology.label(),
        environ=environ,
        output=OutputOptions(captured=False),
        forked=False,
        grace_period=settings.grace_period,
        timeout=settings.timeout,
        notices=settings.preemption_signals,
        hang_timeout=settings.hang_timeout,
    )
    torch, xgboost = ("torch" in frameworks), ("xgboost" in frameworks)
    if needs_no_agent(topology, torch=torch, xgboost=xgboost):
        static = plan_static(topology, entry.argv(), environ, gpus=visible_gpu_count())
        return launch.run_programs(static, launch.start())
    plan = plan_ranks(topology, entry.argv(), environ, run_id=uuid.uuid4().hex)
    return launch.run_ranks(plan, launch.start())


def _require_rank_or_server(topology: Topology, caller: str) -> None:
    if topology.runs_mpirun:
        hosts = ", ".join(host for host, _ in topology.hosts or [])
        raise EnvironmentFaultError(
            f"{caller} was called in an MPI launcher pod, which is no rank: its ranks run on "
            f"{hosts or 'the hosts of its hostfile'}. Make `trainkit launch train.py` the pod's "
            f"command, which starts mpirun."
        )
    if topology.awaits_mpirun:
        raise EnvironmentFaultError(
            f"{caller} was called in an MPI worker pod, outside of mpirun. The launcher pod "
            f"starts the ranks here; this pod's own command is to be sshd, or `trainkit launch`."
        )
    if topology.rank is None and topology.role not in (Role.PS, Role.EVALUATOR):
        raise EnvironmentFaultError(
            f"this process has no rank yet ({topology.summary()}). Start it with `trainkit launch`."
        )


@contextmanager
def _clean_exit_is_return() -> Iterator[None]:
    """A ``sys.exit()`` or ``sys.exit(0)`` in the user's code is a normal return."""
    try:
        yield
    except SystemExit as leave:
        if leave.code not in (None, 0):
            raise


def _fail(error: BaseException, rank: int | None, session: Session | None) -> NoReturn:
    """Report ``error``, leave without waiting for anybody, and exit with its code."""
    monitor = session.monitor if session is not None else None
    orderly = (
        isinstance(error, Preempted)
        and monitor is not None
        and bool(monitor.stopped_at is not None or monitor.told)
        and not monitor.deserted
    )
    if session is not None and not orderly:
        error = session.diagnose(error)
    if session is not None and orderly:
        try:
            session.finish_stopped()
        except BaseException as worse:
            error, orderly = worse, False
    code = report(error, rank=rank, error_file=config.environ().get("TORCHELASTIC_ERROR_FILE"))
    if isinstance(error, Preempted) and monitor is not None:
        code = monitor.exit_code
    if session is not None:
        # A stop that all ranks agreed on is an orderly end; anything else leaves at once.
        session.close(failed=not orderly)
    if not orderly:
        abort_mpi(code)
    if session is not None and not session.teardown_is_safe:
        shut_down(int(code))
    raise SystemExit(int(code)) from error


def _end(code: int) -> None:
    """End a process that only started ranks: with their exit code, if it is not 0."""
    if code != ExitCode.DONE:
        sys.stdout.flush()
        raise SystemExit(code)
