"""The MNIST recipe against the usual shape of an MNIST example."""
