"""TensorFlow's objects in a checkpoint. Imported only where TensorFlow is there already."""

from typing import Any

from trainkit.checkpoint.adapters.base import StateAdapter

__all__ = ["adapter_for"]


def adapter_for(value: Any) -> StateAdapter | None:
    """The adapter for what TensorFlow tracks: variables, modules, Keras models and optimizers,
    ``tf.train.Checkpoint``; None for any other object of TensorFlow or Keras."""
    from trainkit.checkpoint.adapters.tensorflow.trackables import TrackableAdapter, is_trackable

    return TrackableAdapter() if is_trackable(value) else None
