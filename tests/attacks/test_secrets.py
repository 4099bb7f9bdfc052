"""Secrets in commands, addresses, configurations and errors are neither shown nor recorded."""

import re

import pytest

from fbp.errors import InputError
from fbp.experiment.rundir import environment, journal, layout
from fbp.experiment.rundir.journal import Journal
from tests.attacks.secret_texts import SECRET, WITH_SECRETS
from tests.projects import said

SHAPES = {
    "GitHub": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "GitHub, fine": "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "GitLab": "glpat-ABCdef123456ghijkl78",
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "OpenAI": "sk-abcdEFGH1234ijklMNOP5678",
    "OpenAI, project": "sk-proj-abcdEFGH1234_ijkl-MNOP5678",
    "Anthropic": "sk-ant-api03-abcdefgh1234",
    "Slack": "xoxb-123456789012-abcdefGHIJKL",
    "Slack's webhook": "https://hooks.slack.com/services/T0001/B0002/abcDEF123ghi",
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "Hugging Face": "hf_abcdefghijklmnopqrstuvwx",
    "Databricks": "dapi0123456789abcdef0123456789abcdef",
    "npm": "npm_abcdefghijklmnopqrstuvwxyz0123456789",
    "PyPI": "pypi-AgEIcHlwaS5vcmcCJDAw",
    "Google": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "Stripe": "sk_live_abcdefghijkl123456",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n"
    "-----END OPENSSH PRIVATE KEY-----",
}  # fmt: skip
PLAIN = {
    "seed": "fbp run digits_mlp --set seed=3 --set training.epochs=100",
    "tokens": "fbp generate RUN --tokens 500 --prompt a",
    "counts": "token_count=7 max_tokens=512 key_size=64 keys=3 passes=2",
    "a file": "fbp sign RUN --key ~/.ssh/id_ed25519 --password-file /run/x",
    "an address": "http://host:5000/a@b?page=2&sort=-loss#top",
    "a path with an at sign": "sqlite:////home/me@work/mlruns/mlflow.db",
    "a mail address": "written by someone@host.example",
    "git's address": "git@github.com:someone/fbp.git",
    "an image": "image:tag1@sha256:0123456789abcdef",
    "a commit": "a623582f5a678f0123456789abcdef0123456789",
    "a digest": "sha256 " + "0123456789abcdef" * 4,
    "a loss": "loss: 0.25 accuracy=0.97 learning_rate=0.001",
    "a sentence": "the backward pass: expected a token, got a secret",
    "a switch": "use_auth=true --no-password --secret false",
    "jax": "JAX_ENABLE_X64=1 XLA_FLAGS=--xla_cpu_enable_fast_math=false",
    "a time": "12:30:45 on 2026-01-01",
}


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("text", WITH_SECRETS.values(), ids=WITH_SECRETS)
def test_a_secret_is_known_by_its_kind(text):
    from fbp.experiment.rundir.redact import redact

    assert SECRET not in redact(text)
    assert SECRET not in redact(f"before ({text}) after")
    assert redact(redact(text)) == redact(text)


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("around", ["{}", "a {} b", "x={}", "'{}'", "http://host/{}", "+{}\n"])
def test_a_secret_is_known_by_its_shape(secret, around):
    from fbp.experiment.rundir.redact import redact

    shown = redact(around.format(secret))
    assert secret[-12:] not in shown


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_what_is_no_secret_stays(text):
    from fbp.experiment.rundir.redact import redact, redact_command

    assert redact(text) == text
    assert redact_command(text.split(" ")) == text


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("text", WITH_SECRETS.values(), ids=WITH_SECRETS)
def test_no_secret_is_recorded(tmp_path, monkeypatch, capsys, text):
    words = ["fbp", "run", *re.findall(r"'[^']*'|\"[^\"]*\"|\S+", text)]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setenv("JAX_ADDRESS", text)
    folder = tmp_path / "run"
    layout.artifacts(folder).mkdir(parents=True)
    environment.write(layout.artifacts(folder), {})
    writer = Journal(folder)
    writer.start(
        label="a",
        experiment="b",
        params={"address": text},
        tags={**environment.run_tags({}), "note": text},
    )
    writer.tags({"more": text})
    writer.end("FAILED", f"ValueError: {text}")
    writer.close()
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET not in path.read_text(), path.name


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize(
    "name",
    ["password", "DB_PASSWORD", "api_key", "apiKey", "client-secret", "MLFLOW_TRACKING_TOKEN",
     "aws_secret_access_key", "x-amz-signature", "authToken", "session_id", "dbpassword", "auth"],
)  # fmt: skip
def test_a_value_is_secret_if_its_name_says_so(tmp_path, name):
    writer = Journal(tmp_path)
    writer.start(label="a", experiment="b", params={name: SECRET}, tags={name: SECRET})
    writer.close()
    start = journal.require_start(tmp_path)
    assert start.params[name] == start.tags[name] == "***"


@pytest.mark.promise("no-secrets")
def test_the_words_of_a_command_are_taken_as_they_are(monkeypatch):
    from fbp.experiment.rundir.redact import redact_command

    monkeypatch.setenv("MY_API_TOKEN", "value-of-a-variable")
    words = ["fbp", "--password", "two words", "--set", "data.url=value-of-a-variable", "-x", "3"]
    assert redact_command(words) == "fbp --password *** --set data.url=*** -x 3"


@pytest.mark.promise("no-secrets")
@pytest.mark.parametrize("text", WITH_SECRETS.values(), ids=WITH_SECRETS)
def test_no_error_shows_a_secret(project, monkeypatch, text):
    from fbp.experiment.tracking import readers

    def fails(*_, **__):
        raise InputError(f"the store does not answer: {text}")

    monkeypatch.setattr(readers, "open_runs", fails)
    assert SECRET not in said("show", "x", status=2)


@pytest.mark.promise("no-secrets")
def test_no_setting_of_fbp_looks_like_a_secret():
    from fbp._secrets import is_secret_name
    from fbp.experiment.config.catalogue import CATALOGUE, lookup
    from fbp.experiment.config.schema import settings

    names = {key for keys in settings().values() for key in keys}
    for kind, entries in CATALOGUE.items():
        for name in entries:
            function = lookup(kind, name)
            code = getattr(function, "__wrapped__", function)
            if hasattr(code, "__code__"):
                names |= set(code.__code__.co_varnames[: code.__code__.co_argcount])
    assert len(names) > 50
    assert not [name for name in names if is_secret_name(name)]
