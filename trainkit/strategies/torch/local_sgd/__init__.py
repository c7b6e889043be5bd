"""Local SGD with an outer optimizer on parameter servers (DiLoCo, arXiv 2311.08105).

``frames`` is the wire and ``sockets`` what is beneath.

On a server ``rounds`` decides, without sockets, who is in a round and when it is over; ``shard``
holds parameters and takes the outer step, ``holding`` is all that a server has of the job,
``gathering`` and ``vote`` are what workers agree on apart from parameters; ``loop`` has the
connections (``connection`` is one of them), ``server`` answers them, and ``serving`` is the life of
a ps.

In a worker ``layout`` makes one vector of a model, ``replica`` is a copy of what the servers hold,
``link`` talks to one server, ``membership`` comes in to all of them and back, and ``worker`` ends
rounds; ``control_link`` is a second line to the first server. ``shared`` is what checkpoints see,
``agreement`` and ``communicator`` stand in for what ranks otherwise do through a store,
``observing`` waits for the end, and ``strategy`` is what users choose.
"""
