import re
from pathlib import Path

import fsspec

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def test_what_the_docs_show_runs(torchvision, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAINKIT_MNIST_URL", raising=False)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks[1:]:
        exec(compile(block, str(DOCS), "exec"), {"__name__": "docs"})
    assert "one two three" in capsys.readouterr().out
    fsspec.filesystem("memory").rm("/mirror", recursive=True)
