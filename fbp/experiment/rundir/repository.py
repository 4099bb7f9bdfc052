"""The state of a git repository, read without running anything that the repository brings.

A repository's own configuration can name programs: hooks, a file system monitor, external diffs,
text converters, filters, transports. All of them are switched off. What git does not answer is
unknown, which is not the same as clean.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fbp.experiment.rundir.redact import redact
from fbp.experiment.rundir.secret_files import without_secrets

UNKNOWN = "unknown"
SECONDS = 10.0
"""How long git may take for one answer."""

# These come with the command, so they outrank every file of configuration.
_OFF = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.untrackedCache": "false",
    "core.pager": "cat",
    "protocol.allow": "never",  # a partial clone would fetch what it lacks
    "safe.bareRepository": "explicit",
    "status.submoduleSummary": "false",
    "diff.submodule": "short",
    "submodule.recurse": "false",
    "color.ui": "false",
}
_PROGRAMS = r"^(filter|diff)\..*\.(clean|smudge|process|command|textconv|required)$"
_NO_SUBMODULES = "--ignore-submodules=dirty"  # to look into one is to obey its configuration


class _Git(NamedTuple):
    """Git in a folder, with everything that executes code switched off.

    Attributes:
        folder: where it runs.
        settings: configuration that outranks that of the repository.
    """

    folder: Path
    settings: Mapping[str, str]

    def answer(self, *words: str) -> str:
        """Return what git prints; raise OSError or SubprocessError if it fails or is too slow."""
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        }
        variables |= {
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_PAGER": "cat",
            "LC_ALL": "C",
            "GIT_CONFIG_COUNT": str(len(self.settings)),
        }
        for index, (name, value) in enumerate(self.settings.items()):
            variables |= {f"GIT_CONFIG_KEY_{index}": name, f"GIT_CONFIG_VALUE_{index}": value}
        off = [word for name, value in _OFF.items() for word in ("-c", f"{name}={value}")]
        done = subprocess.run(
            ["git", "-C", str(self.folder), *off, *words],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            check=True,
            env=variables,
        )
        return done.stdout.decode(errors="replace")


def git(folder: Path, *, with_diff: bool = True) -> dict[str, str]:
    """Return the state of the git repository around a folder; empty outside of one.

    Args:
        folder: where the user stands, or where a file of the user's own lies; never a folder that a
            record names.
        with_diff: whether the uncommitted changes are read.

    Returns:
        `remote`, `commit`, `branch`, `dirty` ("true" or "false": whether files differ from the
        commit), and, if so, `diff` without secrets, or `no_diff`, why it is left out. What git does
        not answer is "unknown", and `problem` says why.
    """
    top = _top(folder)
    if top is None:
        return {}
    facts = dict.fromkeys(("remote", "commit", "branch", "dirty"), UNKNOWN)
    try:
        command = _command(folder)
        if Path(command.answer("rev-parse", "--show-toplevel").rstrip("\n")).resolve() != top:
            return facts | {"problem": f"the work tree of {top} is elsewhere"}
        facts["commit"] = command.answer("rev-parse", "HEAD").strip()
        facts["branch"] = command.answer("rev-parse", "--abbrev-ref", "HEAD").strip()
        facts["remote"] = redact(_remote(command))
        status = command.answer("status", "--porcelain", "--untracked-files=normal", _NO_SUBMODULES)
        if status.strip() and with_diff:
            facts["diff"] = _diff(command, status)
        elif status.strip():
            facts["no_diff"] = "left out, because [tracking] diff is false"
        facts["dirty"] = str(bool(status.strip())).lower()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        facts["problem"] = _reason(error)
    return facts


def _top(folder: Path) -> Path | None:
    """Return the nearest folder upwards that has a ``.git``; None if there is none."""
    try:
        folder = folder.resolve()
        return next((path for path in (folder, *folder.parents) if (path / ".git").exists()), None)
    except (OSError, RuntimeError):
        return None


def _command(folder: Path) -> _Git:
    """Return git with the programs of the repository's own configuration switched off, too."""
    command = _Git(folder, _OFF)
    settings = dict(_OFF)
    for scope in ("--local", "--worktree"):
        try:
            listed = command.answer(
                "config", scope, "--includes", "--null", "--name-only", "--get-regexp", _PROGRAMS
            )
        except subprocess.CalledProcessError as error:  # 1: there are none
            if error.returncode != 1 and scope == "--local":
                raise
            continue
        for name in filter(None, listed.split("\0")):
            settings[name] = "false" if name.endswith(".required") else ""
    return _Git(folder, settings)


def _remote(command: _Git) -> str:
    try:
        return command.answer("config", "--get", "remote.origin.url").strip()
    except subprocess.CalledProcessError:
        return ""


def _diff(command: _Git, status: str) -> str:
    """Return the uncommitted changes without secrets, and the names of files unknown to git."""
    form = ("--src-prefix=a/", "--dst-prefix=b/", "--find-renames", "--no-color")
    diff = command.answer("diff", "--no-ext-diff", "--no-textconv", *form, _NO_SUBMODULES, "HEAD")
    untracked = (line[3:] for line in status.splitlines() if line.startswith("??"))
    return without_secrets(diff) + "".join(f"# untracked: {name}\n" for name in untracked)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"git took longer than {SECONDS:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return f"git failed: {lines[0] if lines else f'exit status {error.returncode}'}"
    return f"git cannot be run: {error}"
