"""Room in real folders, and kinds of file systems as the kernel lists them."""

import pytest

from trainkit.resources.space import existing_parent, filesystem_of, space_of

MOUNTS = r"""1 0 8:1 / / rw - ext4 /dev/root rw
2 1 0:5 / /data rw shared:1 - nfs4 server:/x rw
3 2 0:6 / /data/my\040disk rw - xfs /dev/sdb rw
4 1 0:7 / /data/twice rw - tmpfs a rw
5 1 0:8 / /data/twice rw - overlay b rw
"""


def test_room(tmp_path):
    found = space_of(str(tmp_path))
    assert 0 < found.free <= found.total
    assert found.files is None or found.files > 0
    with pytest.raises(OSError, match="No such file"):
        space_of(str(tmp_path / "gone"))


def test_the_nearest_folder_that_is_there(tmp_path):
    assert existing_parent(str(tmp_path / "a" / "b")) == str(tmp_path)
    assert existing_parent(str(tmp_path)) == str(tmp_path)
    (tmp_path / "file").write_text("")
    assert existing_parent(str(tmp_path / "file")) == str(tmp_path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/data", "nfs4"),
        ("/data/x/y", "nfs4"),
        ("/database", "ext4"),
        ("/data/my disk/x", "xfs"),
        ("/data/twice", "overlay"),
    ],
)
def test_kind_of_file_system(path, kind, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    assert filesystem_of(path, str(tmp_path)) == kind


def test_where_nothing_is_listed(tmp_path):
    assert filesystem_of("/", str(tmp_path)) is None
    assert filesystem_of("/proc") == "proc"
