"""Secrets in uncommitted changes are not recorded; the rest of the changes is."""

import subprocess
from pathlib import Path

import pytest

import fbp
from fbp.experiment.rundir import environment, journal, layout, repository, tags
from tests.attacks.hostile import unseen
from tests.attacks.secret_texts import SECRET, WITH_SECRETS

SECRET_FILES = [
    ".env", ".env.local", "prod.env", "a/.env", ".envrc", "server.pem", "tls/server.key",
    "id_rsa", "id_ed25519.pub", ".ssh/config", "deep/.aws/config", "credentials",
    "credentials.json",
    "my-credentials.json", ".netrc", "cert.p12", "cert.PFX", "kubeconfig", "kubeconfig.yaml",
    ".kube/config", "secrets.toml", ".streamlit/secrets.toml", "secret.yaml", "secrets/db.txt",
    ".npmrc", ".pypirc", ".pgpass", ".git-credentials", "service-account-1.json",
    "client_secret_1.json", "terraform.tfvars", "terraform.tfstate", ".htpasswd", "Vault-pass.txt",
    "keys.kdbx", ".docker/config.json", "passwords.txt", "api.token", ".databrickscfg",
    "mit leerzeichen/.env", "ümläut.key", 'quo"te.pem', "tab\tname.key",
]  # fmt: skip
PLAIN_FILES = ["model.py", "environment.py", "keyboard.txt", "tokenizer.py", "docs/secretary.md"]


def in_git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def checkout(tmp_path):
    """Return a git repository with one commit."""
    in_git(tmp_path, "init", "-q")
    (tmp_path / "model.py").write_text("x = 1\n")
    in_git(tmp_path, "add", ".")
    in_git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def write_file(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def changed_in(folder: Path, name: str, how: str) -> None:
    """Bring a file with a secret into the uncommitted changes."""
    if how in ("changed", "renamed", "removed"):
        write_file(folder, name, f"{SECRET}\n" * 9)
        in_git(folder, "add", "-f", ".")
        in_git(folder, "commit", "-qm", "second")
    if how == "changed":
        write_file(folder, name, f"{SECRET}\n" * 9 + "more\n")
    elif how == "renamed":
        in_git(folder, "mv", name, "plain.txt")
        (folder / "plain.txt").write_text(f"{SECRET}\n" * 9 + "more\n")
        in_git(folder, "add", "plain.txt")
    elif how == "removed":
        (folder / name).unlink()
    else:
        write_file(folder, name, f"{SECRET}\n")
        in_git(folder, "add", "-f", *(["-N"] if how == "intended" else []), name)


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("how", ["intended", "added", "changed", "renamed", "removed"])
def test_the_file_of_secrets_is_left_out_however_it_changed(checkout, how):
    changed_in(checkout, ".env", how)
    write_file(checkout, "model.py", "x = 2\n")
    diff = repository.git(checkout)["diff"]
    assert SECRET not in diff
    assert "# left out, because it is meant to be secret: .env" in diff
    assert "+x = 2" in diff


@pytest.mark.promise("no-secrets")
def test_files_that_are_meant_to_be_secret_are_left_out(checkout):
    for name in SECRET_FILES:
        write_file(checkout, name, f"{SECRET}\n")
    for name in PLAIN_FILES:
        write_file(checkout, name, "plain content\n")
    in_git(checkout, "add", "-f", "-N", ".")
    diff = repository.git(checkout)["diff"]
    assert SECRET not in diff
    assert diff.count("# left out") == len(SECRET_FILES)
    assert diff.count("+plain content") == len(PLAIN_FILES)
    assert not unseen(diff, "\n\t")


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("text", WITH_SECRETS.values(), ids=WITH_SECRETS)
def test_values_in_other_files_are_left_out(checkout, text):
    write_file(checkout, "notes.txt", f"first\n{text}\nlast\n")
    in_git(checkout, "add", ".")
    diff = repository.git(checkout)["diff"]
    assert SECRET not in diff
    assert "+first" in diff
    assert "+last" in diff


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize(
    ("line", "recorded_line"),
    [
        (f'password = "{SECRET}"', 'password = "***"'),
        (
            f"client = connect(token='{SECRET}', user='me')",
            "client = connect(token='***', user='me')",
        ),
        (f'headers = {{"Authorization": "Bearer {SECRET}"}}', None),
        (f'url = "http://me:{SECRET}@host"', 'url = "http://host"'),
        ("token = tokens[i]", "token = tokens[i]"),
        ("key, password = split(key), read()", "key, password = split(key), read()"),
        ("def f(token: str, secret=None):", "def f(token: str, secret=None):"),
        ("loss = signature(x) if auth else y", "loss = signature(x) if auth else y"),
    ],
)
def test_a_program_stays_readable(checkout, line, recorded_line):
    write_file(checkout, "model.py", f"{line}\n")
    diff = repository.git(checkout)["diff"]
    assert SECRET not in diff
    if recorded_line:
        assert f"+{recorded_line}\n" in diff


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize(
    "setting", ["diff.noprefix", "diff.mnemonicPrefix", "diff.renames=copies", "core.quotePath"]
)
def test_git_settings_do_not_bring_secrets_back(checkout, setting):
    name, _, value = setting.partition("=")
    in_git(checkout, "config", name, value or "true")
    changed_in(checkout, "ümläut.key", "renamed")
    assert SECRET not in repository.git(checkout)["diff"]


@pytest.mark.promise("no-secrets")
def test_the_uncommitted_changes_can_be_left_out(checkout, monkeypatch, unsent):
    in_git(unsent, "init", "-q")
    (unsent / "a.txt").write_text("a\n")
    in_git(unsent, "add", ".")
    in_git(unsent, "commit", "-qm", "first")
    (unsent / "a.txt").write_text("b\n")
    monkeypatch.setattr("sys.argv", [str(unsent / "script.py")])
    for diff in (True, False):
        with fbp.experiment.track({"a": 1}, diff=diff) as run:
            run.log(1, {"x": 1})
        path = layout.artifacts(run.folder) / layout.GIT_DIFF
        assert path.exists() == diff
        assert journal.read_tags(run.folder)[tags.GIT_DIRTY] == "true"
        unknown = environment.read(layout.artifacts(run.folder))["unknown"]
        assert (layout.GIT_DIFF in unknown) is not diff
