"""Passwords in tracking URIs: used, but never shown, logged, tagged or kept."""

import os
import re
from urllib.parse import quote, unquote

_LOGIN = re.compile(r"(\w[\w+.-]*://)\S*@")  # up to the last @: a password may hold anything
_QUERY = re.compile(r"([?&][^=\s&]*(?:pass|pwd|token|secret|key)[^=\s&]*=)[^&\s]+", re.IGNORECASE)
_SHORTEST = 3  # a shorter password cannot be told from the text around it


def redact(text: str) -> str:
    """A URI, or a text with URIs in it, that may be shown: without users, passwords and tokens."""
    return _LOGIN.sub(r"\1", _QUERY.sub(r"\1***", text))


def redact_secrets_of(text: str, uri: str) -> str:
    """A text, such as an error of MLflow's, in which nothing secret of a URI is left."""
    found = re.match(r"\w[\w+.-]*://[^:@/]*:?(.*)@[^@]*$", uri)
    secrets = {found[1]} if found else set()
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
    """A URI of a server without its user and password, which go where MLflow looks for them; a database's as it is."""
    found = re.match(r"(https?://)(.*)@([^@]*)$", uri)
    if not found:
        return uri
    user, _, password = found[2].partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return found[1] + found[3]
