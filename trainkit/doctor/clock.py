"""This host's clock against that of the place where checkpoints lie."""

from __future__ import annotations

import email.utils
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from trainkit import config
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.errors import TrainkitError, UsageError
from trainkit.resources.space import existing_parent, filesystem_of
from trainkit.storage import LocalStorage, open_storage, refuse_credentials

__all__ = ["check", "endpoint_of", "judge", "skew_by_http"]

_WARN, _BROKEN = 2.0, 600.0
"""Seconds. Object stores refuse signatures that are 15 minutes off; leases suffer first."""
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "fuse.glusterfs")
_SECONDS = 10.0


def check(question: Question) -> Iterator[Finding]:
    """Compare the clocks, where there is another one."""
    url = question.checkpoint_dir or config.settings().checkpoint_dir
    if url is None:
        text = "no checkpoint folder is named whose clock could be asked"
        yield Finding("clock", Status.NOT_CHECKED, text, "--across compares the ranks' clocks.")
        return
    try:
        refuse_credentials(url)
    except UsageError as error:
        yield Finding("clock", Status.NOT_CHECKED, str(error))
        return
    endpoint = endpoint_of(url, config.environ())
    try:
        if endpoint is not None:
            host = urlsplit(endpoint).hostname or "the object store"
            skew, accuracy = skew_by_http(endpoint)
            yield judge(skew, accuracy, host)
        else:
            yield _by_file(url)
    except (OSError, TrainkitError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
        yield Finding("clock", Status.NOT_CHECKED, f"no clock could be asked: {reason}")


def endpoint_of(url: str, environ: Mapping[str, str]) -> str | None:
    """The address of an object store; None where the URL names none that answers by HTTP."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in ("s3", "s3a"):
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        amazon = f"https://s3.{region}.amazonaws.com" if region else "https://s3.amazonaws.com"
        return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or amazon
    if scheme in ("gs", "gcs"):
        given = environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
        return given if "://" in given else f"http://{given}"
    account = environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if scheme in ("az", "abfs", "abfss") and account:
        return f"https://{account}.blob.core.windows.net"
    return None


def skew_by_http(endpoint: str) -> tuple[float, float]:
    """Seconds that this clock is ahead of a server's Date header, and how exact that is.

    No credentials are sent: a refusal has a date as well.

    Raises:
        OSError: the server does not answer.
        ValueError: it gives no date, or the address is none of HTTP.
    """
    refuse_credentials(endpoint)
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise ValueError("the address of the object store is none of HTTP")
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - checked above
    before = time.time()
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refusal:
        date = refusal.headers.get("Date")
        refusal.close()
    after = time.time()
    if not date:
        raise ValueError("the object store gives no date")
    # A date is cut off to seconds.
    server = email.utils.parsedate_to_datetime(date).timestamp() + 0.5
    return (before + after) / 2 - server, 0.5 + (after - before) / 2


def judge(skew: float, accuracy: float, of: str) -> Finding:
    """What a difference means.

    Args:
        skew: seconds that this clock is ahead.
        accuracy: seconds by which that may be wrong.
        of: whose clock it was compared with.
    """
    values = {"skew": round(skew, 3), "accuracy": round(accuracy, 3), "of": of}
    certain = max(0.0, abs(skew) - accuracy)
    way = "ahead of" if skew > 0 else "behind"
    found = f"this clock is {abs(skew):.1f} s (±{accuracy:.1f} s) {way} that of {of}"
    advice = "Set the node's clock by NTP (chrony, systemd-timesyncd)."
    if certain >= _BROKEN:
        return Finding("clock", Status.BROKEN, found, f"{advice} Requests are refused.", values)
    if certain >= _WARN:
        return Finding("clock", Status.WARNING, found, advice, values)
    return Finding("clock", Status.OK, f"no skew beyond {accuracy:.1f} s to {of}", values=values)


def _by_file(url: str) -> Finding:
    """By the time that a file server gives a new file."""
    storage = open_storage(url)
    if not isinstance(storage, LocalStorage):
        text = f"nothing is known of the clock behind {storage.url}"
        return Finding("clock", Status.NOT_CHECKED, text)
    folder = existing_parent(storage.url)
    kind = filesystem_of(folder)
    if kind not in _NETWORK:
        text = f"{folder} is on this host's own disk ({kind}), which has no other clock"
        return Finding("clock", Status.NOT_CHECKED, text, "--across compares the ranks' clocks.")
    place, name = LocalStorage(folder), f".doctor-{uuid.uuid4().hex}"
    before = time.time()
    place.create(name, b"")
    after = time.time()
    try:
        written = place.tree()[name].modified or 0.0
    finally:
        place.delete(name)
    return judge((before + after) / 2 - written, (after - before) / 2, f"the server of {folder}")
