"""Attacks by git: it runs no program of a repository, and may fail to answer."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fbp.experiment.config import reading
from fbp.experiment.rundir import environment, layout, repository, tags
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from tests.projects import Silent, write_config


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words],
        cwd=folder, check=True, capture_output=True, timeout=30,
    )  # fmt: skip


@pytest.fixture
def trapped(project):
    """A git repository whose configuration names programs wherever git would run one."""
    folder = project / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file.txt").write_text("1\n")
    (folder / "other.txt").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    program = project / "program"
    program.write_text(f"#!/bin/sh\ntouch {project}/executed\ncat\n")
    program.chmod(0o755)
    (folder / ".gitattributes").write_text("*.txt filter=f diff=d\nother.txt filter=a=b\n")
    hooks = project / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(program, hooks / hook)
    for name, value in {
        "core.fsmonitor": program, "core.hooksPath": hooks, "core.pager": program,
        "diff.external": program, "diff.d.command": program, "diff.d.textconv": program,
        "filter.f.clean": program, "filter.f.smudge": program, "filter.f.process": program,
        "filter.f.required": "true", "filter.a=b.clean": program, "core.sshCommand": program,
        "core.editor": program, "gpg.program": program, "credential.helper": program,
        "alias.status": f"!{program}", "pager.diff": program, "pager.status": program,
        "status.submoduleSummary": "true", "diff.submodule": "log", "color.ui": "always",
    }.items():  # fmt: skip
        git(folder, "config", name, str(value))
    (folder / "included").write_text(f'[filter "f"]\n\tclean = {program}\n')
    git(folder, "config", "include.path", "../included")
    (folder / "file.txt").write_text("2\n")
    (folder / "other.txt").write_text("2\n")
    (project / "executed").unlink(missing_ok=True)
    yield folder
    assert not (project / "executed").exists()


@pytest.mark.promise("no-hooks")
def test_git_runs_no_program_of_a_repository(trapped):
    facts = repository.git(trapped)
    assert facts["dirty"] == "true"
    assert len(facts["commit"]) == 40
    assert "\n-1\n+2\n" in facts["diff"]


@pytest.mark.promise("no-hooks")
@pytest.mark.parametrize(
    "variable", ["GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_SSH_COMMAND", "GIT_EXEC_PATH", "GIT_DIR",
                 "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_PARAMETERS", "GIT_TRACE"],
)  # fmt: skip
def test_gits_variables_are_not_obeyed(trapped, monkeypatch, variable):
    values = {"GIT_CONFIG_PARAMETERS": f"'core.fsmonitor'='{trapped.parent}/program'"}
    monkeypatch.setenv(variable, values.get(variable, str(trapped.parent / "program")))
    assert repository.git(trapped)["dirty"] == "true"


@pytest.mark.promise("no-hooks")
def test_a_bare_repository_among_the_files_is_none(project):
    git(project, "init", "-q", "--bare", "inner")
    assert repository.git(project / "inner") == {}


@pytest.mark.promise("no-hooks")
def test_a_work_tree_elsewhere_is_not_read(trapped):
    (trapped.parent / "secret").mkdir()
    git(trapped, "config", "core.worktree", str(trapped.parent / "secret"))
    facts = repository.git(trapped)
    assert facts["dirty"] == "unknown"
    assert "elsewhere" in facts["problem"]


@pytest.mark.promise("no-hooks")
def test_no_tag_decides_where_git_runs(trapped, begun, monkeypatch):
    folders = []
    monkeypatch.setattr(repository, "git", lambda folder, **_: folders.append(folder) or {})
    config = reading.read(write_config(begun.parents[2], name="x"))
    for source in (trapped / "x.toml", Path("/"), Path(f"{trapped}/../x.toml")):
        folder = layout.new_run_folder(begun.parents[1], "x")
        run(config, RunIdentity(source, "x"), folder, Silent(), stop_at=1)
    assert set(folders) == {Path.cwd()}


SLOW_GIT = {
    "slow": ("#!/bin/sh\nsleep 30\n", "took longer"),
    "slow status": ("#!/bin/sh\ncase \"$*\" in *status*) sleep 30;; esac\nexec {git} \"$@\"\n",
                    "took longer"),
    "failing": ("#!/bin/sh\necho bad >&2\nexit 3\n", "git failed: bad"),
    "missing": ("", "git cannot be run"),
}  # fmt: skip


@pytest.mark.promise("unknown-is-told")
@pytest.mark.parametrize("kind", SLOW_GIT)
def test_a_git_that_does_not_answer_is_unknown_and_not_clean(trapped, monkeypatch, kind):
    text, problem = SLOW_GIT[kind]
    program = trapped.parent / "bin" / "git"
    program.parent.mkdir()
    program.write_text(text.replace("{git}", shutil.which("git")))
    program.chmod(0o755 if text else 0o644)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin" if text else str(program.parent))
    monkeypatch.setattr(repository, "SECONDS", 1.0)
    facts = repository.git(trapped)
    assert facts["dirty"] == "unknown"
    assert problem in facts["problem"]
    environment.write(trapped, facts)
    assert problem in json.loads((trapped / layout.ENVIRONMENT).read_text())["unknown"]["git"]
    assert environment.run_tags(facts)[tags.GIT_DIRTY] == "unknown"
