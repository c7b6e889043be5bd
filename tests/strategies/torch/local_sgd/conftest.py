from importlib.util import find_spec

# What is tested here imports torch, so do the tests; without it there is nothing to collect.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
