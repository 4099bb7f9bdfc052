"""Uncommitted changes without what is secret in them: whole files by name, and single values."""

import fnmatch
import re
from collections.abc import Iterator

from fbp._secrets import HIDDEN, is_secret_name, redact

# by the file's name, or by that of a folder above it; letters of any case
_FILES = (
    ".env", ".env.*", ".env-*", "*.env", ".envrc", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx",
    "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.kdb", "*.gpg", "*.pgp", "*.age", "*.asc",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*_rsa", "*_ed25519", "ssh_host_*_key",
    "credential", "credentials", "credentials.*", "credentials-*", "credentials_*",
    "*-credentials.*", "*_credentials.*", "*.credentials", ".credentials*",
    "application_default_credentials*", ".netrc", "_netrc", ".authinfo*", ".pgpass", "pgpass.conf",
    ".my.cnf", ".mylogin.cnf", ".npmrc", ".yarnrc*", ".pypirc", ".htpasswd", ".git-credentials",
    ".dockercfg", ".dockerconfigjson", "kubeconfig*", "*.kubeconfig", "secret", "secrets",
    "secret.*", "secrets.*", "secrets-*", "secrets_*", ".secret*", "*.secret", "*.secrets",
    "*-secret.*", "*_secret.*", "*-secrets.*", "*_secrets.*", "client_secret*",
    "service-account*.json", "service_account*.json", "serviceaccount*.json", "*.tfvars",
    "*.tfvars.json", "*.tfstate", "*.tfstate.*", ".vault-token", ".vault-pass*", "vault-pass*",
    ".databrickscfg", ".s3cfg", ".boto", "rclone.conf", ".rclone.conf", "token", "token.*",
    "tokens.json", "*.token", "password", "passwords", "password.*", "passwords.*", "passwd",
    "shadow", "*.ovpn", "wp-config.php", ".bash_history", ".zsh_history", ".python_history",
)  # fmt: skip
_FOLDERS = (
    ".ssh", ".gnupg", ".aws", ".azure", ".gcloud", ".kube", ".docker", ".secrets", "secrets",
    ".credentials", "credentials", ".env", ".password-store",
)  # fmt: skip
_CODE = re.compile(r"\.(py|pyi|c|h|cc|cpp|hpp|cu|js|jsx|ts|tsx|rs|go|java|jl|r|m|lua|rb|sh)$", re.I)
_LITERAL = re.compile(
    r"""(?x) (?P<head> ["']? (?P<name> [A-Za-z_]\w* ) ["']? \s* (?: [=:] | == ) \s* [rbfu]{0,2} )
        (?P<quote> ["']) (?: \\. | (?!(?P=quote)) . )+ (?P=quote)"""
)
_ESCAPED = re.compile(r"\\([0-7]{3}|.)")
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def is_secret_file(path: str) -> bool:
    """Return whether a file is one of those that are meant to be secret, by its path.

    >>> [is_secret_file(path) for path in (".env", "a/id_rsa", ".aws/config", "src/model.py")]
    [True, True, True, False]
    """
    *folders, name = path.lower().split("/")
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _FILES) or any(
        folder in _FOLDERS for folder in folders
    )


def without_secrets(diff: str) -> str:
    """Return the output of ``git diff`` without secrets.

    Of files that are meant to be secret, only the names stay. In other files, values that are
    secret by their kind are replaced.

    Args:
        diff: the output, with the prefixes ``a/`` and ``b/``.
    """
    return "".join(
        f"# left out, because it is meant to be secret: {' -> '.join(map(_on_one_line, paths))}\n"
        if any(map(is_secret_file, paths))
        else _redacted(section, paths)
        for section, paths in _sections(diff)
    )


def _on_one_line(path: str) -> str:
    return path.encode("unicode_escape", "surrogateescape").decode("ascii")


def _sections(diff: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the part of each file in a diff, and the paths that it names."""
    for section in re.split(r"^(?=diff )", diff, flags=re.MULTILINE):
        if section:
            header = re.split(r"^(?:@@|GIT binary patch)", section, maxsplit=1, flags=re.MULTILINE)
            yield section, list(dict.fromkeys(_paths(header[0])))


def _paths(header: str) -> Iterator[str]:
    """Yield the paths in the header of a file's part of a diff."""
    for line in header.split("\n"):
        for prefix in ("rename from ", "rename to ", "copy from ", "copy to ", "* Unmerged path "):
            if line.startswith(prefix):
                yield _unquoted(line.removeprefix(prefix))
        for prefix, side in (("--- ", "a/"), ("+++ ", "b/")):
            path = _unquoted(line.removeprefix(prefix).rstrip("\t"))
            if line.startswith(prefix) and path.startswith(side):
                yield path.removeprefix(side)
        both = re.match(r"diff --git (.+)", line)
        if both and len(both[1]) % 2:  # without a rename, both sides have the same length
            path = _unquoted(both[1][: len(both[1]) // 2])
            if _unquoted(both[1][len(both[1]) // 2 + 1 :])[2:] == path[2:]:
                yield path[2:]
        merged = re.match(r"diff --(?:cc|combined) (.+)", line)
        if merged:
            yield _unquoted(merged[1])


def _unquoted(path: str) -> str:
    """Return a path as it is, of which git may have written a quoted form."""
    if not (len(path) > 1 and path.startswith('"') and path.endswith('"')):
        return path
    plain = _ESCAPED.sub(
        lambda match: (
            chr(int(match[1], 8)) if len(match[1]) == 3 else _CONTROLS.get(match[1], match[1])
        ),
        path[1:-1],
    )
    return plain.encode("latin-1", "ignore").decode(errors="surrogateescape")


def _redacted(section: str, paths: list[str]) -> str:
    """Return a file's part of a diff without secret values.

    In a program, only texts in quotes are values; a name there is another name's.
    """
    if any(_CODE.search(path) for path in paths):
        return _redacted_code(section)
    return redact(section)


def _redacted_code(section: str) -> str:
    plain = _LITERAL.sub(
        lambda match: (
            f"{match['head']}{match['quote']}{HIDDEN}{match['quote']}"
            if is_secret_name(match["name"])
            else match[0]
        ),
        section,
    )
    return redact(plain, assigned=False)
