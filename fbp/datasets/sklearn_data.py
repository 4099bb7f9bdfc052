"""The small real data sets that come with scikit-learn, so that they work offline."""

from typing import Any

from fbp._optional import require
from fbp.datasets.base import Dataset, classification, regression


def digits() -> Dataset:
    """Return 1,797 handwritten digits, 8 x 8 pixels in [0, 1], ten classes.

    Alpaydin and Kaynak (1998), *Optical recognition of handwritten digits*, UCI.
    """
    bunch = _load("digits")
    return classification("digits", bunch.images[..., None] / 16, bunch.target, range(10))


def iris() -> Dataset:
    """Return 150 iris flowers, 4 lengths in cm, three species. Fisher (1936)."""
    bunch = _load("iris")
    return classification("iris", bunch.data, bunch.target, bunch.target_names)


def wine() -> Dataset:
    """Return 178 wines, 13 chemical measurements, three cultivars.

    Aeberhard and Forina (1992), *Wine*, UCI.
    """
    bunch = _load("wine")
    return classification("wine", bunch.data, bunch.target, bunch.target_names)


def breast_cancer() -> Dataset:
    """Return 569 tumours, 30 measurements of cell nuclei, malignant or benign.

    Wolberg et al. (1995), *Breast cancer Wisconsin (diagnostic)*, UCI.
    """
    bunch = _load("breast_cancer")
    return classification("breast_cancer", bunch.data, bunch.target, bunch.target_names)


def diabetes() -> Dataset:
    """Return 442 patients, 10 measurements, the disease's progression after a year as a number.

    Efron et al. (2004), *Least angle regression*.
    """
    bunch = _load("diabetes")
    return regression("diabetes", bunch.data, bunch.target)


def _load(name: str) -> Any:
    require(f"fbp.datasets.{name}", "sklearn")
    import sklearn.datasets

    return getattr(sklearn.datasets, f"load_{name}")()
