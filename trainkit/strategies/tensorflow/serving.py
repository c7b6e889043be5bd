"""A parameter server or worker of TensorFlow's: it computes what the chief sends it."""

import logging
import os
import sys

import tensorflow as tf

from trainkit import config
from trainkit.coordination.network import port_holder
from trainkit.errors import EnvironmentFaultError, Preempted, RetryableError, StrategyError
from trainkit.strategies.tensorflow.base import keep_lines_single, skip_teardown
from trainkit.strategies.tensorflow.desk import Guest
from trainkit.strategies.tensorflow.losses import first_line
from trainkit.strategies.tensorflow.tasks import Task, Tasks, control_address
from trainkit.topology import Topology
from trainkit.waiting import Deadline

__all__ = ["serve"]

log = logging.getLogger(__name__)


def serve(topology: Topology, timeout: float) -> None:
    """Serve the chief until the job is done.

    A chief that is gone without having said so comes back: its pod is started again, alone. So
    this process begins anew in place, with the same process id and an empty memory, and waits for
    it. To end instead would have the operator make every pod of the job anew, and count each as a
    restart of its own.

    Args:
        topology: of this process.
        timeout: seconds in which the chief has to be there.

    Raises:
        DeadlineError: it is not.
        Preempted: this process is to end; a parameter server first has the job saved, and a
            worker of a job that is to stop as a whole first computes what the chief waits for.
        EnvironmentFaultError: the port is taken.
    """
    keep_lines_single()
    tasks, address = Tasks.of(topology), control_address(topology)
    me = tasks.own
    if me is None or address is None:
        raise StrategyError(f"TF_CONFIG does not name this process and its chief: {topology}")
    guest = Guest.connect(address, f"{me.job} {me.index}", Deadline(timeout))
    server = _start(tasks, me)
    try:
        guest.report()
        log.info("%s serves at %s", me, tasks.address(me))
        guest.await_end()
    except Preempted:
        seconds = config.settings().grace_period * 0.9
        if me.job == "worker":
            stopping = guest.stay_while_stopping(seconds)
            rest = "the whole job stops" if stopping else "the job goes on with the others"
            raise Preempted(f"{me} ends as asked; {rest}") from None
        # Its variables go with it.
        log.warning("%s is to end: the chief is asked to save and stop", me)
        guest.ask_to_stop(seconds)
        raise Preempted(f"{me} ends as asked, after the chief was told to save and stop") from None
    except RetryableError:
        log.warning("the chief is gone and did not say that it is done: %s waits for it", me)
        begin_anew()
    log.info("the chief is done, and so is %s", me)
    guest.close()
    del server
    skip_teardown()


def _start(tasks: Tasks, me: Task) -> tf.distribute.Server:
    try:
        return tf.distribute.Server(
            tf.train.ClusterSpec(tasks.cluster),
            job_name=me.job,
            task_index=me.index,
            protocol="grpc",
            start=True,
        )
    except tf.errors.OpError as error:
        port = int(tasks.address(me).rpartition(":")[2])
        raise EnvironmentFaultError(
            f"{me} cannot serve at port {port} ({first_line(error)}). If it is in use, it is by "
            f"{port_holder(port)}: end that process, or change the port in TF_CONFIG."
        ) from None


def begin_anew() -> None:
    """Run this process's command line again in this process.

    Raises:
        RetryableError: it cannot be run again, as a script on standard input.
    """
    words = sys.orig_argv
    if len(words) < 2 or words[1] == "-":
        raise RetryableError(
            "the chief is gone, and this process, whose script came on standard input, cannot wait "
            "for it: start it again."
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *words[1:]])  # noqa: S606
