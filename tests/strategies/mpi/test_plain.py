"""``strategy="mpi"`` in scripts without torch: ranks of mpirun, agreement, arrays."""

import json

import pytest

from trainkit.errors import StrategyError
from trainkit.strategies import resolve
from trainkit.strategies.mpi.world import join_world
from trainkit.topology import Topology

NO_TORCH = """
import sys

class NoTorch:  # as where it is not installed
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch())
"""
PROGRAM = """
import json
import numpy
import trainkit
from trainkit.errors import StrategyError

def main(ctx):
    x = numpy.arange(6, dtype=numpy.float32).reshape(2, 3) + ctx.rank
    total = ctx.all_reduce(x, "sum")
    native = numpy.zeros(1)
    ctx.native.Allreduce(numpy.ones(1), native)
    try:
        ctx.setup(object())
    except StrategyError as error:
        refused = str(error)
    progress = trainkit.Progress(step=4)
    checkpoints = ctx.checkpoints("saved", progress=progress)
    checkpoints.save(4)
    checkpoints.wait()
    found = {
        "rank": ctx.rank, "world": ctx.world_size,
        "total": total.tolist(), "dtype": str(total.dtype),
        "kept": x[0, 0].item(), "mean": ctx.all_reduce(float(ctx.rank), "mean"),
        "max": ctx.all_reduce(ctx.rank, "max"), "native": native.tolist(), "refused": refused,
        "shard": ctx.shard(range(5)),
        "object": ctx.broadcast_object("from 1" if ctx.rank else 0, src=1),
        "fortran": ctx.all_reduce(numpy.asfortranarray(x), "min").tolist(),
    }
    with open(f"found-{ctx.rank}.json", "w") as file:
        json.dump(found, file)

trainkit.run(main, strategy="mpi")
"""


def test_numpy_without_torch(mpirun, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(NO_TORCH + PROGRAM)
    job = mpirun(program, n=3)
    assert job.wait() == 0, job.output
    for rank in range(3):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert (found["rank"], found["world"]) == (rank, 3)
        assert found["total"] == [[3, 6, 9], [12, 15, 18]]
        assert found["fortran"] == [[0, 1, 2], [3, 4, 5]]
        assert (found["dtype"], found["kept"]) == ("float32", rank)
        assert (found["mean"], found["max"], found["native"]) == (1.0, 2, [3.0])
        assert found["object"] == "from 1"
        assert found["shard"] == [[0, 3], [1, 4], [2]][rank]
        assert "ctx.setup() needs torch" in found["refused"]
    assert len(list((tmp_path / "saved").glob("step-*/MANIFEST.json"))) == 1


def test_plain_ranks_of_mpirun_meet_without_torch(mpirun, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        f"{NO_TORCH}import trainkit\n"
        "def main(ctx):\n    assert ctx.all_reduce(ctx.rank, 'sum') == 1\n"
        "    print('together', flush=True)\ntrainkit.run(main)\n"
    )
    job = mpirun(program)
    assert job.wait() == 0, job.output
    assert job.output.count("together") == 2


def test_one_process_needs_no_mpi():
    strategy = resolve("mpi", [], Topology(platform="local"))()
    strategy.connect(Topology(platform="local"), 1.0)
    assert strategy.all_reduce(3, "sum") == 3
    assert strategy.native is None
    strategy.close()


@pytest.mark.parametrize(
    ("frameworks", "framework"),
    [([], "plain"), (["torch"], "torch"), (["tensorflow"], "plain"), (["xgboost"], "plain")],
)
def test_the_name_alone_goes_by_the_script(frameworks, framework):
    pytest.importorskip("torch")
    found = resolve("mpi", frameworks, Topology(platform="mpi", world_size=2))
    assert (found.framework, found.name) == (framework, "mpi")


def test_ranks_of_another_launcher_are_told_to_use_mpirun():
    topology = Topology(platform="pytorchjob", rank=1, world_size=4)
    with pytest.raises(StrategyError, match=r"pytorchjob's.*mpirun -n 4"):
        join_world(topology)


def test_an_mpirun_of_another_library_is_told(mpirun, tmp_path):
    """Variables of two ranks, and an MPI that knows of one: as with MPICH's mpirun."""
    program = tmp_path / "train.py"
    program.write_text(
        "import os\n"
        "for name in list(os.environ):\n"
        "    if name.startswith(('OMPI_', 'PMIX_', 'PRTE_')): del os.environ[name]\n"
        "os.environ.update(PMI_RANK='0', PMI_SIZE='2', MPI_LOCALRANKID='0', MPI_LOCALNRANKS='2')\n"
        "import trainkit\ntrainkit.run(lambda ctx: None, strategy='mpi')\n"
    )
    job = mpirun(program, n=1)
    assert job.wait() == 78, job.output
    assert "rank 0 of 2, and MPI says rank 0 of 1" in job.output
    assert "Open MPI" in job.output
