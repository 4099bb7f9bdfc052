"""Download and verification of a data set's files, when the user asks for it."""

import gzip
import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from fbp.errors import InputError


class Archive(NamedTuple):
    """A file to fetch.

    Attributes:
        name: of the file.
        base: address of its folder.
        checksum: ``sha256:`` and the digest of the decompressed content, or ``md5:`` and the digest
            of the file as its publisher lists it.
    """

    name: str
    base: str
    checksum: str


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

ARCHIVES = {
    "mnist": (
        Archive(
            "train-images-idx3-ubyte.gz",
            _MNIST,
            "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        Archive(
            "train-labels-idx1-ubyte.gz",
            _MNIST,
            "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        Archive(
            "t10k-images-idx3-ubyte.gz",
            _MNIST,
            "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        Archive(
            "t10k-labels-idx1-ubyte.gz",
            _MNIST,
            "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": (
        Archive("train-images-idx3-ubyte.gz", _FASHION, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Archive("train-labels-idx1-ubyte.gz", _FASHION, "md5:25c81989df183df01b3e8a0aad5dffbe"),
        Archive("t10k-images-idx3-ubyte.gz", _FASHION, "md5:bef4ecab320f06d8554ea6380940ec79"),
        Archive("t10k-labels-idx1-ubyte.gz", _FASHION, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "cifar10": (
        Archive(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
        ),
    ),
}


def fetch(name: str, folder: Path) -> None:
    """Download the files of a data set that ``folder`` lacks, making the folder if needed.

    Args:
        name: of the data set, a key of ``ARCHIVES``.
        folder: where the files are written.

    Raises:
        InputError: the folder cannot be made, a file cannot be fetched, or its checksum is wrong;
            a file with a wrong checksum is not written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"data {name!r}: the folder {folder} cannot be made ({error.strerror})"
        ) from None
    for archive in ARCHIVES[name]:
        path = folder / archive.name
        if path.exists():
            continue
        address = archive.base + archive.name
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                content = response.read()
        except (urllib.error.URLError, OSError) as error:
            raise InputError(
                f"data {name!r}: {address} could not be fetched ({error}); put the file into "
                f"{folder} yourself"
            ) from None
        verify(archive, content)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)


def verify(archive: Archive, content: bytes) -> None:
    """Raise InputError unless the content of a fetched file has the archive's checksum."""
    kind, _, expected = archive.checksum.partition(":")
    try:
        data = gzip.decompress(content) if kind == "sha256" else content
    except (OSError, EOFError) as error:
        raise InputError(f"{archive.name}: the fetched file is damaged ({error})") from None
    digest = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if digest != expected:
        raise InputError(
            f"{archive.name}: expected the {kind} digest {expected}, got {digest}; the file was "
            "not kept"
        )
