"""Sets what JAX reads when it starts: threads, GPU determinism, the cache of compiled programs."""

import importlib.util
import os
from typing import Any

import jax

from fbp._jaxlib import JAXLIB
from fbp.errors import InputError
from fbp.experiment.config.schema import TrainingSection
from fbp.experiment.rundir import environment
from fbp.experiment.runner import backend_check
from fbp.experiment.runner.backend_check import BackendCheck

_GPU_FLAGS = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")
_CACHE_BYTES = 2**30
# These versions print two lines of 2,000 characters for each program that they read from the cache,
# because they take two of LLVM's preferences for instruction sets (jax-ml/jax#38445). It is a false
# alarm: all programs in the folder were compiled for a processor with the same instruction sets.
_FALSE_ALARMS = ("0.10.0", "0.10.1")


def configure_jax(training: TrainingSection, record: dict[str, Any] | None = None) -> BackendCheck:
    """Set the environment variables and options that JAX reads when it starts; test the backend.

    Args:
        training: the configuration's section; `strict` asks for one thread, `deterministic` for
            deterministic programs on a GPU.
        record: the environment of a resumed run, as `environment.json` has it; its number of
            threads is set again unless the process has chosen one, and its flag against wrong
            fusions.

    Returns:
        What was decided about the backend; its ``note``, if not empty, is for the user.

    Raises:
        InputError: if JAX has started already, with another number of threads than `strict` needs;
            if the backend computes wrong results and no flag can mend it.
    """
    threads = environment.threads()
    if training.strict:
        os.environ[environment.THREADS] = "1"
    elif record and environment.THREADS not in os.environ:
        os.environ |= environment.threads_of(record)
    others = training.strict and environment.threads() != threads
    if others and backend_check.jax_has_started():
        raise InputError(
            f"training.strict: JAX has started already with {threads} threads; start the process "
            f"with {environment.THREADS}=1"
        )
    if training.deterministic and any(
        importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)
    ):
        flags = os.environ.get("XLA_FLAGS", "")
        missing = [flag for flag in _GPU_FLAGS if flag.partition("=")[0] not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    if record:
        backend_check.take_over_flags(record)
    _enable_compilation_cache()
    return backend_check.ensure_right_backend()


def _enable_compilation_cache() -> None:
    """Let JAX keep compiled programs in the user's cache folder.

    A cache that is set or switched off already stays as it is. JAX's own key leaves out the
    processor's instruction sets and the number of threads, by which XLA cuts loops; both are in the
    folder's name.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    folder = environment.cache_folder() / f"programs-{environment.machine_digest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a home that cannot be written: compile anew each time
        return
    if JAXLIB in _FALSE_ALARMS and settings.jax_logging_level in (None, "NOTSET"):
        jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # programs are kept however fast they compiled: which ones must not depend on the clock
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # the program that was not used for longest goes first
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
