"""Local SGD with an outer optimizer on parameter servers (DiLoCo, arXiv 2311.08105).

``frames`` is the wire; ``rounds`` decides, without sockets, who is in a round and when it is over;
``shard`` holds parameters and takes the outer step; ``control`` is what workers agree on apart from
parameters; ``server`` puts these behind sockets and ``serving`` is the life of a ps. On the other
side ``layout`` makes one vector of a model, ``link`` talks to one server and ``worker`` to all of
them, ``shared`` is what checkpoints see, ``agreement`` and ``communicator`` stand in for what ranks
otherwise do through a store, and ``strategy`` is what users choose.
"""
