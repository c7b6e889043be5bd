"""No secret in what the doctor says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainkit.config import environ, is_secret
from trainkit.doctor.finding import Finding
from trainkit.redaction import without_secrets

__all__ = ["without_secrets_of"]

_SHORTEST = 8
"""Characters: shorter values, such as ``true``, are parts of ordinary words."""


def without_secrets_of(finding: Finding) -> Finding:
    """``finding`` without credentials of URLs, and without values of secret variables.

    A library's error may hold any of them.
    """
    hidden = [v for name, v in environ().items() if is_secret(name) and len(v) >= _SHORTEST]
    hidden.sort(key=len, reverse=True)  # one may be a part of another

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for secret in hidden:
                value = value.replace(secret, "…")
            return without_secrets(value)
        if isinstance(value, dict):
            return {name: clean(one) for name, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    return replace(
        finding,
        found=clean(finding.found),
        advice=clean(finding.advice),
        values=clean(dict(finding.values)),
    )
