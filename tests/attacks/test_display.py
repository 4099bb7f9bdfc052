"""Texts from anybody are shown as they are and as nothing else; secrets are not shown at all."""

import ast
import csv
import io
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from rich.console import Console

import fbp
from fbp import _diagram, _neutral
from fbp.errors import InputError, first_line
from fbp.experiment.commands import compare, progress, tables
from fbp.experiment.figures import classification, curves, draw, images, model_drawing, norms
from fbp.experiment.rundir import environment, history, journal, layout, repository, tags
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.series import Series, read_series
from fbp.experiment.tracking.run_reader import RecordedRun
from tests.attacks.hostile import TEXTS, unseen
from tests.projects import said

hostile = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def hostile_run(root: Path, text: str, seed: int, name: str = "") -> Path:
    """Write the folder of a run, every text of which is hostile."""
    folder = layout.new_run_folder(root, "hostile")
    writer = Journal(folder)
    # a seed that differs, so that runs are compared; names are unique by their folder
    writer.start(
        label=name or text,
        experiment=text,
        params={"seed": str(seed), f"model_{text}": text, "data_name": text, "name": text},
        tags={tags.MESSAGE: text, tags.SOURCE_NAME: text, f"fbp.{text}": text, tags.SEED: "1"},
        inputs=[{"name": text, "digest": text}],
        layers={"0": text},
    )
    values = {"test_loss": 0.5 + seed, f"test_{text}": 1.0, "train_loss": 1.0}
    for step in (1, 2, 3):
        writer.metrics(step, values | {"delta_norm/0": 1.0, "gradient_norm/0/w": 1.0})
    writer.tags({tags.NONFINITE: text})
    writer.end("FINISHED", text)
    writer.close()
    return folder


@pytest.fixture
def hostile_project(project):
    """Return a function that makes a project of two runs with a text everywhere."""

    def make(text):
        return [hostile_run(project / "mlruns", text, seed).name for seed in (1, 2)]

    return make


# --- the terminal -----------------------------------------------------------------------------


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_every_command_shows_texts_and_obeys_none(hostile_project, text):
    first, _second = hostile_project(text)
    for words in (
        ["runs"],
        ["show", first],
        ["show", text],
        ["resume", text],
        [text],
        ["list", text],
    ):
        output = said(*words, status=None)
        assert not unseen(output)
        assert "fbp: identical to the bit" not in output.splitlines()


@pytest.mark.promise("neutral-everywhere")
def test_a_comparison_of_all_hostile_runs_is_shown_and_written(project):
    names = [
        hostile_run(project / "mlruns", text, seed).name for seed, text in enumerate(TEXTS.values())
    ]
    output = said("compare", *names, "--output", "report", status=0)
    assert not unseen(output)
    report = (project / "report" / "report.md").read_text()
    assert not unseen(report)
    assert {path.name for path in (project / "report").iterdir()} == {
        "report.md",
        "learning_curves.png",
        "delta_norms.png",
    }


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_table_shows_texts_and_no_markup(text):
    rows = tables.Rows(text, ["", text], [["a", text]])
    console = Console(file=io.StringIO(), width=100_000, force_terminal=True, color_system=None)
    console.print(rows.rich())
    output = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # styles of the header
    assert not unseen(output)
    assert output.count(_neutral.line(text).rstrip()) >= 2


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_progress_shows_texts_and_obeys_none(capsys, text):
    bar = progress.Bar(text)
    bar.begin(10, 1)
    bar.advance(10, 1, {"validation_loss": 1.0, text: 2.0})
    bar.note(text)
    bar.close()
    terminal = progress.Bar(text)
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=200)
    terminal.begin(10, 1)
    terminal.advance(5, 1, {"loss": 1.0})
    terminal.note(text)
    terminal.close()
    Console(file=sys.stdout).print(
        progress.results_table(
            {text: {"test_loss": 1.0, f"test_{text}": 1.0}, "b": {"test_loss": 1}}
        )
    )
    captured = capsys.readouterr()
    assert not unseen(captured.out + captured.err)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.console.file.getvalue())
    assert not unseen(shown, "\n\r")


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_an_error_quotes_texts_and_obeys_none(text):
    for error in (
        InputError(f"run {text}: no"),
        fbp.errors.ArgumentError(text, text, text),
        fbp.errors.ShapeError(text, (text,)),
    ):
        assert not unseen(str(error), "\n\t")
    assert not unseen(first_line(RuntimeError(text)), "")


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_model_of_hostile_layers_is_summarized(text):
    layer = fbp.layers.relu()._replace(name=text)
    summary = fbp.summarize(fbp.chain(layer, fbp.layers.dense(2)), (3,))
    assert not unseen(str(summary))


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_generated_text_prints_no_control_characters(monkeypatch, text):
    from fbp.experiment.commands import generate, load

    monkeypatch.setattr(load, "load", lambda *_, **__: None)
    monkeypatch.setattr(generate, "generate", lambda *_, **__: f"a\tb\r\nc{text}")
    output = said("generate", "run", status=0)
    assert not unseen(output, "\n\t\u200c\u200d")
    assert output.startswith("a\tb\nc")


