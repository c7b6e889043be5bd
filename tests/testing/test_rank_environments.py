"""Which variables a rank sees, by what the caller says."""

import os
import sys
import tempfile

import pytest

from trainkit.testing import requires_module, run_ranks, torchrun_environ


def environ_ranks() -> dict[str, str]:
    return dict(os.environ)


def temp_folder_ranks() -> str:
    return tempfile.gettempdir()


def paths_ranks() -> list[str]:
    return sys.path


def torch_threads_ranks() -> int:
    import torch

    return torch.get_num_threads()


def environs(*args, **options):
    return [result.value for result in run_ranks(environ_ranks, *args, preload=(), **options)]


def test_a_mapping_is_laid_over_torchruns_variables():
    first, second = environs(2, env={"TRAINKIT_DEVICE": "cpu", "WORLD_SIZE": "9"})
    assert (first["RANK"], second["RANK"]) == ("0", "1")
    assert first["TRAINKIT_DEVICE"] == second["TRAINKIT_DEVICE"] == "cpu"
    assert first["WORLD_SIZE"] == "9"


def test_a_list_takes_the_place_of_torchruns_variables():
    first, second = environs(2, env=[{"PET_NODE_RANK": "0"}, {"PET_NODE_RANK": "1"}])
    assert (first["PET_NODE_RANK"], second["PET_NODE_RANK"]) == ("0", "1")
    for seen in (first, second):
        assert not {"RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"} & seen.keys()
        assert seen["PATH"] == os.environ["PATH"]


def test_base_env_takes_the_place_of_the_callers_environment():
    assert environs(1, base_env={"ONLY": "this"}, env=[{"TF_CONFIG": "{}"}]) == [
        {"ONLY": "this", "TF_CONFIG": "{}"}
    ]


def test_the_callers_environment_counts_at_the_moment_of_the_call(monkeypatch):
    environs(1)  # the nursery has started, with whatever was set then
    monkeypatch.setenv("SET_LATER", "yes")
    monkeypatch.delenv("HOME")
    [seen] = environs(1)
    assert seen["SET_LATER"] == "yes"
    assert "HOME" not in seen


def test_nothing_of_the_nursery_shows():
    [seen] = environs(1)
    assert "OPENBLAS_NUM_THREADS" not in seen.keys() - os.environ.keys()
    assert seen.get("PYTHONPATH") == os.environ.get("PYTHONPATH")


def test_bytes_that_are_no_utf8_survive():
    [seen] = environs(1, env={"ODD": "a\udcffb"})
    assert seen["ODD"] == "a\udcffb"


def test_threads_are_limited_as_torchrun_does(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in environs(1)[0]
    assert environs(2)[0]["OMP_NUM_THREADS"] == "1"
    assert environs(2, env={"OMP_NUM_THREADS": "4"})[1]["OMP_NUM_THREADS"] == "4"


@requires_module("torch")
def test_torch_follows_the_number_of_threads_although_it_was_loaded_with_one():
    for wanted in (1, 3):
        env = {"OMP_NUM_THREADS": str(wanted)}
        assert run_ranks(torch_threads_ranks, 1, env=env)[0].value == wanted


def test_temp_folder_and_import_path_follow_the_variables(tmp_path):
    env = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path / "lib")}
    assert run_ranks(temp_folder_ranks, 1, env=env, preload=())[0].value == str(tmp_path)
    assert run_ranks(paths_ranks, 1, env=env, preload=())[0].value[0] == str(tmp_path / "lib")


@pytest.mark.parametrize(
    ("rank", "local_rank", "local_size", "node"),
    [(0, 0, 2, 0), (1, 1, 2, 0), (2, 0, 1, 1)],
)
def test_uneven_nodes_count_as_torchrun_counts_them(rank, local_rank, local_size, node):
    seen = torchrun_environ(rank, 3, master_port=29500, local_world_size=2)
    assert seen["LOCAL_RANK"] == str(local_rank)
    assert seen["LOCAL_WORLD_SIZE"] == str(local_size)
    assert seen["GROUP_RANK"] == str(node)
    assert seen["GROUP_WORLD_SIZE"] == "2"


@requires_module("torch")
@pytest.mark.slow
def test_names_are_those_that_torchrun_gives(tmp_path):
    import json
    import subprocess

    script = tmp_path / "show.py"
    script.write_text("import json, os; print('SEEN', json.dumps(dict(os.environ)))\n")
    # With a locale: where there is none, each Python sets LC_CTYPE for its children.
    base = {"PATH": os.environ["PATH"], "TMPDIR": os.environ["TMPDIR"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--local-ranks-filter=0", f"--log-dir={tmp_path}", script],
        env=base, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if "SEEN" in line)
    theirs = json.loads(line.partition("SEEN ")[2])
    [ours, _] = environs(2, base_env=base)
    assert ours.keys() == theirs.keys()
