"""A configuration written: as TOML that reads back as itself, and as flat parameters."""

from typing import Any

import tomli_w

from fbp.experiment.config.schema import Config


def to_table(config: Config) -> dict[str, Any]:
    """The configuration as TOML's types, every default filled in; what is not set is left out."""
    table: dict[str, Any] = config.model_dump(exclude_none=True, serialize_as_any=True)
    return (
        table
        if table["variant"]
        else {key: value for key, value in table.items() if key != "variant"}
    )


def to_toml(config: Config) -> str:
    """The resolved configuration; reading it gives the same configuration again."""
    return tomli_w.dumps(to_table(config))


def flat_params(config: Config) -> dict[str, str]:
    """Every value under one name, ``optimizer_learning_rate``: MLflow's parameters."""
    result: dict[str, str] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}_{key}" if prefix else key, inner)
        elif value != "":
            result[prefix] = str(value)

    collect(
        "", {k: v for k, v in config.model_dump(serialize_as_any=True).items() if k != "variant"}
    )
    return result
