"""The driver's messages, in a log as the kernel writes it."""

import time

from trainkit.resources.kernel_log import gpu_faults

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, GPU has fallen off the bus."


def record(seconds_ago, text):
    microseconds = int((time.clock_gettime(time.CLOCK_MONOTONIC) - seconds_ago) * 1e6)
    return f"4,1234,{microseconds},-;{text}\n SUBSYSTEM=pci\n"


def test_faults_since(tmp_path):
    log = tmp_path / "kmsg"
    log.write_text(
        record(5, "NVRM: Xid (PCI:0000:3b:00): 94, Contained ECC error")
        + record(4, "eth0: link is up")
        + "broken\n7;NVRM: Xid without a time\n"
        + record(1, XID)
    )
    first, last = gpu_faults(0, str(log))
    assert first == "Xid (PCI:0000:3b:00): 94, Contained ECC error"
    assert "fallen off the bus" in last
    assert gpu_faults(time.time() - 3, str(log)) == [last]
    assert gpu_faults(time.time(), str(log)) == []


def test_a_log_that_may_not_be_read(tmp_path):
    assert gpu_faults(0, str(tmp_path / "none")) == []
    assert gpu_faults(0, str(tmp_path)) == []


def test_the_log_of_this_machine_is_read_to_its_end_and_no_further():
    """The device would wait for the next record."""
    assert gpu_faults(time.time() + 60) == []
