import os
import signal
from pathlib import Path

import pytest

from trainkit import config
from trainkit.errors import UsageError


def test_defaults():
    found = config.settings({})
    assert found.checkpoint_dir is None
    assert found.timeout == 600.0
    assert found.preemption_signals == (signal.SIGTERM,)


def test_values_are_parsed_and_an_empty_one_is_unset():
    found = config.settings(
        {
            "TRAINKIT_TIMEOUT": "2.5",
            "TRAINKIT_CHECKPOINT_DIR": "",
            "TRAINKIT_NUM_NODES": "3",
            "TRAINKIT_PREEMPTION_SIGNALS": "TERM, SIGUSR1",
            "TRAINKIT_DEVICE": "CPU",
        }
    )
    assert (found.timeout, found.checkpoint_dir, found.num_nodes) == (2.5, None, 3)
    assert found.preemption_signals == (signal.SIGTERM, signal.SIGUSR1)
    assert found.device == "cpu"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINKIT_TIMEOUT", "soon"),
        ("TRAINKIT_TIMEOUT", "0"),
        ("TRAINKIT_NUM_NODES", "-1"),
        ("TRAINKIT_DEVICE", "gpu0"),
        ("TRAINKIT_PREEMPTION_SIGNALS", "SIGNOPE"),
        ("TRAINKIT_PREEMPTION_SIGNALS", "KILL"),
        ("TRAINKIT_TIMEOUT", "inf"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(name, value):
    with pytest.raises(UsageError, match=f"{name}='{value}'"):
        config.settings({name: value})


def test_environ_is_a_copy_and_set_environ_the_way_to_change_it():
    copy = dict(config.environ())
    copy["TRAINKIT_TEST_ONLY"] = "x"
    assert "TRAINKIT_TEST_ONLY" not in os.environ
    config.set_environ({"TRAINKIT_TEST_ONLY": "x"})
    assert config.environ()["TRAINKIT_TEST_ONLY"] == "x"
    config.set_environ({"TRAINKIT_TEST_ONLY": None})
    assert "TRAINKIT_TEST_ONLY" not in os.environ


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password"])
def test_secrets_are_known_by_their_names(name):
    assert config.is_secret(name)
    assert not config.is_secret("MASTER_ADDR")


def test_the_docs_list_every_setting_with_its_meaning():
    text = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    for variable, _, meaning in config.describe():
        assert f"| `{variable}` |" in text
        assert meaning in text
