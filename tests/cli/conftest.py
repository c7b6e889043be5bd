"""What tests of the checkpoint commands share."""

import pytest

from trainkit.cli import main


@pytest.fixture
def call(capsys):
    """Run a command in this process; gives its exit code, stdout and stderr."""

    def _call(*argv):
        code = main(["checkpoint", *map(str, argv)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return _call
