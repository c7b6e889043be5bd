"""Whether the environment says of S3 all there is to know, and what it says."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["client_options", "is_plain", "is_plain_key"]

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_UNDERSTOOD = {
    *_KEYS,
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EXECUTION_ENV",
    "AWS_PAGER",
}
"""Variables of AWS's that both libraries take alike, or that say nothing about S3."""

_ELSEWHERE = re.compile(r"(AWS_|BOTO|FSSPEC)|(HTTPS?|ALL)_PROXY$", re.IGNORECASE)
"""Variables that mean something to boto or to fsspec."""

_CERTIFICATES = re.compile(r"AWS_CA_BUNDLE$|(SSL_CERT|REQUESTS_CA|CURL_CA)_")
"""Variables that say whom boto trusts; nothing is asked where it speaks plain HTTP."""

_FILES = (".aws/config", ".aws/credentials", ".config/fsspec")
"""Below the home folder: what boto and fsspec read without being told to."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PLAIN_KEY = re.compile(r"[\w.=+,@/-]*", re.ASCII)

_ENDPOINT = re.compile(r"https?://[\w.-]+(:\d+)?/?", re.ASCII)


def is_plain(url: str, variables: Mapping[str, str]) -> bool:
    """Whether obstore takes ``url``, credentials and endpoint exactly as boto would."""
    scheme, _, place = url.partition("://")
    bucket, _, key = place.partition("/")
    return (
        scheme in ("s3", "s3a")
        and _BUCKET.fullmatch(bucket) is not None
        and is_plain_key(key)
        and "//" not in place
        and _is_plain_environment(variables)
    )


def is_plain_key(key: str) -> bool:
    """Whether obstore has no other spelling for ``key``."""
    return _PLAIN_KEY.fullmatch(key) is not None


def client_options(bucket: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of obstore's ``S3Store`` for a plain environment."""
    endpoint = _endpoint(variables)
    found: dict[str, Any] = {
        "access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
        "region": variables.get("AWS_DEFAULT_REGION") or variables.get("AWS_REGION") or "us-east-1",
        # As boto has it: the bucket is in the name of Amazon's hosts alone.
        "virtual_hosted_style_request": not endpoint and "." not in bucket,
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": "10s",
            "timeout": "180s",
        },
        # It is tried again through fsspec.
        "retry_config": {"max_retries": 3},
    }
    if variables.get("AWS_SESSION_TOKEN"):
        found["session_token"] = variables["AWS_SESSION_TOKEN"]
    if endpoint:
        found["endpoint"] = endpoint.rstrip("/")
    return found


def _is_plain_environment(variables: Mapping[str, str]) -> bool:
    """Whether credentials and endpoint stand in ``variables`` alone, as obstore reads them."""
    if not all(variables.get(name) for name in _KEYS):
        return False
    endpoint = _endpoint(variables)
    names = {name for name in variables if not _CERTIFICATES.match(name)}
    if len(names) < len(variables) and not endpoint.startswith("http://"):
        return False
    if any(_ELSEWHERE.match(name) for name in names - _UNDERSTOOD):
        return False
    if any(Path(variables.get("HOME", "/"), file).exists() for file in _FILES):
        return False
    return not endpoint or _ENDPOINT.fullmatch(endpoint) is not None


def _endpoint(variables: Mapping[str, str]) -> str:
    return variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or ""
