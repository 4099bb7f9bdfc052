"""A configuration written: as TOML that reads back as itself, and as flat parameters."""

from typing import Any

import tomli_w

from fbp.experiment.config.schema import Config


def to_table(config: Config) -> dict[str, Any]:
    """Return the configuration as TOML's types, every default filled in.

    Values of None are left out, because TOML has none.
    """
    table: dict[str, Any] = config.model_dump(exclude_none=True, serialize_as_any=True)
    return {key: value for key, value in table.items() if key != "variant" or value}


def to_toml(config: Config) -> str:
    """Return the resolved configuration as text; to read it gives the same configuration."""
    return tomli_w.dumps(to_table(config))


def flat_params(config: Config) -> dict[str, str]:
    """Return every value under one name, such as ``optimizer_learning_rate``, for a tracker."""
    params: dict[str, str] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}_{key}" if prefix else key, inner)
        elif value != "":
            params[prefix] = str(value)

    table = config.model_dump(serialize_as_any=True)
    collect("", {key: value for key, value in table.items() if key != "variant"})
    return params
