"""MNIST, Fashion-MNIST and CIFAR-10 from a local folder, in their publishers' own file formats."""

import gzip
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np

from fbp.datasets.base import Dataset, Examples, classification
from fbp.datasets.download import ARCHIVES, fetch
from fbp.errors import ArgumentError, InputError

_MNIST_CLASSES = tuple("0123456789")
_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def mnist(folder: str | None = None, *, download: bool = False) -> Dataset:
    """Return 70,000 handwritten digits, 28 x 28 pixels in [0, 1]; 10,000 of them set apart.

    LeCun, Cortes and Burges (1998), *The MNIST database of handwritten digits*.

    Args:
        folder: of the four IDX files (``train-images-idx3-ubyte`` and so on, gzip or not);
            ``$FBP_DATA/mnist`` by default, or a cache folder in the home directory.
        download: fetch the files that are missing, about 12 MB, and verify their checksums.

    Raises:
        InputError: a file is missing or damaged.
    """
    return _idx("mnist", folder, _MNIST_CLASSES, download=download)


def fashion_mnist(folder: str | None = None, *, download: bool = False) -> Dataset:
    """Return 70,000 pictures of clothes, 28 x 28 pixels in [0, 1]; 10,000 of them set apart.

    Xiao, Rasul and Vollgraf (2017), *Fashion-MNIST*.

    Args:
        folder: of the four files in MNIST's format; ``$FBP_DATA/fashion_mnist`` by default, or a
            cache folder in the home directory.
        download: fetch the files that are missing, about 30 MB, and verify their checksums.

    Raises:
        InputError: a file is missing or damaged.
    """
    return _idx("fashion_mnist", folder, _FASHION_CLASSES, download=download)


def cifar10(folder: str | None = None, *, download: bool = False) -> Dataset:
    """Return 60,000 colour pictures, 32 x 32 x 3 in [0, 1]; 10,000 of them set apart.

    Krizhevsky (2009), *Learning multiple layers of features from tiny images*.

    Args:
        folder: of the binary version: ``data_batch_1.bin`` to ``data_batch_5.bin`` and
            ``test_batch.bin``, or the archive ``cifar-10-binary.tar.gz`` that holds them.
        download: fetch the archive, 162 MB, and verify its checksum.

    Raises:
        InputError: a file is missing or damaged.
    """
    location = _folder("cifar10", folder, download=download)
    train = [_cifar_batch(location, f"data_batch_{i}.bin") for i in range(1, 6)]
    x, y = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return classification(
        "cifar10", x, y, _CIFAR_CLASSES, Examples(*_cifar_batch(location, "test_batch.bin"))
    )


def _folder(name: str, folder: str | None, *, download: bool) -> Path:
    """Return the folder of a data set; fetch its missing files first if ``download`` is set."""
    if folder:
        location = Path(folder).expanduser()
    elif os.environ.get("FBP_DATA"):
        location = Path(os.environ["FBP_DATA"]).expanduser() / name
    else:
        location = Path.home() / ".cache" / "fbp" / name
    if download:
        fetch(name, location)
    if location.is_file():
        raise ArgumentError(name, "folder", f"expected a folder, got the file {location}")
    if not location.is_dir():
        files = ", ".join(archive.name for archive in ARCHIVES[name])
        raise ArgumentError(
            name,
            "folder",
            f"expected the folder {location} with {files}, got no such folder; set folder or "
            "FBP_DATA, or set download to true",
        )
    return location


def _idx(name: str, folder: str | None, classes: tuple[str, ...], *, download: bool) -> Dataset:
    location = _folder(name, folder, download=download)
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(name, location / f"{part}-images-idx3-ubyte")
        labels = _read_idx(name, location / f"{part}-labels-idx1-ubyte")
        parts.append(Examples(images[..., None].astype(np.float32) / 255, labels.astype(np.int32)))
    return classification(name, *parts[0], classes, parts[1])


def _read_idx(name: str, path: Path) -> np.ndarray:
    """Read an array of bytes in IDX format.

    Two zeros, the type 8, the number of axes, their sizes in 4 bytes each, the content.
    """
    zipped = path.with_name(path.name + ".gz")
    try:
        content = gzip.decompress(zipped.read_bytes()) if zipped.exists() else path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"data {name!r}: expected the file {path.name} or {zipped.name} in {path.parent}, got "
            "neither"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"data {name!r}: the file {zipped} is damaged ({error}); fetch it again"
        ) from None
    axes = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    header = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if not axes or len(content) != header + np.prod(shape):
        raise InputError(
            f"data {name!r}: the file {zipped if zipped.exists() else path} is damaged: expected "
            "an IDX file of bytes"
            + (f" of shape {shape}" if axes else "")
            + f", got {len(content)} bytes; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _cifar_batch(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read records of one label byte and 3 x 32 x 32 bytes, channel by channel."""
    content = _cifar_file(folder, name)
    if not content or len(content) % 3073:
        raise InputError(
            f"data 'cifar10': {name} in {folder} is damaged: expected records of 3073 bytes, got "
            f"{len(content)} bytes"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return pixels.astype(np.float32) / 255, records[:, 0].astype(np.int32)


def _cifar_file(folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / "cifar-10-batches-bin" / name):
        if path.exists():
            return path.read_bytes()
    archive = folder / "cifar-10-binary.tar.gz"
    try:
        with tarfile.open(archive) as tar:
            member = tar.extractfile(f"cifar-10-batches-bin/{name}")
            if member is None:
                raise KeyError(name)
            return member.read()
    except FileNotFoundError:
        raise InputError(
            f"data 'cifar10': expected {name} or {archive.name} in {folder}, got neither"
        ) from None
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise InputError(
            f"data 'cifar10': the file {archive} is damaged ({error}); fetch it again"
        ) from None
