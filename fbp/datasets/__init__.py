"""Data sets: functions that return a :class:`Dataset`, arrays with a fingerprint.

Importing this module reads and fetches nothing. The formulas, the sequence tasks and ``.npz`` files
need numpy alone; scikit-learn's data sets and tables need the extra ``run``.
"""

from fbp.datasets.base import Dataset as Dataset
from fbp.datasets.base import Examples as Examples
from fbp.datasets.base import as_autoencoding as as_autoencoding
from fbp.datasets.checks import check as check
from fbp.datasets.files import file as file
from fbp.datasets.images import cifar10 as cifar10
from fbp.datasets.images import fashion_mnist as fashion_mnist
from fbp.datasets.images import mnist as mnist
from fbp.datasets.sequences import adding_problem as adding_problem
from fbp.datasets.sequences import copy_memory as copy_memory
from fbp.datasets.sequences import sequential_digits as sequential_digits
from fbp.datasets.sequences import text as text
from fbp.datasets.sklearn_data import breast_cancer as breast_cancer
from fbp.datasets.sklearn_data import diabetes as diabetes
from fbp.datasets.sklearn_data import digits as digits
from fbp.datasets.sklearn_data import iris as iris
from fbp.datasets.sklearn_data import wine as wine
from fbp.datasets.splits import Splits as Splits
from fbp.datasets.splits import Standardization as Standardization
from fbp.datasets.splits import prepare as prepare
from fbp.datasets.synthetic import circles as circles
from fbp.datasets.synthetic import linear as linear
from fbp.datasets.synthetic import moons as moons
from fbp.datasets.synthetic import sine as sine
from fbp.datasets.synthetic import spirals as spirals
from fbp.datasets.synthetic import xor as xor
