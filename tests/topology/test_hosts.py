"""Host lists as MPI and Slurm write them."""

from itertools import islice

import pytest

from trainkit.topology.hosts import expand_hostlist, parse_hostfile, parse_tasks_per_node


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a slots=2\nb slots=4\n", [("a", 2), ("b", 4)]),
        ("a:2\nb:4", [("a", 2), ("b", 4)]),
        ("a slots = 2 max_slots=8\n", [("a", 2)]),
        ("a max-slots=8\n", [("a", None)]),
        ("# all hosts\n\n  a  slots=2  # the first\n#b\n", [("a", 2)]),
        ("a\na\n", [("a", None), ("a", None)]),
        ("a:2 binding=user:0\n", [("a", 2)]),
        ("fd00::1\n", [("fd00::1", None)]),
        ("a slots=2\r\n", [("a", 2)]),
        ("", []),
    ],
)
def test_hostfile(text, hosts):
    assert parse_hostfile(text) == hosts


@pytest.mark.parametrize(
    "line",
    ["a slots=two", "a slots=0", "a slots=-1", "a:x", "a:", "a slots", "a 2", "slots=2", ":2"],
)
def test_a_bad_line_of_a_hostfile_is_named(line):
    with pytest.raises(ValueError, match=r"line 2 \(.*\)"):
        parse_hostfile(f"good slots=1\n{line}\n")


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("1", [1]),
        ("2(x3),1", [2, 2, 2, 1]),
        ("3,1(x2)", [3, 1, 1]),
        ("16(x2),8(x1)", [16, 16, 8]),
    ],
)
def test_tasks_per_node(text, tasks):
    assert parse_tasks_per_node(text) == tasks


@pytest.mark.parametrize("text", ["", "x", "2(x3", "2(x0)", "2x3", "2,,1", "-1", "2(x99999999)"])
def test_bad_tasks_per_node(text):
    with pytest.raises(ValueError, match="cannot read"):
        parse_tasks_per_node(text)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-2]", ["n1", "n2"]),
        ("n[01-03,07]", ["n01", "n02", "n03", "n07"]),
        ("a1,b[2-3]", ["a1", "b2", "b3"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
        (
            "rack[1-2]node[3-4]",
            ["rack1node3", "rack1node4", "rack2node3", "rack2node4"],
        ),
        ("n[1-2].example,m", ["n1.example", "n2.example", "m"]),
        ("gpu-a-[001,003]", ["gpu-a-001", "gpu-a-003"]),
    ],
)
def test_hostlist(text, hosts):
    assert list(expand_hostlist(text)) == hosts


def test_a_hostlist_is_expanded_lazily():
    assert list(islice(expand_hostlist("n[1-999999999]"), 2)) == ["n1", "n2"]


@pytest.mark.parametrize(
    "text", ["", "n[1-2", "n1-2]", "n[2-1]", "n[a]", "n[]", "a,,b", "n[[1]]", "n[1-2-3]"]
)
def test_bad_hostlist(text):
    with pytest.raises(ValueError, match=r"host|bracket|range"):
        list(expand_hostlist(text))
