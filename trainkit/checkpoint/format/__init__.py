"""How a checkpoint lies on disk: names, manifests, tensor files. ``tkc/1``."""
