from trainkit.data.seeds import derive_seed


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed(7, "order", 0) == 1966837976469494399


def test_neighbouring_seeds_and_epochs_do_not_collide():
    seeds = {derive_seed(seed, "order", epoch) for seed in range(50) for epoch in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
