import socket

import pytest

from trainkit.errors import EnvironmentFaultError
from trainkit.launch.mpi.placement import Standing, check_placement, is_own_name

HOSTS = [("pi-worker-0.pi.default.svc", 2), ("pi-worker-1.pi.default.svc", 2)]


def standing(hostname, rank=2, world_size=4, local_world_size=2):
    return Standing(
        hostname=hostname, rank=rank, world_size=world_size, local_world_size=local_world_size
    )


def nowhere(host):
    return False


@pytest.mark.parametrize("hostname", ["pi-worker-1", "pi-worker-1.pi.default.svc", "PI-worker-1"])
def test_a_host_is_known_with_and_without_its_domain(hostname):
    found = check_placement(standing(hostname), HOSTS, 4, is_own=nowhere)
    assert found == "pi-worker-1.pi.default.svc"


def test_a_rank_in_the_launcher_is_refused_with_what_was_found_and_expected():
    with pytest.raises(EnvironmentFaultError) as caught:
        check_placement(standing("pi-launcher", rank=0), HOSTS, 4, is_own=nowhere)
    message = str(caught.value)
    assert "rank 0 on pi-launcher" in message
    assert "pi-worker-0.pi.default.svc, pi-worker-1.pi.default.svc" in message
    assert "TRAINKIT_MPI_PLACEMENT" in message


def test_a_host_of_another_name_is_known_by_its_address():
    found = check_placement(standing("node-17"), HOSTS, 4, is_own=lambda host: "worker-1" in host)
    assert found == "pi-worker-1.pi.default.svc"


def test_hosts_that_differ_in_their_domains_alone_are_told_apart_by_address():
    hosts = [("n.a", 1), ("n.b", 1)]
    seen = standing("n", world_size=2, local_world_size=1)
    assert check_placement(seen, hosts, 2, is_own=lambda host: host == "n.b") == "n.b"


def test_more_ranks_than_slots_on_a_host_are_refused():
    with pytest.raises(EnvironmentFaultError, match="4 ranks are on this host, which has 2"):
        check_placement(standing("pi-worker-0", local_world_size=4), HOSTS, 4, is_own=nowhere)


def test_slots_of_a_host_that_is_listed_twice_add_up():
    seen = standing("a", world_size=2, local_world_size=2)
    assert check_placement(seen, [("a", 1), ("a", 1)], 2, is_own=nowhere) == "a"


def test_another_number_of_ranks_is_refused():
    with pytest.raises(EnvironmentFaultError, match="started 2 ranks, and 4 were planned"):
        check_placement(standing("pi-worker-0", world_size=2), HOSTS, 4, is_own=nowhere)


def test_loopback_is_nobodys_address_but_localhosts():
    assert is_own_name("localhost")
    assert not is_own_name("127.0.0.2")
    assert not is_own_name("192.0.2.1")
    assert not is_own_name("no-such-host.invalid")


def test_an_address_of_this_host_is_its_own():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but loopback")
        assert is_own_name(probe.getsockname()[0])
