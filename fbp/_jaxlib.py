"""Versions of jaxlib that are known to be wrong, and the flag that mends them."""

import os
import warnings
from collections.abc import Mapping

from jaxlib import version

JAXLIB: str = version.__version__

# From 0.10.2 on, XLA hands fusions with reductions to another library on CPUs, which had errors.
# fbp's requirements exclude these versions too; see the known answers in the runner.
WRONG_ON_CPU: Mapping[str, str] = {
    "0.10.2": "returns wrong sums in some programs (jax-ml/jax#39103)",
    "0.11.0": "crashes in some programs (jax-ml/jax#39257)",
}
WITHOUT_FUSIONS = "--xla_cpu_experimental_ynn_fusion_type="


def warn_if_wrong() -> None:
    """Warn if this version of jaxlib is known to be wrong and runs without the flag.

    It compares texts only: no metadata is read and no backend is started.
    """
    problem = WRONG_ON_CPU.get(JAXLIB)
    if problem and WITHOUT_FUSIONS not in os.environ.get("XLA_FLAGS", "").split():
        warnings.warn(
            f"jaxlib {JAXLIB} {problem} on CPUs; install another version of jax, or set "
            f"XLA_FLAGS={WITHOUT_FUSIONS} before JAX starts (fbp run does so by itself)",
            stacklevel=3,
        )
