"""From TOML text, or a dictionary, to a checked Config and back; touches no run and no array."""
