"""Signatures of a manifest, made and checked by ``ssh-keygen``; no cryptography of fbp's own.

A manifest shows that a record was not changed, but whoever rewrites a whole record also makes a new
manifest. A signature says who vouches for one. It covers the manifest's bytes, in the namespace
``fbp``, and is a file among the artifacts.
"""

import base64
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from fbp.errors import InputError
from fbp.experiment.rundir import layout

LARGEST = 100_000
"""Bytes of a signature."""

_NAMESPACE, _KIND = "fbp", "SSH SIGNATURE"
_LINE = 70  # characters of base64
_SECONDS = 120.0  # to type a passphrase, or to touch a key
_MAX_SIGNATURES = 100


class Checked(NamedTuple):
    """What the signatures of a manifest show.

    Attributes:
        signers: a line for each valid signature.
        problems: a line for each that is not, or for a signature that is missing.
    """

    signers: tuple[str, ...]
    problems: tuple[str, ...]


def is_name(name: str) -> bool:
    """Return whether a file can have this name, which may come from anybody's record."""
    return re.fullmatch(r"[A-Za-z0-9][\w.+=-]{0,120}", name) is not None


def sign(artifacts: Path, key: Path) -> Path:
    """Sign the manifest of a run.

    Args:
        artifacts: the run's artifacts.
        key: the file of a private SSH key, or of a public one whose private half an agent has.

    Returns:
        The file of the signature.

    Raises:
        InputError: if ``ssh-keygen`` cannot sign with this key.
    """
    if not key.is_file():
        raise InputError(f"--key: expected the file of an SSH key, but there is no {key}")
    content = layout.manifest(artifacts).read_bytes()
    signed = _ssh_keygen("sign", "-f", str(key.resolve()), "-n", _NAMESPACE, content=content)
    if signed.returncode or not signed.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise InputError(f"--key {key}: it could not sign: {_last_line(signed.stderr)}")
    fingerprint = _fingerprint(content, signed.stdout)
    folder = layout.signatures(artifacts)
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "_", fingerprint.rpartition(":")[2])
    path = folder / f"key_{name}.sig"
    path.write_bytes(signed.stdout)
    return path


def copy(source: Path, artifacts: Path) -> None:
    """Copy a folder of signatures to the artifacts of a run, unless it is there."""
    target = layout.signatures(artifacts)
    if target.resolve() != source.resolve():
        target.mkdir(exist_ok=True)
        for path in source.glob("*.sig"):
            shutil.copyfile(path, target / path.name)


def verify(artifacts: Path, signers: Path | None = None) -> Checked:
    """Check the signatures of the manifest of a run.

    Args:
        artifacts: the run's artifacts, or copies of its manifest and signatures.
        signers: a file of allowed signers. One of them must have signed. Default: a signature by
            any key is valid, and its key is named.

    Raises:
        InputError: if `signers` cannot be read, or if there is no ``ssh-keygen``.
    """
    if signers is not None and not signers.is_file():
        raise InputError(
            f"--signers: expected a file of allowed signers, but there is no {signers}"
        )
    path, lines, problems = layout.manifest(artifacts), [], []
    content = path.read_bytes() if path.is_file() else b""
    is_by_signer = False
    for file in sorted(layout.signatures(artifacts).glob("*.sig"))[:_MAX_SIGNATURES]:
        if not is_name(file.name) or file.stat().st_size > LARGEST:
            problems.append("a signature has an odd name or size")
            continue
        signature = file.read_bytes()
        fingerprint = _is_armored(signature) and _fingerprint(content, signature, missing_ok=True)
        if not fingerprint:
            problems.append(f"signature {file.name}: not of this manifest, or damaged")
            continue
        principal = _principal(content, file, signers) if signers else ""
        is_by_signer |= bool(principal)
        who = f"{principal}, key {fingerprint}" if principal else f"key {fingerprint}"
        note = (
            ""
            if principal
            else "; whose that is is not known" + ("" if signers else " (see --signers)")
        )
        lines.append(f"signed by {who}{note}")
    if signers is not None and not is_by_signer:
        problems.append(f"none of the signers in {signers} has signed it")
    return Checked(tuple(lines), tuple(problems))


def _is_armored(signature: bytes) -> bool:
    """Return whether a signature is written exactly as ``ssh-keygen`` writes it."""
    try:
        body = base64.b64decode("".join(signature.decode("ascii").split("\n")[1:-2]), validate=True)
    except ValueError:
        return False
    text = base64.b64encode(body).decode()
    lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
    armored = "\n".join([f"-----BEGIN {_KIND}-----", *lines, f"-----END {_KIND}-----", ""])
    return armored.encode() == signature


def _principal(content: bytes, signature: Path, signers: Path) -> str:
    """Return which of the allowed signers made a signature; empty if none did."""
    options = ("-f", str(signers), "-s", str(signature))
    named = _ssh_keygen("find-principals", *options)
    if named.returncode:
        return ""
    for principal in named.stdout.decode(errors="replace").splitlines():
        names = ("-n", _NAMESPACE, "-I", principal)
        if _ssh_keygen("verify", *options, *names, content=content).returncode == 0:
            return principal
    return ""


def _fingerprint(content: bytes, signature: bytes, *, missing_ok: bool = False) -> str:
    """Return the kind and the fingerprint of the key of a valid signature.

    Args:
        content: what was signed.
        signature: the signature.
        missing_ok: whether to return an empty text if it is not valid.
    """
    with tempfile.NamedTemporaryFile(suffix=".sig") as file:
        file.write(signature)
        file.flush()
        done = _ssh_keygen("check-novalidate", "-n", _NAMESPACE, "-s", file.name, content=content)
    match = re.search(
        r"with (\S+) key (SHA256:[A-Za-z0-9+/=]+)", done.stdout.decode("ascii", "replace")
    )
    if done.returncode == 0 and match:
        return f"{match[1]} {match[2]}"
    if missing_ok:
        return ""
    raise InputError("ssh-keygen made a signature that it does not accept")


def _ssh_keygen(
    action: str, *options: str, content: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("ssh-keygen")
    if program is None:
        raise InputError("signatures need ssh-keygen; install OpenSSH 8.2 or newer")
    try:
        return subprocess.run(
            [program, "-Y", action, *options],
            input=content,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"ssh-keygen did not answer within {_SECONDS:.0f} s") from None


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
