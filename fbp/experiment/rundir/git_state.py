"""The state of a git repository, read without executing anything that the repository configures."""

import os
import subprocess
from pathlib import Path

from fbp.experiment.rundir.environment import UNKNOWN
from fbp.experiment.rundir.redact import redact

_SECONDS = 10.0
_SAFE_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.pager": "cat",
    "diff.external": "",
    "diff.ignoreSubmodules": "dirty",
    "protocol.allow": "never",
}
_EXECUTED = ("clean", "smudge", "process")  # settings of a filter
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "HEAD")


def read(folder: Path) -> dict[str, str]:
    """Return the state of the git repository that a folder is in; empty outside of one.

    Hooks, file monitors, filters and programs for differences are not executed. What git cannot
    say within ten seconds is "unknown".

    Args:
        folder: where the user stands, or where the user's own file lies.

    Returns:
        `remote`, `commit`, `branch`, `dirty` (whether files differ from the commit: true, false or
        unknown), and `diff` if they do.
    """
    git = _Git(folder)
    commit = git.output("rev-parse", "HEAD")
    if commit is None:
        return {}
    status = git.output("status", "--porcelain", "--ignore-submodules=dirty")
    facts = {
        "remote": redact((git.output("remote", "get-url", "origin") or "").strip()),
        "commit": commit.strip(),
        "branch": (git.output("rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "dirty": UNKNOWN if status is None else str(bool(status.strip())).lower(),
    }
    if status and status.strip():
        diff = git.output(*_DIFF)
        if diff is None:
            diff = "# git did not say what the changes are\n"
        facts["diff"] = diff + "".join(
            f"# untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??")
        )
    return facts


class _Git:
    """Runs git in a folder, with the repository's own programs switched off."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._settings = dict(_SAFE_SETTINGS)
        names = self.output(
            "config",
            "--includes",
            "--show-scope",
            "--name-only",
            "-z",
            "--get-regexp",
            "^filter\\.",
        )
        words = (names or "").split("\0")
        for scope, name in zip(words[::2], words[1::2], strict=False):
            # a user's own filters, such as git-lfs, are in the global settings
            if scope not in ("global", "system"):
                driver = name.rpartition(".")[0]
                self._settings |= {f"{driver}.{key}": "" for key in _EXECUTED}
                self._settings[f"{driver}.required"] = "false"

    def output(self, *words: str) -> str | None:
        """Return what git prints; None if it fails or takes too long."""
        settings = {"GIT_CONFIG_COUNT": str(len(self._settings))}
        for i, (name, value) in enumerate(self._settings.items()):
            settings |= {f"GIT_CONFIG_KEY_{i}": name, f"GIT_CONFIG_VALUE_{i}": value}
        switches = {
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_NO_LAZY_FETCH": "1",
        }
        try:
            done = subprocess.run(
                ["git", "-C", str(self._folder), *words],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=True,
                env={**os.environ, **settings, **switches},
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace")
