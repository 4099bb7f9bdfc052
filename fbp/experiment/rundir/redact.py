"""What is secret in texts of a run is used, but never shown, logged, tagged or stored."""

import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from fbp import _secrets
from fbp._secrets import redact as redact
from fbp.errors import first_line

_SHORTEST = 3  # a shorter password cannot be told from the text around it
_SHORTEST_VARIABLE = 8  # the value of a variable is looked for in all texts


def redact_secrets_of(text: str, uri: str) -> str:
    """Return a text, such as an error of MLflow's, without the secrets of a URI.

    Args:
        text: the text.
        uri: the URI; the variables MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN are secret,
            too.
    """
    login = re.match(r"\w[\w+.-]*://[^:@/]*:?(.*)@[^@]*$", uri)
    secrets = {login[1]} if login and _secrets.redact(uri) != uri else set()
    secrets |= {
        value
        for name, value in re.findall(r"[?&;#]([^=\s&;]+)=([^&;#\s]+)", uri)
        if _secrets.is_secret_name(name)
    }
    secrets |= {
        os.environ.get("MLFLOW_TRACKING_PASSWORD", ""),
        os.environ.get("MLFLOW_TRACKING_TOKEN", ""),
    }
    return redact(text, known=_forms(secrets, _SHORTEST))


def redact_texts(values: Mapping[str, str]) -> dict[str, str]:
    """Return texts by name, such as tags, without secrets; the name may say that one is secret."""
    return {name: _secrets.redact_value(name, text) for name, text in values.items()}


def redact_command(words: Iterable[str]) -> str:
    """Return a command as one text without secrets.

    Args:
        words: its words. The values of environment variables that are secret are hidden, too.
    """
    secrets = {value for name, value in os.environ.items() if _secrets.is_secret_name(name)}
    return _secrets.redact_words(words, known=_forms(secrets, _SHORTEST_VARIABLE))


def _forms(secrets: Iterable[str], shortest: int) -> list[str]:
    """Return secrets in each of the spellings that an address can have, the longest first."""
    forms = {
        form
        for secret in secrets
        for form in (secret, unquote(secret), quote(unquote(secret)), quote(unquote(secret), ""))
        if len(form) >= shortest
    }
    return sorted(forms, key=len, reverse=True)


def move_login_to_environment(uri: str) -> str:
    """Move user and password of an http(s) URI into environment variables; return the bare URI.

    MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The URI of a database is
    returned as it is.
    """
    scheme, separator, rest = uri.partition("://")
    bare = _secrets.without_login(rest)
    if scheme not in ("http", "https") or bare == rest:
        return uri
    user, _, password = rest[: len(rest) - len(bare) - 1].partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return scheme + separator + bare


def redacted_first_line(error: BaseException, uri: str = "") -> str:
    """Return the first line of an error's message, without the secrets of ``uri``."""
    return redact_secrets_of(first_line(error), uri)
