"""``trainkit checkpoint`` on checkpoints with files in a framework's own format."""

import json

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

PARAMS = {"max_depth": 2, "nthread": 1}


@pytest.fixture
def root(tmp_path):
    """Steps 1 and 2 of a run that trains a booster, and two of another entry that stays."""
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    data = xgboost.DMatrix(x, x[:, 0])
    booster, frozen = xgboost.Booster(PARAMS, [data]), xgboost.Booster(PARAMS, [data])
    frozen.update(data, 0)
    state = {"booster": booster, "frozen": frozen, "notes": {"a": 1}}
    manager = CheckpointManager(tmp_path / "root", state)
    for step in (1, 2):
        booster.update(data, step - 1)
        manager.save(step, blocking=True)
    manager.close()
    return tmp_path / "root"


def model(root, step):
    (folder,) = root.glob(f"step-{step:010d}.*")
    return folder / "booster/model.ubj"


def test_inspect_lists_them(root, call):
    code, out, _ = call("inspect", root)
    assert code == 0
    assert "booster/model.ubj state/booster.json" in out
    code, out, _ = call("inspect", root, "--json")
    assert code == 0
    booster = json.loads(out)["entries"]["booster"]
    assert booster["kind"] == "booster"
    size = model(root, 2).stat().st_size
    assert booster["documents"][0] == {
        "path": "booster/model.ubj",
        "files": {"booster/model.ubj": size},
        "tensors": {},
    }


def test_verify_checks_every_byte_of_them(root, call):
    assert call("verify", root)[0] == 0
    file = model(root, 2)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, err = call("verify", root)
    assert code == 65
    assert f"{file}: bytes 0 to {len(content)} do not match their checksum" in err
    file.unlink()
    code, _, err = call("verify", root, "--quick")
    assert code == 65
    assert "booster/model.ubj is missing" in err


def test_diff_says_that_they_differ_and_what_is_known_of_them(root, call):
    code, out, _ = call("diff", root, "--from", "1", "--to", "2", "--json")
    assert code == 1
    changes = {(c["entry"], c["name"]): c for c in json.loads(out)["changes"]}
    changed = changes["booster", "model.ubj"]
    assert (changed["what"], changed["how"]) == ("file", "values")
    sizes = [model(root, step).stat().st_size for step in (1, 2)]
    assert [changed["from"], changed["to"]] == [f"{size} bytes" for size in sizes]
    assert changes["booster", "rounds"]["to"] == "2"
    assert not any(entry == "frozen" for entry, _ in changes)
    code, out, _ = call("diff", root, "--from", "1", "--to", "2", "--entry", "frozen")
    assert (code, "no difference" in out) == (0, True)
    code, out, _ = call("diff", root, "--from", "1", "--to", "2", "--entry", "booster")
    assert "different: 1 file, " in out


def test_export_copies_them_for_a_server_of_models(root, call, tmp_path):
    code, out, _ = call("export", root, tmp_path / "out", "--entry", "booster", "--step", "1")
    assert code == 0
    assert out.endswith(": model.ubj\n")  # and nothing beside it that could be a model
    assert (tmp_path / "out/model.ubj").read_bytes() == model(root, 1).read_bytes()
    assert xgboost.Booster(model_file=tmp_path / "out/model.ubj").num_boosted_rounds() == 1


def test_export_for_torch_names_what_it_can_not_do(root, call, tmp_path):
    pytest.importorskip("torch")
    code, _, err = call("export", root, tmp_path / "out", "--entry", "booster", "--format", "torch")
    assert code == 2
    assert "booster was saved as booster/model.ubj in its own framework's format" in err
    assert not (tmp_path / "out").exists()


def test_export_for_dcp_leaves_them_out_and_says_so(root, call, tmp_path, caplog):
    pytest.importorskip("torch")
    assert call("export", root, tmp_path / "out", "--format", "dcp")[0] == 0
    assert "booster is left out: it lies in files of its own framework" in caplog.text
