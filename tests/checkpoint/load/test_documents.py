import pytest

from trainkit.checkpoint.load.documents import DocumentFiles, document_files
from trainkit.errors import CheckpointDamagedError

FILES = {
    "model/model-00002-of-00002.safetensors": 0,
    "model/model-00001-of-00002.safetensors": 0,
    "model/model.safetensors.index.json": 0,
    "model/extra.json": 0,
    "state/table.json": 0,
    "state/table.safetensors": 0,
    "state/table-2.json": 0,
    "optim/half-00001-of-00002.safetensors": 0,
}


def test_files_of_documents():
    both = DocumentFiles(("state/table.safetensors",), "state/table.json")
    assert document_files(FILES, "state/table") == both
    assert document_files(FILES, "model/extra") == DocumentFiles((), "model/extra.json")
    assert document_files(FILES, "state/table-2") == DocumentFiles((), "state/table-2.json")


def test_a_document_that_was_split():
    found = document_files(FILES, "model/model")
    assert found.json is None
    assert [path[12:17] for path in found.tensors] == ["00001", "00002"]


@pytest.mark.parametrize(
    ("document", "said"),
    [("model/none", "lists no file of model/none"), ("optim/half", "into 2 files; 1 listed")],
)
def test_documents_that_are_not_whole(document, said):
    with pytest.raises(CheckpointDamagedError, match=said):
        document_files(FILES, document)
