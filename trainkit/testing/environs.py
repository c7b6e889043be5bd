"""The variables that torchrun gives its workers."""

__all__ = ["torchrun_environ"]


def torchrun_environ(
    rank: int,
    world_size: int,
    *,
    master_port: int,
    local_world_size: int | None = None,
    restart_count: int = 0,
    max_restarts: int = 0,
    error_file: str = "",
) -> dict[str, str]:
    """What torchrun adds to the environment of one worker, on 127.0.0.1.

    Args:
        rank: the worker's rank, from 0.
        world_size: how many workers there are.
        master_port: where rank 0 opens its store; `free_port` finds one.
        local_world_size: workers on each node; all on one node by default. The last node has
            fewer if it does not divide ``world_size``.
        restart_count: restarts so far.
        max_restarts: restarts allowed.
        error_file: where the worker leaves its exception as JSON; empty for nowhere.
    """
    per_node = local_world_size or world_size
    node, local_rank = divmod(rank, per_node)
    variables = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": min(per_node, world_size - node * per_node),
        "GROUP_RANK": node,
        "GROUP_WORLD_SIZE": -(-world_size // per_node),
        "ROLE_NAME": "default",
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": master_port,
        "TORCHELASTIC_RESTART_COUNT": restart_count,
        "TORCHELASTIC_MAX_RESTARTS": max_restarts,
        "TORCHELASTIC_RUN_ID": "none",
        # There is no agent whose store could be used: rank 0 opens one on MASTER_PORT.
        "TORCHELASTIC_USE_AGENT_STORE": False,
        "TORCHELASTIC_ERROR_FILE": error_file,
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
    }
    return {name: str(value) for name, value in variables.items()}
