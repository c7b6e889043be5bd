"""No secret in what the doctor says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainkit.doctor.finding import Finding
from trainkit.redaction import redacted

__all__ = ["without_secrets_of"]


def without_secrets_of(finding: Finding) -> Finding:
    """``finding`` without credentials of URLs, and without values of secret variables.

    A library's error may hold any of them.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return redacted(value)
        if isinstance(value, dict):
            return {name: clean(one) for name, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    return replace(
        finding,
        found=clean(finding.found),
        advice=clean(finding.advice),
        values=clean(dict(finding.values)),
    )
