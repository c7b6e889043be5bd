"""One interface over the places where checkpoints and data lie."""

from trainkit.storage.base import Bytes, Likeness, ObjectInfo, Storage, Upload
from trainkit.storage.credentials import refuse_credentials
from trainkit.storage.gradual import GradualStorage, Ready
from trainkit.storage.local import LocalStorage
from trainkit.storage.objects import ObjectStorage
from trainkit.storage.opening import open_storage
from trainkit.storage.scattering import Scatter, scatter_from

__all__ = [
    "Bytes",
    "GradualStorage",
    "Likeness",
    "LocalStorage",
    "ObjectInfo",
    "ObjectStorage",
    "Ready",
    "Scatter",
    "Storage",
    "Upload",
    "open_storage",
    "refuse_credentials",
    "scatter_from",
]
