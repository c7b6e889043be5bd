"""What starting and supervising ranks costs, against torchrun and the machine's limits."""
