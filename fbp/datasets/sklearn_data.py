"""The small real data sets that come with scikit-learn, so that they work offline."""

from fbp.datasets.base import Dataset, classification, regression


def digits() -> Dataset:
    """1,797 handwritten digits, 8 x 8 pixels in [0, 1], ten classes. Alpaydin and Kaynak (1998), UCI."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return classification("digits", bunch.images[..., None] / 16, bunch.target, range(10))


def iris() -> Dataset:
    """150 iris flowers, 4 lengths in cm, three species. Fisher (1936)."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    return classification("iris", bunch.data, bunch.target, bunch.target_names)


def wine() -> Dataset:
    """178 wines, 13 chemical measurements, three cultivars. Aeberhard and Forina (1992), UCI."""
    from sklearn.datasets import load_wine

    bunch = load_wine()
    return classification("wine", bunch.data, bunch.target, bunch.target_names)


def breast_cancer() -> Dataset:
    """569 tumours, 30 measurements of cell nuclei, malignant or benign. Wolberg et al. (1995), UCI."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return classification("breast_cancer", bunch.data, bunch.target, bunch.target_names)


def diabetes() -> Dataset:
    """442 patients, 10 measurements, the disease's progression after a year as a number. Efron et al. (2004)."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    return regression("diabetes", bunch.data, bunch.target)
