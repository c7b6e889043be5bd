"""A pod of a PaddleJob (kubeflow.org/v1)."""

from trainkit.topology.parsing import address, missing, required_integer
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["PaddleJob"]

_PORT = 36543


class PaddleJob:
    """No rank is given: Paddle's own launcher deals them, by random names of its own.

    Only the pod that got its own address as the master's is known to be node 0. Paddle's
    launcher starts the processes, so nothing is left to be started here.
    """

    name = "paddlejob"

    def detect(self, sight: Sight) -> bool:
        return sight.get("PADDLE_MASTER") is not None and sight.get("PADDLE_JOB_ID") is not None

    def topology(self, sight: Sight) -> Topology:
        where = sight.get("PADDLE_MASTER")
        if where is None:
            raise missing(sight, "PADDLE_MASTER", "PADDLE_JOB_ID", "TRAINKIT_PLATFORM")
        host, port = address("PADDLE_MASTER", where, default_port=_PORT)
        num_nodes = required_integer(sight, "PADDLE_NNODES", "PADDLE_MASTER", least=1)
        serves = sight.get("PADDLE_SERVER_NUM") is not None
        holds_address = sight.get("POD_IP_DUMMY") is not None
        return Topology(
            platform=self.name,
            role=Role.PS if serves else Role.WORKER,
            rank=None,
            world_size=None,
            local_rank=None,
            local_world_size=0 if serves else 1,
            node_rank=0 if holds_address else None,
            num_nodes=num_nodes,
            master_addr=host,
            master_port=port,
            notes=_notes(sight),
            sources={
                "role": "PADDLE_SERVER_NUM" if serves else "PADDLE_JOB_ID",
                "local_world_size": "PADDLE_SERVER_NUM" if serves else "PADDLE_JOB_ID",
                "node_rank": "POD_IP_DUMMY",
                "num_nodes": "PADDLE_NNODES",
                "master_addr": "PADDLE_MASTER",
                "master_port": "PADDLE_MASTER",
            },
        )


def _notes(sight: Sight) -> tuple[str, ...]:
    notes = ["Ranks of a PaddleJob come from paddle.distributed.launch."]
    if sight.get("PADDLE_SERVER_NUM") or sight.get("PADDLE_TRAINER_NUM"):
        notes.append("In parameter-server mode PADDLE_NNODES counts the servers too.")
    return tuple(notes)
