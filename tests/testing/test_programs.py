"""Scripts and modules as ranks: what a true ``__main__`` sees, and how it ends."""

import os

import pytest

from trainkit.testing import RanksFailed, run_ranks

SCRIPT = """
import atexit, json, multiprocessing, os, pickle, sys, threading
from concurrent.futures import ThreadPoolExecutor

class Mine: pass

def last_words():
    print("atexit", sys.modules["__main__"].Mine is Mine, flush=False)

if __name__ == "__main__":
    import neighbour
    atexit.register(last_words)
    facts = {
        "argv": sys.argv, "file": __file__, "path0": sys.path[0], "rank": os.environ["RANK"],
        "main": sys.modules["__main__"].Mine is Mine, "package": __package__,
        "pickled": type(pickle.loads(pickle.dumps(Mine()))) is Mine,
        "neighbour": neighbour.VALUE,
    }
    print(json.dumps(facts))
    pool = ThreadPoolExecutor(1)
    pool.submit(print, "pool")
    threading.Timer(0.05, print, ["timer"]).start()
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def facts(result):
    import json

    return json.loads(result.stdout.splitlines()[0])


def test_script_is_a_true_main(script):
    results = run_ranks(script, 2, argv=["0", "--fast"], preload=())
    for rank, result in enumerate(results):
        assert facts(result) == {
            "argv": [str(script), "0", "--fast"],
            "file": str(script),
            "path0": str(script.parent),
            "rank": str(rank),
            "main": True,
            "package": None,
            "pickled": True,
            "neighbour": 7,
        }


def test_threads_and_exit_handlers_end_before_the_process(script):
    [result] = run_ranks(script, 1, argv=["0"], preload=())
    assert result.stdout.splitlines()[1:] == ["pool", "timer", "atexit True"]


def test_exit_code_of_a_script_passes_through(script):
    [result] = run_ranks(str(script), 1, argv=["7"], check=False, preload=())
    assert result.exit_code == 7


def test_error_of_a_script_shows_its_own_lines(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def step():\n    raise RuntimeError('here')\nstep()\n")
    with pytest.raises(RanksFailed) as caught:
        run_ranks(path, 1, preload=())
    assert f'File "{path}", line 2, in step' in str(caught.value)
    assert "raise RuntimeError('here')" in str(caught.value)
    assert "trainkit/testing" not in str(caught.value)


def test_script_with_a_syntax_error_fails_as_under_python(tmp_path):
    path = tmp_path / "unfinished.py"
    path.write_text("def step(:\n")
    with pytest.raises(RanksFailed, match="SyntaxError"):
        run_ranks(path, 1, preload=())


def test_module_runs_from_the_working_folder(script):
    results = run_ranks("-m train", 2, argv=["0"], cwd=script.parent, preload=())
    for result in results:
        seen = facts(result)
        assert seen["argv"] == [str(script), "0"]
        assert seen["path0"] == str(script.parent)
        assert seen["package"] == ""
        assert seen["main"] is True


def test_package_runs_its_main_module(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "__main__.py").write_text("print(__name__, __package__, __spec__.name)\n")
    [result] = run_ranks("-m pack", 1, cwd=tmp_path, preload=())
    assert result.stdout == "__main__ pack pack.__main__\n"


def test_module_that_is_not_there_is_named():
    with pytest.raises(RanksFailed, match="No module named no_such_module"):
        run_ranks("-m no_such_module", 1, preload=())


def test_function_of_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def double(x):\n    return 2 * x\n")
    assert run_ranks(f"{path}:double", 1, 21, preload=())[0].value == 42
    path.write_text("def double(x):\n    return 'changed to ' + str(x)\n")
    assert run_ranks(f"{path}:double", 1, 21, preload=())[0].value == "changed to 21"


def test_function_of_an_importable_module():
    assert run_ranks("os.path:basename", 1, "a/b", preload=())[0].value == "b"


def main_names_ranks():
    import sys

    main = sys.modules["__main__"]
    return main.__name__, hasattr(main, "main_names_ranks"), hasattr(main, "__file__")


def test_main_module_shows_the_names_of_a_functions_module():
    assert run_ranks(main_names_ranks, 1, preload=())[0].value == ("__main__", True, False)


def test_spawned_children_of_a_rank_work(tmp_path):
    path = tmp_path / "spawns.py"
    path.write_text(
        "import multiprocessing, operator\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(operator.neg, [1, 2]))\n"
    )
    [result] = run_ranks(path, 1, preload=())
    assert result.stdout == "[-1, -2]\n"


def test_output_of_grandchildren_is_captured_in_order(tmp_path):
    path = tmp_path / "shell.py"
    path.write_text(
        "import subprocess\nprint('before')\nsubprocess.run(['echo', 'child'])\nprint('after')\n"
    )
    [result] = run_ranks(path, 1, preload=(), env={"PATH": os.environ["PATH"]})
    assert result.stdout.split() == ["before", "child", "after"]
