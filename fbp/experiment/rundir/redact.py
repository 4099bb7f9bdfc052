"""Passwords in tracking URIs are used, but never shown, logged, tagged or stored."""

import os
import re
from urllib.parse import quote, unquote

from fbp.errors import first_line

_LOGIN = re.compile(r"(\w[\w+.-]*://)\S*@")  # up to the last @: a password may hold anything
_QUERY = re.compile(r"([?&][^=\s&]*(?:pass|pwd|token|secret|key)[^=\s&]*=)[^&\s]+", re.IGNORECASE)
_SHORTEST = 3  # a shorter password cannot be told from the text around it


def redact(text: str) -> str:
    """Return a URI, or a text with URIs in it, without users, passwords and tokens."""
    return _LOGIN.sub(r"\1", _QUERY.sub(r"\1***", text))


def redact_secrets_of(text: str, uri: str) -> str:
    """Return a text, such as an error of MLflow's, without the secrets of a URI.

    Args:
        text: the text.
        uri: the URI; the variables MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN are secret,
            too.
    """
    login = re.match(r"\w[\w+.-]*://[^:@/]*:?(.*)@[^@]*$", uri)
    secrets = {login[1]} if login else set()
    secrets |= {match.group().partition("=")[2] for match in _QUERY.finditer(uri)}
    secrets |= {
        os.environ.get("MLFLOW_TRACKING_PASSWORD", ""),
        os.environ.get("MLFLOW_TRACKING_TOKEN", ""),
    }
    for secret in sorted(secrets, key=len, reverse=True):
        for form in {
            secret,
            unquote(secret),
            quote(unquote(secret)),
            quote(unquote(secret), safe=""),
        }:
            if len(form) >= _SHORTEST:
                text = text.replace(form, "***")
    return redact(text)


def move_login_to_environment(uri: str) -> str:
    """Move user and password of an http(s) URI into environment variables; return the bare URI.

    MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The URI of a database is
    returned as it is.
    """
    login = re.match(r"(https?://)(.*)@([^@]*)$", uri)
    if not login:
        return uri
    user, _, password = login[2].partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return login[1] + login[3]


def redacted_first_line(error: BaseException, uri: str = "") -> str:
    """Return the first line of an error's message, without the secrets of ``uri``."""
    return redact_secrets_of(first_line(error), uri)
