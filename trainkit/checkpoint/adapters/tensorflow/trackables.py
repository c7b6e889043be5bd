"""What TensorFlow tracks, saved in its own format and under our manifest."""

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from trainkit.checkpoint.adapters.base import Apply, Document, RawFile, Saved
from trainkit.checkpoint.adapters.scratch import Scratch
from trainkit.checkpoint.adapters.tensorflow.bundles import (
    PREFIX,
    options,
    root_of,
    translated,
    write,
)
from trainkit.checkpoint.adapters.tensorflow.matching import check, variables_of
from trainkit.checkpoint.format.layout import TENSORFLOW
from trainkit.errors import EnvironmentFaultError, UsageError

__all__ = ["TrackableAdapter", "is_trackable"]

_awaited: list["weakref.ref[Any]"] = []
"""What was restored in this process and was not built when it was looked at last."""

_INDEX_BYTES = 1 << 16
"""About what a checkpoint has beside the values."""


def is_trackable(value: Any) -> bool:
    """Whether ``tf.train.Checkpoint`` can hold ``value``."""
    return isinstance(value, tf.__internal__.tracking.Trackable)


class TrackableAdapter:
    """Saves all that TensorFlow tracks as one checkpoint of its own, in ``tensorflow/``.

    Its files belong to the step as any others do: listed and with checksums in the manifest, on
    every storage. They are verified before TensorFlow sees them. Without trainkit,
    ``tf.train.load_checkpoint(".../tensorflow/ckpt")`` reads them where they are.
    """

    kind: ClassVar[str] = "trackable"

    def __init__(self) -> None:
        self._paths: list[str] | None = None
        self._prepared = False

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``StateAdapter.capture``: the first entry has the files, others refer to them."""
        if self._paths is not None:
            return [Document(path, None) for path in self._paths]
        entries = _trackables(state)
        _refuse_unbuilt(entries)
        documents = write(entries)
        self._paths = [document.path for document in documents]
        return documents

    def sketch(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``SketchingAdapter.sketch``: no value leaves its device."""
        if self._paths is not None:
            return []
        self._paths = []
        variables = {
            id(variable): variable
            for value in _trackables(state).values()
            for variable in variables_of(value)
        }
        size = sum(_num_bytes(variable) for variable in variables.values())
        raw = RawFile(size + _INDEX_BYTES, lambda begin, end: bytes(end - begin))
        return [Document(f"{TENSORFLOW}/{PREFIX}", None, raw=raw)]

    def prepare(self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]) -> Apply:
        """See ``StateAdapter.prepare``: with the first entry all of them are."""
        if self._prepared:
            return lambda: None
        self._prepared = True
        entries = _trackables(state)
        root = root_of(entries)
        scratch = Scratch()
        prefix = str(scratch.path / PREFIX)
        try:
            for path, document in saved.items():
                (scratch.path / path.rpartition("/")[2]).write_bytes(document.file())
            fit = check(entries, prefix)
        except BaseException:
            scratch.remove()
            raise

        def apply() -> None:
            try:
                status = root.read(prefix, options=options())
                status.expect_partial()  # entries that the run does not name were told of before
                for checkpoint in fit.counters:
                    _ = checkpoint.save_counter  # it is made, and takes its value
                if not fit.uncounted:
                    status.assert_existing_objects_matched()
            except tf.errors.OpError as error:
                raise translated(error, scratch.path) from None
            except AssertionError as error:
                raise EnvironmentFaultError(
                    f"TensorFlow could not restore all objects: {error}"
                ) from None
            finally:
                if not fit.unbuilt:
                    scratch.remove()
            if fit.unbuilt:
                _awaited.extend(map(weakref.ref, fit.unbuilt))
                # TensorFlow reads on when objects are built, and lets go of this when all are.
                weakref.finalize(status._checkpoint, scratch.remove)

        return apply


def _refuse_unbuilt(entries: Mapping[str, Any]) -> None:
    """Refuse to save objects that were restored and have not taken their values yet.

    Raises:
        UsageError: the message names one.
    """
    _awaited[:] = [ref for ref in _awaited if getattr(ref(), "built", True) is False]
    waiting = {id(item): item for ref in _awaited if (item := ref()) is not None}
    for name, value in entries.items() if waiting else ():
        for item in tf.train.TrackableView(value).descendants():
            if id(item) in waiting:
                raise UsageError(
                    f"{name}: {getattr(item, 'name', type(item).__name__)} was restored and has "
                    f"not been built since, so that what it was to take from the checkpoint would "
                    f"be lost in this one. Build it, or call it once, before save()."
                )


def _trackables(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if is_trackable(value)}


def _num_bytes(variable: Any) -> int:
    return int(tf.TensorShape(variable.shape).num_elements() or 0) * int(
        tf.as_dtype(variable.dtype).size
    )
