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


def split_login(uri: str) -> tuple[str, str]:
    """Return the login of an address, empty if there is none, and the address without it.

    The login ends at the last ``@`` before the path, as everywhere: a path may have an ``@``, too.
    Only if what stands before the path cannot be a host with its port, the login ends at the last
    ``@`` at all, because somebody's password has a ``/`` in it.

    >>> split_login("http://me:word@host/a@b")
    ('me:word', 'http://host/a@b')
    >>> split_login("http://me:wo/rd@host/a"), split_login("/home/me@work/x.jsonl")
    (('me:wo/rd', 'http://host/a'), ('', '/home/me@work/x.jsonl'))
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "", uri
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    bare = rest[authority.rindex("@") + 1 :] if "@" in authority else _secrets.without_login(rest)
    return rest[: len(rest) - len(bare)].removesuffix("@"), scheme + separator + bare


def storable(uri: str) -> str:
    """Return an address as it may be stored: all of it, but no login and no secret of its query.

    >>> storable("postgresql://me:word@host/runs?password=x&sslmode=require")
    'postgresql://host/runs?password=***&sslmode=require'
    >>> storable("sqlite:////data/token=1/a:bcd@e/x.db")
    'sqlite:////data/token=1/a:bcd@e/x.db'
    """
    bare, mark, query = split_login(uri)[1].partition("?")
    return (
        bare
        + mark
        + re.sub(
            r"([^&;=]+)=([^&;]*)",
            lambda match: f"{match[1]}={_secrets.redact_value(match[1], match[2])}",
            query,
        )
    )


def move_login_to_environment(uri: str) -> str:
    """Move user and password of an http(s) URI into environment variables; return the bare URI.

    MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The URI of a database is
    returned as it is.
    """
    login, bare = split_login(uri)
    if not login or not uri.startswith(("http://", "https://")):
        return uri
    user, _, password = login.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return bare


def redacted_first_line(error: BaseException, uri: str = "") -> str:
    """Return the first line of an error's message, without the secrets of ``uri``."""
    return redact_secrets_of(first_line(error), uri)
