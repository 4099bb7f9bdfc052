"""The protocol of an optimizer: what ``init`` and ``update`` take, checked in one place.

Optax's protocol is spoken in both directions. ``update(grads, state)`` works if the rule needs no
parameters, further keyword arguments reach the transforms that take them, and a transform of Optax
may stand in a :func:`~fbp.optimizers.chain`.

States are at least float32, and so is what a rule computes; the updates come in the dtypes of the
gradients.
"""

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fbp.errors import ArgumentError
from fbp.layer import Grads, Optimizer, Params
from fbp.optimizers.norms import widen

_ORDER = "the order is update(grads, state, params)"
_SHOWN = 80  # characters of a value in a message


def transform(
    name: str,
    init: Callable[[Params], Any],
    update: Callable[[Grads, Any, Params], tuple[Grads, Any]],
    *,
    state: type[Any],
    needs_params: bool = False,
) -> Optimizer:
    """Return an optimizer that checks its arguments and computes in at least float32.

    Args:
        name: the name of the rule in messages.
        init: ``params -> state``.
        update: ``(grads, state, params) -> (updates, state)``, for gradients of at least float32.
        state: the type of the state.
        needs_params: whether ``update`` reads the parameters.
    """

    def checked_update(
        grads: Grads, old_state: Any, params: Params | None = None, **further: Any
    ) -> tuple[Grads, Any]:
        check_gradients(name, grads, params)
        if not isinstance(old_state, state) and (state._fields or old_state != ()):
            raise ArgumentError(
                name,
                "state",
                f"expected {state.__name__}, as init(params) returns it, got "
                f"{type(old_state).__name__}; {_ORDER}",
            )
        if params is None and needs_params and jax.tree.leaves(grads):
            raise ArgumentError(
                name, "params", "this rule needs the parameters: call update(grads, state, params)"
            )
        updates, new_state = update(jax.tree.map(widen, grads), old_state, params)
        new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, old_state)
        return narrow(updates, grads), new_state

    return Optimizer(init, checked_update)


def narrow(updates: Grads, grads: Grads) -> Grads:
    """Return updates in the dtypes of the gradients, if those are floating-point ones."""

    def to_dtype(update: Any, like: Any) -> Any:
        dtype = jnp.result_type(like)
        return jnp.asarray(update, dtype) if jnp.issubdtype(dtype, jnp.floating) else update

    return jax.tree.map(to_dtype, updates, grads)


def zeros_like(params: Params) -> Any:
    """Return a tree of zeros with the shapes of ``params``, in at least float32."""
    return jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params)


def call_update(
    optimizer: Optimizer, grads: Grads, state: Any, params: Params | None, further: dict[str, Any]
) -> tuple[Grads, Any]:
    """Return ``optimizer.update(grads, state, params)`` with the further arguments that it takes.

    Args:
        optimizer: of fbp, of Optax, or any pair of ``init`` and ``update``.
        grads: gradients of any dtypes.
        state: of the optimizer.
        params: the parameters, or None.
        further: keyword arguments such as ``value``; those that it does not take are left out.

    Raises:
        ArgumentError: a keyword argument that the optimizer needs is missing.
    """
    names, required = _keywords(optimizer.update)
    missing = sorted(required - set(further))
    if missing:
        name = getattr(optimizer.update, "__qualname__", "update").partition(".")[0]
        example = ", ".join(f"{key}=..." for key in missing)
        raise ArgumentError(
            name, ", ".join(missing), f"missing: call update(grads, state, params, {example})"
        )
    taken = {key: further[key] for key in further if names is None or key in names}
    return optimizer.update(grads, state, params, **taken)


def _keywords(update: Callable[..., Any]) -> tuple[set[str] | None, set[str]]:
    """Return the keyword arguments that an ``update`` takes (None: any), and those it needs."""
    try:
        parameters = list(inspect.signature(update).parameters.values())
    except (TypeError, ValueError):
        return set(), set()
    keywords = [p for p in parameters[3:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = {p.name for p in keywords if p.default is p.empty}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None if takes_any else {p.name for p in keywords}, required


def require_optimizer(function: str, argument: str, optimizer: Any) -> None:
    """Raise ArgumentError unless a value has ``init`` and ``update``.

    Args:
        function: the function that was called.
        argument: the argument that holds it.
        optimizer: what the caller passed.
    """
    functions = [getattr(optimizer, name, None) for name in ("init", "update")]
    if all(map(callable, functions)) and not isinstance(optimizer, type):
        return
    hint = "; call it" if callable(optimizer) else ""
    shown = _shown(getattr(optimizer, "__name__", optimizer))
    raise ArgumentError(function, argument, f"expected an optimizer, got {shown}{hint}")


def check_gradients(function: str, grads: Any, params: Any) -> None:
    """Raise ArgumentError unless gradients are arrays of real numbers, like the parameters if any.

    Args:
        function: the rule.
        grads: what the caller passed.
        params: the parameters, or None.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        dtype = getattr(leaf, "dtype", None)
        is_number = isinstance(leaf, numbers.Real) and not isinstance(leaf, bool)
        is_real = dtype is not None and (
            jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
        )
        if not (is_number or is_real):
            shown = f"an array of {dtype}" if dtype is not None else _shown(leaf)
            raise ArgumentError(
                function,
                "grads",
                f"expected arrays of real numbers, got {shown}{_place(path)}; {_ORDER}",
            )
    if params is not None:
        check_same_tree(function, "grads", grads, "the parameters", params)


def check_same_tree(function: str, argument: str, tree: Any, name: str, reference: Any) -> None:
    """Raise ArgumentError unless two trees have one structure and the same shapes.

    Args:
        function: the function that was called.
        argument: the argument that holds the tree.
        tree: a tree of arrays.
        name: what the other tree is.
        reference: the other tree.
    """
    structures = [jax.tree.structure(each) for each in (tree, reference)]
    if len(set(structures)) > 1:
        texts = [str(each).removeprefix("PyTreeDef(").removesuffix(")") for each in structures]
        got, expected = (t if len(t) <= _SHOWN else f"{t[: _SHOWN - 3]}..." for t in texts)
        raise ArgumentError(
            function, argument, f"expected the structure of {name}, {expected}, got {got}; {_ORDER}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True)
    for (path, leaf), like in pairs:
        if jnp.shape(leaf) != jnp.shape(like):
            raise ArgumentError(
                function,
                argument,
                f"expected the shape of {name}, {jnp.shape(like)}, got {jnp.shape(leaf)}"
                f"{_place(path)}",
            )


def _place(path: Any) -> str:
    return f" at {jax.tree_util.keystr(path)}" if path else ""


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
