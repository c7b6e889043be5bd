import pytest

from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter
from trainkit.checkpoint.interop.dcp.identifiers import Identified, identify
from trainkit.errors import UsageError

FOLDER = StepFolder(7, 3, 1)


@pytest.mark.parametrize(
    ("url", "step", "checkpoint_id", "expected"),
    [
        ("/a", None, None, Identified("/a", None)),
        ("/a", 7, None, Identified("/a", 7)),
        ("/a/", 7, "9", Identified("/a/", 9)),
        ("/a", None, "out/step-100", Identified("/a", 100)),
        (None, None, "out/step-100", Identified("out", 100)),
        (None, None, "100", Identified(".", 100)),
        (None, None, "/100", Identified("/", 100)),
        (None, None, "s3://bucket/run/step-100/", Identified("s3://bucket/run", 100)),
        (None, None, f"out/{FOLDER.name}", Identified("out", 7, FOLDER)),
        (f"out/{FOLDER.name}", None, None, Identified("out", 7, FOLDER)),
        (f"out/{FOLDER.name}/", 7, None, Identified("out", 7, FOLDER)),
        (FOLDER.name, None, None, Identified(".", 7, FOLDER)),
    ],
)
def test_what_is_meant(url, step, checkpoint_id, expected):
    assert identify(url, step, checkpoint_id) == expected


@pytest.mark.parametrize(
    ("url", "step", "checkpoint_id", "message"),
    [
        (None, None, None, "neither a checkpoint folder nor a checkpoint_id"),
        ("/a", None, "best", "checkpoint_id='best' ends in no number"),
        (f"/a/{FOLDER.name}", 8, None, "step=8 and a URL that is the folder of step 7"),
    ],
)
def test_what_nobody_can_mean(url, step, checkpoint_id, message):
    with pytest.raises(UsageError, match=message):
        identify(url, step, checkpoint_id)


@pytest.mark.parametrize("kind", [TrainkitReader, TrainkitWriter])
def test_dcp_may_ask_for_it(kind):
    assert kind.validate_checkpoint_id("out/step-100")
    assert not kind.validate_checkpoint_id("out/best")
    with pytest.raises(UsageError, match="threads=0"):
        kind("/a", threads=0)
