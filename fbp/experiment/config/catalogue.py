"""What can be named in a configuration: one dictionary per kind, from names to constructors."""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from fbp import datasets, initializers, layers, losses, models, optimizers, schedules
from fbp.errors import InputError
from fbp.layer import Loss

Constructor = Callable[..., Any]


def _named(module: Any, names: str) -> dict[str, Constructor]:
    return {name: getattr(module, name) for name in names.split()}


CATALOGUE: Mapping[str, Mapping[str, Constructor | Loss]] = {
    "data": _named(
        datasets,
        "digits iris wine breast_cancer diabetes mnist fashion_mnist cifar10 file "
        "xor spirals moons circles linear sine text adding_problem copy_memory sequential_digits",
    ),
    "model": _named(models, "mlp lenet5 cnn resnet inception autoencoder rnn gru lstm gpt vit"),
    "activation": _named(
        layers,
        "identity sigmoid tanh relu leaky_relu elu selu softplus silu gelu softmax log_softmax",
    ),
    "initializer": _named(
        initializers,
        "small_normal scaled_normal glorot_uniform glorot_normal he_uniform he_normal lecun_uniform lecun_normal "
        "orthogonal zeros ones constant",
    ),
    "loss": _named(
        losses,
        "mean_squared_error quadratic mean_absolute_error huber log_cosh softmax_cross_entropy sigmoid_cross_entropy "
        "cross_entropy binary_cross_entropy hinge multiclass_hinge kl_divergence poisson",
    ),
    "optimizer": _named(
        optimizers,
        "sgd momentum nesterov adagrad adadelta rmsprop adam amsgrad nadam adamw lion lamb",
    ),
    "schedule": _named(
        schedules,
        "constant step_decay piecewise exponential polynomial inverse_square_root cosine cosine_restarts one_cycle",
    ),
}

LOSS_SUMMARIES = {
    "mean_squared_error": "mean of (a - y)^2 over an example's outputs, no factor 1/2",
    "quadratic": "the textbook's 1/2 sum of (a - y)^2; delta = a - y",
    "mean_absolute_error": "mean of |a - y| over an example's outputs",
    "log_cosh": "mean of log cosh(a - y): quadratic near 0, linear far out",
    "softmax_cross_entropy": "on logits, with labels or distributions; delta = softmax(z) - y",
    "sigmoid_cross_entropy": "binary, on logits, summed over outputs; delta = sigmoid(z) - y",
    "cross_entropy": "on probabilities (after softmax); delta = -y/a",
    "binary_cross_entropy": "on probabilities (after sigmoid), summed over outputs",
    "hinge": "sum of max(0, 1 - y z) with targets -1 and +1",
    "multiclass_hinge": "sum over wrong classes of max(0, 1 + z_k - z_y)",
    "kl_divergence": "sum of y log(y / softmax(z)) on logits; delta = softmax(z) - y",
    "poisson": "sum of exp(z) - y z for counts y and log-rates z",
}


def lookup(kind: str, name: str) -> Constructor | Loss:
    """The constructor of that name; for a model also ``package.module:function``.

    Raises:
        InputError: where nothing has that name.
    """
    if kind == "model" and ":" in name:
        return _import(name)
    if name not in CATALOGUE[kind]:
        raise InputError(f"unknown {kind} {name!r}; {did_you_mean(name, CATALOGUE[kind])}")
    return CATALOGUE[kind][name]


def _import(name: str) -> Constructor:
    module_name, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function)):
        raise InputError(f"model {name!r}: expected package.module:function")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(f"model {name!r}: expected a module with a model, got one of Python's own")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(
            0, str(Path.cwd())
        )  # a command does not look into the folder it is called from, python does
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise InputError(f"model {name!r} cannot be imported: {error}") from None
    if not hasattr(module, function):
        raise InputError(f"model {name!r}: the module {module_name} has no {function!r}")
    found = getattr(module, function)
    if not callable(found):
        raise InputError(f"model {name!r} is not a function")
    return found


def require_trusted_module(name: str, code: Path | None = None) -> None:
    """See that a model's name in a record, which anybody may have written, means something that the user trusts.

    Args:
        name: the model's; one of the catalogue's is always good.
        code: a file (or package) that the user gave for it.

    Raises:
        InputError: where the module is neither installed, nor imported already, nor that file.
    """
    top = name.partition(":")[0].partition(".")[0]
    if ":" not in name or top in sys.modules or (code is not None and code.stem == top):
        return
    here = Path.cwd().resolve()
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() != here]
    others = [
        finder
        for finder in sys.meta_path
        if finder is not PathFinder and hasattr(finder, "find_spec")
    ]
    if not PathFinder.find_spec(top, elsewhere) and not any(
        finder.find_spec(top, None) for finder in others
    ):
        raise InputError(
            f"model {name!r}: the record names code that is not installed; if you trust it, install or import it, or give "
            f"its file: --code {top}.py"
        )


def did_you_mean(wrong: str, valid: Any) -> str:
    """``did you mean 'x'?`` with the nearest valid names, or all of them where none is near."""
    import difflib

    near = difflib.get_close_matches(wrong, list(valid), n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    return f"expected one of {', '.join(valid)}"


def summary(kind: str, name: str) -> str:
    """What it is, in one line: its docstring's first, without the word Return."""
    if name in LOSS_SUMMARIES and kind == "loss":
        return LOSS_SUMMARIES[name]
    line = (CATALOGUE[kind][name].__doc__ or "").strip().split("\n")[0].removeprefix("Return ")
    return line[:1].upper() + line[1:]
