"""TensorFlow: parameter servers, several workers in step, or one process.

TensorFlow is imported by the files here alone, and by none of them that says who does what
(``tasks``).
"""
