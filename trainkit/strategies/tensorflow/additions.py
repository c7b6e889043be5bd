"""Sums of Keras 3 that several workers add to at the same time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

__all__ = ["whole_additions"]


@contextmanager
def whole_additions() -> Iterator[None]:
    """While steps are traced, have Keras 3 add to variables in one operation, where they live.

    Its ``assign_add`` reads, adds and writes, and what other workers have added in between is
    lost: of the iterations of an optimizer every fourth one with two workers, so that schedules of
    the learning rate lag behind. Keras 2 and TensorFlow's own variables need nothing of this.
    """
    keras = sys.modules.get("keras")
    kind = getattr(keras, "Variable", None)
    if keras is None or kind is None or keras.backend.backend() != "tensorflow":
        yield
        return
    before = {name: vars(kind).get(name) for name in ("assign_add", "assign_sub")}
    for name in before:
        setattr(kind, name, _whole(getattr(kind, name), name))
    try:
        yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(kind, name)  # what it inherits is seen again
            else:
                setattr(kind, name, method)


def _whole(of_keras: Any, name: str) -> Any:
    from keras.src.backend import in_stateless_scope

    def change(self: Any, value: Any) -> Any:
        variable = self._value
        if in_stateless_scope() or not isinstance(variable, tf.Variable):
            return of_keras(self, value)
        return getattr(variable, name)(self._convert_to_tensor(value, dtype=variable.dtype))

    return change