@pytest.mark.promise("neutral-everywhere")
def test_the_commands_print_in_one_way_only():
    printing = []
    for path in sorted(Path(fbp.__file__).parent.glob("cli/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print", "click.echo", "sys.stdout.write", "sys.stderr.write", "rich.print",
            ):  # fmt: skip
                printing.append(f"{path.name}: {ast.unparse(node)}")
    assert printing == [
        "base.py: click.echo(_neutral.line(line), err=err)",
        "base.py: click.echo(_neutral.text(value), err=err)",
        "models.py: click.echo(_neutral.generated(prompt + written))",
    ]


@pytest.mark.promise("neutral-everywhere")
def test_a_terminal_that_knows_few_letters_gets_escapes(project):
    hostile_run(project / "mlruns", "漢 \U0001f600", 1)
    done = subprocess.run(
        [sys.executable, "-m", "fbp", "runs"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u6f22" in done.stdout


# --- files ------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Collects the tags of a page, and the texts of its cells."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.cells, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add((tag, tuple(attrs)))
        self.text = ""

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th", "h2"):
            self.cells.append(self.text)


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_markdown_shows_texts_and_is_only_a_table(text):
    rows = tables.Rows(f"a {text}", ["x", f"b{text}"], [["y", f"{text}."], ["z", f".{text}"]])
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page = _Page(renderer.render(rows.markdown()))
    assert {tag for tag, _ in page.tags} == {"h2", "table", "thead", "tbody", "tr", "th", "td"}
    line = _neutral.line(text)
    expected = [f"a {line}", "x", f"b{line}", "y", f"{line}.", "z", f".{line}"]
    assert [cell.strip() for cell in page.cells] == [cell.strip() for cell in expected]
    for address in ("http://", "www.", "mailto:"):  # GitHub makes links of bare addresses, too
        assert address not in rows.markdown()


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_label_is_a_short_line_and_no_formula(text):
    label = _neutral.label(text)
    assert not unseen(label, "")
    figure = Figure()
    artist = figure.text(0, 0, label)
    shown, is_math = artist._preprocess_math(artist.get_text())
    assert not is_math
    assert len(shown) <= 61
    line = _neutral.line(text)
    assert shown.lstrip() == line.lstrip() or (len(line) > 30 and shown[:24].strip() in line)
    assert not label.startswith("_")


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_pictures_show_texts_and_are_drawn(tmp_path, text):
    points = Series(np.arange(3), np.arange(3) + 1.0, np.arange(3))
    series = {"train_loss": points, f"validation_{text}": points, "validation_loss": points}
    series |= {"delta_norm/0": points, "gradient_norm/0/w": points}
    maps = {text: norms.norm_map(series, {"0": text}), "b": None}
    box = _diagram.Box((text, text), text, text, 3, (f"{text} x 3",))
    diagram = _diagram.Diagram({0: box, 1: box}, [(0, 1)])
    with draw.drawing(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from|constrained_layout not")
        figures = {
            "curves": curves.compared_curves({text: series, "b": series}),
            "norms": norms.delta_norms(maps),
            "model": model_drawing.draw(diagram, text),
            "images": images.misclassified(np.zeros((1, 2, 2, 1)), [text], [text], np.ones(1)),
            "confusion": classification.confusion_matrix(np.eye(2), [text, "b"], of=2),
        }
        for name, figure in figures.items():
            figure.savefig(tmp_path / f"{name}.svg")
            assert max(figure.get_size_inches()) < 40
            for node in ElementTree.parse(tmp_path / f"{name}.svg").iter():
                assert "script" not in str(node.tag)
                assert not any("onerror" in key or key == "href" for key in node.attrib)
    legend = figures["curves"].legends[0]
    assert len(legend.get_texts()) == 2


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_table_of_a_spreadsheet_has_no_formula(tmp_path, text):
    folder = tmp_path / "run"
    layout.artifacts(folder).mkdir(parents=True)
    writer = Journal(folder)
    writer.start(label="a", experiment="b", params={}, tags={})
    writer.steps(1, {text: np.arange(3, dtype=np.float32), "loss": np.ones(3, np.float32)})
    writer.metrics(3, {f"{text}": 2.0, "=": 1.0})
    writer.close()
    encodable = text.encode("utf-8", "replace").decode() == text
    if not encodable:
        pytest.skip("no metric can have that name")
    history.write(folder)
    written = history.read(layout.artifacts(folder))
    assert set(written) == set(read_series(folder))
    for path in layout.history(layout.artifacts(folder)).glob("*.csv"):
        with open(path, newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
        assert not [cell for cell in cells if re.match(r"-[^\d]", cell)]


# --- fifty runs -------------------------------------------------------------------------------


def recorded(i: int, count: int = 8) -> RecordedRun:
    """Return a run of a sweep over many settings."""
    params = {f"model_setting_{k}": str((i * (k + 3)) % 7 / 10) for k in range(count)}
    metrics = {"test_accuracy": 0.9 + i / 1000, "test_loss": 0.1, "validation_loss": 1 / (i + 1)}
    name = f"digits_mlp,hidden=_64,_64_,learning_rate={i / 1000}-{i:04x}"
    return RecordedRun(
        f"{i:032x}", name, "digits", "FINISHED", 0, 1, params | {"seed": str(i)}, {}, metrics
    )


@pytest.mark.promise("many-runs-readable")
@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("runs", [2, 3, 9, 50])
def test_a_comparison_of_many_runs_fits_the_terminal(width, runs):
    records = [recorded(i) for i in range(runs)]
    labels = compare._labels(records)
    for table in (compare._differences(records, labels), compare._final_metrics(records, labels)):
        fitted = table.fitted(width)
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(fitted.rich())
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        body = [line for line in lines if line.startswith("│")]
        assert len(body) == len(fitted.cells)  # one line a row
        shown = "\n".join(lines)
        if runs == 50:
            assert all(f"-{i:04x}" in shown for i in range(runs))  # each can be told apart
            assert len(fitted.columns) >= 2
        left_out = re.search(r": (\d+) of (\d+);", " ".join(shown.split()))
        every = len(table.cells)
        assert left_out is None or int(left_out[2]) == every
        assert left_out or len(fitted.columns) - 1 in (every, len(labels))


@pytest.mark.promise("many-runs-readable")
def test_a_report_of_many_runs_has_a_row_for_each():
    records = [recorded(i) for i in range(50)]
    table = compare._differences(records, compare._labels(records))
    lines = table.markdown().splitlines()
    rows = [line for line in lines if line.startswith("| digits_mlp")]
    assert len(rows) == 50
    assert lines[2].count("|") == len(table.cells) + 2


# --- secrets ----------------------------------------------------------------------------------

SECRET = "hunter2xyz"
WITH_SECRETS = {
    "login in an address": f"http://me:{SECRET}@host/path",
    "login without a user": f"http://:{SECRET}@host/path",
    "login of a database": f"postgresql+psycopg://me:{SECRET}@host:5432/db",
    "login with a slash": f"http://me:a/{SECRET}@host",
    "login with an at sign": f"http://me:a@{SECRET}@host",
    "login without a scheme": f"me:{SECRET}@host:/path",
    "token as a user": f"https://{SECRET}@github.com/a/b.git",
    "sig": f"https://x.blob.core.windows.net/a?sv=2020&sig={SECRET}&se=2030",
    "X-Amz-Signature": f"https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature={SECRET}",
    "X-Amz-Credential": f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}%2Fus&x=1",
    "X-Amz-Security-Token": f"https://b.s3.amazonaws.com/k?X-Amz-Security-Token={SECRET}",
    "X-Goog-Signature": f"https://storage.googleapis.com/k?X-Goog-Signature={SECRET}",
    "Signature": f"https://cdn/k?Expires=1&Signature={SECRET}&Key-Pair-Id=K",
    "AWSAccessKeyId": f"https://b/k?AWSAccessKeyId={SECRET}",
    "encoded name": f"https://b/k?X%2DAmz%2DSignature={SECRET}",
    "access_token": f"https://api/x?access_token={SECRET}",
    "api_key": f"https://api/x?a=1&api_key={SECRET}",
    "key": f"https://maps/x?key={SECRET}",
    "password": f"https://api/x?user=me&password={SECRET}",
    "fragment": f"https://app/cb#access_token={SECRET}&state=1",
    "semicolons": f"https://app/cb?a=1;token={SECRET}",
    "--password x": f"fbp run a --password {SECRET} b",
    "--password=x": f"fbp run a --password={SECRET} b",
    "--api-key x": f"train --api-key {SECRET}",
    "--db-password x": f"train --db-password {SECRET}",
    "-u user:password": f"curl -u me:{SECRET} http://host",
    "PASSWORD=x": f"PASSWORD={SECRET} fbp run a",
    "quoted": f"PASSWORD='{SECRET} and more' fbp run a",
    "AWS_SECRET_ACCESS_KEY": f"env AWS_SECRET_ACCESS_KEY={SECRET} fbp run",
    "--set password": f"fbp run a --set data.password={SECRET}",
    "--set table": f'fbp run a --set data={{name="x", token="{SECRET}"}}',
    "Authorization: Bearer": f"curl -H 'Authorization: Bearer {SECRET}' http://host",
    "Authorization: Basic": f"Authorization: Basic {SECRET}==",
    "Authorization of its own": f"authorization: {SECRET}",
    "bearer in a sentence": f"the server refused bearer {SECRET}1",
    "X-Api-Key": f"curl -H 'X-Api-Key: {SECRET}' http://host",
    "cookie": f"Cookie: session={SECRET}; a=b",
    "JSON": f'{{"user": "me", "clientSecret": "{SECRET}"}}',
    "YAML": f"user: me\npassword: {SECRET}\n",
    "INI": f"[db]\nuser = me\npasswd = {SECRET}\n",
    "connection string": f"Server=x;Uid=me;Pwd={SECRET};Encrypt=yes",
    "account key": f"AccountName=x;AccountKey={SECRET}==;EndpointSuffix=y",
    "in an error": f"401 for url: http://host/?token={SECRET} (refused)",
    "in Python's repr": f"ConnectionError('http://me:{SECRET}@host', password='{SECRET}')",
}
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


# --- uncommitted changes ----------------------------------------------------------------------

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
