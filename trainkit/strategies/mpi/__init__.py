"""What strategies over MPI share, whatever the framework: the world, and memory within a host."""
