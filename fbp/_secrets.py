"""Secrets in texts, recognized by kind: logins, tokens, signatures, passwords, keys.

A text that is recorded, sent or shown may quote an address, a command, a header or a line of a
file. What is secret in it is replaced by ``***``; everything else stays.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"

# the words of which a name such as X-Amz-Signature, dbPassword or --api-key consists
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = frozenset({
    "password", "passwd", "passphrase", "passwort", "pass", "pwd", "pw", "secret", "secrets",
    "token", "credential", "credentials", "cred", "creds", "auth", "authorization", "signature",
    "sig", "bearer", "cookie", "jwt", "otp", "pin", "apikey", "accesskey", "secretkey",
    "privatekey", "sessionid",
})  # fmt: skip
_SECRET_ENDINGS = ("password", "passwd", "passphrase", "secret", "apikey", "token", "pwd")
_KEY_OF = frozenset({  # "key" alone may be anything's; after one of these words it is secret
    "api", "access", "secret", "private", "account", "auth", "signing", "encryption", "master",
    "storage", "subscription", "shared", "client", "service", "ssh", "license", "app", "hmac",
})  # fmt: skip
_NOT_SECRET = frozenset({"id", "file", "path", "name", "type", "url", "length", "count", "size"})
_SWITCH = re.compile(r"(?i)(true|false|none|null|yes|no|on|off|\d{1,3}|\*+)$")

# kinds of secrets that are known by their shape
_SHAPES = re.compile(
    r"""
    (?<![A-Za-z0-9_-]) (?:
      gh[a-z]_[A-Za-z0-9]{16,} | github_pat_\w{20,} | gl[a-z]{2,4}-[\w-]{16,}
    | (?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,}
    | sk-[A-Za-z0-9_-]{16,} | [srp]k_(?:live|test)_[A-Za-z0-9]{10,}
    | xox[a-z]-[A-Za-z0-9-]{8,} | xapp-[A-Za-z0-9-]{8,}
    | eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*)*
    | hf_[A-Za-z0-9]{16,} | npm_[A-Za-z0-9]{20,} | pypi-[\w-]{16,} | dapi[0-9a-f]{30,}
    | AIza[\w-]{30,} | ya29\.[\w-]{10,} | GOCSPX-[\w-]{16,} | SG\.[\w-]{16,}\.[\w-]{16,}
    | do[opr]_v1_[0-9a-f]{32,} | gls?a_[A-Za-z0-9_]{20,} | hvs\.[\w-]{16,}
    | shp[a-z]{2}_[\da-f]{30,}
    | AGE-SECRET-KEY-1[A-Z0-9]{20,} | \d{8,10}:AA[\w-]{30,} | r8_[A-Za-z0-9]{20,}
    )
    | (?<=hooks\.slack\.com/services/)[\w/]+ | (?<=discord\.com/api/webhooks/)[\w/-]+
    | -----BEGIN[ ][A-Z0-9 ]*PRIVATE[ ]KEY-----(?:.*?-----END[ ][A-Z0-9 ]*PRIVATE[ ]KEY-----|.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_HEADER = re.compile(
    r"""(?ix) (?P<head> (?<![\w]) (?:proxy-)?authorization ["']? \s* [:=] \s* ["']?
        (?: (?:basic|bearer|token|digest|negotiate|apikey|aws4-hmac-sha256) \s+ )? )
        (?P<value> [^"'\r\n]+ )"""
)
_COOKIE = re.compile(r"""(?i)(?P<head>\b(?:set-)?cookie["']?\s*:\s*["']?)(?P<value>[^"'\r\n]+)""")
_BEARER = re.compile(r"(?P<head>\bbearer\s+)(?P<value>(?=\S*\d)[\w.~+/=-]{8,})", re.IGNORECASE)
_USER = re.compile(r"(?P<head>(?<![\w-])(?:-u|--user)[ =]+[^\s:]+:)(?P<value>[^\s\"']+)")
_LOGIN = re.compile(
    r"""(?P<head>)(?P<value>(?<![\w/@.%])[\w.+%-]+:[^\s:@/"'<>]{3,})(?=@(?!sha)\w)"""
)
_ADDRESS = re.compile(r"""(?P<scheme>\b[A-Za-z][\w+.-]*://)(?P<rest>[^\s"<>`]+)""")
_QUERY = re.compile(
    r"""(?P<head>[?&;\#](?P<name>[^=\s&;\#?"'<>]{1,80})=)(?P<value>[^&;\s"'<>\#]+)"""
)
_ASSIGNED = re.compile(
    r"""(?x) (?<![\w.%-]) (?:--?)? ["']? (?P<name> [A-Za-z_][\w.-]{0,80} ) ["']?
        [ \t]* (?P<sign> := | => | [=:] ) [ \t]*"""
)
_OPTION = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][\w-]{1,80})[ \t]+(?!-)")
_VALUE = re.compile(
    r"""(?P<quote>["'])(?P<quoted>(?:\\.|(?!(?P=quote)).)+)(?P=quote)|[^\s"',;&|)\]}]+"""
)


