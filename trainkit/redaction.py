"""No secret in what trainkit says: credentials in URLs, values of variables and flags named so."""

import json
import re
from collections.abc import Iterator, Mapping

from trainkit.config import environ, is_secret

__all__ = ["redacted", "without_secrets"]

_NAMED = r"(?:token|password|passwd|passphrase|secret|(?:api|access|secret)[-_]?key)"
"""How names of flags, options and parameters end whose value is a secret."""

# Nothing here may search far from each place of a long text, which may be a hostile one.

_USERINFO = re.compile(r"://[^\s@'\"]++(@?)")
"""What may stand before the host, of which a secret may hold slashes; to its end, so that no part
of it is searched twice. Without an @ there it is none."""

_SECRETS = re.compile(
    # The parameters of signed URLs, and those of a connection string of Azure's.
    rf"(?P<name>(?:{_NAMED}|\b(?:sig|signature|x-(?:amz|goog)-(?:signature|credential)"
    r"|AccountKey|SharedAccessSignature))=)[^&\s'\"]+"
    # Flags whose value is the next word, in a command line or a list of words.
    rf"|(?P<flag>--(?:[\w-]{{0,64}}[-_])?{_NAMED}(?:['\"],)?[ ]['\"]?)(?!-)[^\s'\"]+",
    re.IGNORECASE,
)

_SHORTEST, _LONG = 3, 8
"""Characters: below the first a value is no secret; below the second it is one only as a word of
its own, or half of a message would be hidden for a password such as "data"."""

_NO_SECRETS = frozenset(
    {"true", "false", "yes", "none", "null", "off", "auto", "default", "disabled", "enabled"}
)
"""Values of variables such as TOKENIZERS_PARALLELISM, whose name only looks like a secret's."""


def without_secrets(text: str) -> str:
    """``text`` without what looks like credentials: in URLs, and as values of flags and options."""
    text = _USERINFO.sub(lambda found: "://…@" if found[1] else found[0], text)
    return _SECRETS.sub(lambda found: f"{found['name'] or found['flag']}…", text)


def redacted(text: str, variables: Mapping[str, str] | None = None) -> str:
    """``text`` without credentials in URLs and without the values of secret variables.

    Redact before text is shortened: of a secret that was cut in two, half would be shown.

    Args:
        text: what is to be shown.
        variables: the environment that holds the secrets; this process's by default. Which of
            them are secret their names tell (``config.is_secret``).
    """
    known = environ() if variables is None else variables
    # Longest first: one secret may be the beginning of another.
    forms = {form for name, value in known.items() if is_secret(name) for form in _forms(value)}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    if ordered:
        text = re.sub("|".join(map(_pattern, ordered)), "…", text)
    return without_secrets(text)


def _forms(value: str) -> Iterator[str]:
    """How a secret may be written: as it is, by its lines, and escaped."""
    from urllib.parse import quote  # late: `trainkit env` starts without it

    value = value.strip()
    parts = {value, *(line.strip() for line in value.splitlines())}
    for part in parts:
        if len(part) < _SHORTEST or part.lower() in _NO_SECRETS:
            continue
        if len(part) < _LONG and part.isdecimal() and len(part) < 6:
            continue  # a number of seconds or of keys
        yield part
        yield repr(part)[1:-1]
        yield json.dumps(part)[1:-1]
        yield quote(part, safe="")
        yield quote(part)


def _pattern(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _LONG else rf"(?<!\w){escaped}(?!\w)"