def is_secret_name(name: str) -> bool:
    """Return whether the value of that name is meant to be secret.

    >>> [is_secret_name(name) for name in ("X-Amz-Signature", "DB_PASSWORD", "apiKey", "tokens")]
    [True, True, True, False]
    """
    words = [word.lower() for word in _WORD.findall(unquote(name))]
    if not words or (words[-1] in _NOT_SECRET and words[-1:] != words):
        return bool(words) and words[-1] == "id" and words[-2:-1] in (["key"], ["session"])
    is_key = any(word == "key" and words[i - 1] in _KEY_OF for i, word in enumerate(words) if i)
    is_joined = any(word.endswith(_SECRET_ENDINGS) for word in words)
    return is_key or is_joined or not _SECRET_WORDS.isdisjoint(words)


def redact(text: str, *, known: Iterable[str] = (), assigned: bool = True) -> str:
    """Return a text without secrets: an address, a command, a message, or several lines.

    Args:
        text: the text.
        known: further texts that are secret.
        assigned: whether ``name = value`` and ``--name value`` are looked at. Default: True.

    >>> redact("http://me:word@host/a?sig=abc&x=1 --password word")
    'http://host/a?sig=***&x=1 --password ***'
    """
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = _SHAPES.sub(HIDDEN, text)
    text = _ADDRESS.sub(lambda match: match["scheme"] + without_login(match["rest"]), text)
    text = _QUERY.sub(_hide_in_query, text)
    for pattern in (_HEADER, _COOKIE, _BEARER, _USER, _LOGIN):
        text = pattern.sub(lambda match: f"{match['head']}{HIDDEN}", text)
    for pattern in (_OPTION, _ASSIGNED) if assigned else ():
        text = _without_values(text, pattern)
    return text


def redact_value(name: str, value: str) -> str:
    """Return the value of a setting without secrets: nothing of it if its name says so.

    >>> redact_value("DB_PASSWORD", "abc"), redact_value("shape", "8 x 8")
    ('***', '8 x 8')
    """
    if is_secret_name(name) and not _SWITCH.match(value):
        return HIDDEN
    return redact(value)


def redact_words(words: Iterable[str], *, known: Iterable[str] = ()) -> str:
    """Return the words of a command as one text without secrets.

    Args:
        words: the words as the operating system has them; one may hold blanks.
        known: further texts that are secret.
    """
    shown: list[str] = []
    is_hidden = False  # whether the word before asks for a secret
    for word in words:
        name = word.lstrip("-")
        is_option = word.startswith("-") and "=" not in word
        if is_hidden and not is_option and not _SWITCH.match(word):
            shown.append(HIDDEN)
        elif word.startswith("-") and "=" in name and is_secret_name(name.partition("=")[0]):
            shown.append(f"{word.partition('=')[0]}={HIDDEN}")
        else:
            shown.append(redact(word, known=known))
        is_hidden = is_option and (is_secret_name(name) or word == "-u")
    return " ".join(shown)


def without_login(rest: str) -> str:
    """Return what follows ``scheme://`` in an address without user and password.

    They end at the last ``@`` before the path. If what stands there cannot be a host with its port,
    or if there is a login, they end at the last ``@`` at all, because a password may hold anything.

    >>> [without_login(rest) for rest in ("me:a/b@c@host", "host:80/a@b", "/home/a@b.db")]
    ['host', 'host:80/a@b', '/home/a@b.db']
    """
    if "@" not in rest or rest.startswith("/"):
        return rest
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    has_port = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", authority) is not None
    return rest.rpartition("@")[2] if "@" in authority or not has_port else rest


def _hide_in_query(match: re.Match[str]) -> str:
    name = unquote(match["name"])
    is_key = name.lower() in ("key", "code", "hmac") or is_secret_name(name)
    return f"{match['head']}{HIDDEN}" if is_key else match[0]


def _without_values(text: str, pattern: re.Pattern[str]) -> str:
    """Return a text without the values that follow a pattern with the name of a secret."""
    parts, end = list[str](), 0
    for head in pattern.finditer(text):
        value = _VALUE.match(text, head.end())
        if head.start() < end or value is None or not is_secret_name(head["name"]):
            continue
        if _SWITCH.match(value[0]) or value[0].startswith("//"):
            continue
        if head.groupdict().get("sign") == ":" and value[0].isalpha() and _is_prose(head, value):
            continue
        quote = value["quote"] or ""
        parts += [text[end : head.end()], quote, HIDDEN, quote]
        end = value.end()
    return "".join([*parts, text[end:]])


def _is_prose(head: re.Match[str], value: re.Match[str]) -> bool:
    """Return whether a sentence goes on after the word behind a colon, or began before it."""
    text = head.string
    begin = text.rfind("\n", 0, head.start()) + 1
    end = text.find("\n", value.end())
    rest = text[value.end() : end if end >= 0 else len(text)]
    return bool(rest.strip() or text[begin : head.start()].strip(" \t+-"))
