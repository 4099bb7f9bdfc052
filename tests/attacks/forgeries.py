"""What a forger can change of one recorded thing; each is a function of a record.

To add one: write a function, and register it with `@forgery` (in MLflow's store or its files) or
`@forgery_of_folder` (in the run's own folder).
"""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fbp.experiment.rundir.npz import read_arrays, write_arrays


class Record(NamedTuple):
    """A run in a project: its id, its folder, and MLflow's copies of its files."""

    project: Path
    run_id: str
    folder: Path
    artifacts: Path
    model: Path | None  # the logged model, which MLflow serves

    def sql(self, statement: str, *values: object) -> None:
        """Change rows of MLflow's database; raise NotHere if there are none of that kind."""
        path = self.project / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as database, database:
            changed = database.execute(statement, (*values, self.run_id)[: statement.count("?")])
            if changed.rowcount <= 0:
                raise NotHere


FORGERIES: dict[str, Callable[[Record], None]] = {}
"""Each changes one thing that MLflow shows."""
FORGERIES_OF_FOLDER: dict[str, Callable[[Record], None]] = {}
"""Each changes one thing in the run's folder."""
ONLY_OF_FINISHED = set()


class NotHere(Exception):
    """This record has nothing of the kind."""


def forgery(function):
    FORGERIES[function.__name__] = function
    return function


def forgery_of_folder(function):
    FORGERIES_OF_FOLDER[function.__name__] = function
    return function


def existing(path: Path) -> Path:
    if not path.exists():
        raise NotHere
    return path


# --- what MLflow's database has ---------------------------------------------------------------

TAGS = [
    "fbp.version",
    "fbp.seed",
    "fbp.python",
    "fbp.jax",
    "fbp.jaxlib",
    "fbp.device",
    "fbp.device_kind",
    "fbp.device_count",
    "fbp.command",
    "fbp.backend_check",
    "fbp.data_fingerprint",
    "fbp.folder",
    "fbp.params_digest",
    "fbp.metrics_digest",
    "fbp.manifest",
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.type",
    "fbp.message",
]
PARAMS = [
    "optimizer_learning_rate",
    "seed",
    "data_name",
    "model_hidden",
    "training_epochs",
    "loss_name",
]


def _tag(name, change):
    def forge(record):
        path = record.project / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            rows = database.execute(
                "select 1 from tags where key = ? and run_uuid = ?", (name, record.run_id)
            )
            if not rows.fetchall():
                raise NotHere
        if change == "changed":
            record.sql("update tags set value = value || '0' where key = ? and run_uuid = ?", name)
        else:
            record.sql("delete from tags where key = ? and run_uuid = ?", name)

    FORGERIES[f"tag {name} {change}"] = forge


def _param(name, change):
    def forge(record):
        if change == "changed":
            record.sql("update params set value = '7' where key = ? and run_uuid = ?", name)
        else:
            record.sql("delete from params where key = ? and run_uuid = ?", name)

    FORGERIES[f"param {name} {change}"] = forge


for _name in TAGS:
    for _change in ("changed", "deleted"):
        _tag(_name, _change)
for _name in PARAMS:
    for _change in ("changed", "deleted"):
        _param(_name, _change)


@forgery
def tag_of_fbp_added(record):
    record.sql(
        "insert into tags (key, value, run_uuid) values ('fbp.reproduction', 'identical', ?)"
    )


@forgery
def param_added(record):
    record.sql("insert into params (key, value, run_uuid) values ('optimizer_beta3', '1', ?)")


def _status(status):
    def forge(record):
        path = record.project / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            query = "select status from runs where run_uuid = ?"
            if database.execute(query, (record.run_id,)).fetchone() == (status,):
                raise NotHere
        record.sql("update runs set status = ? where run_uuid = ?", status)

    FORGERIES[f"status {status}"] = forge


for _name in ("FINISHED", "FAILED", "KILLED", "RUNNING"):
    _status(_name)


@forgery
def start_time(record):
    record.sql("update runs set start_time = start_time - 1000 where run_uuid = ?")


@forgery
def end_time(record):
    record.sql("update runs set end_time = end_time + 1 where run_uuid = ?")


@forgery
def value_of_a_point(record):
    record.sql(
        "update metrics set value = value * 1.000001 where key = 'validation_loss' and step = "
        "(select min(step) from metrics where key = 'validation_loss') and run_uuid = ?"
    )


@forgery
def time_of_a_point(record):
    record.sql(
        "update metrics set timestamp = timestamp + 1 where key = 'train_loss' and step = "
        "(select min(step) from metrics where key = 'train_loss') and run_uuid = ?"
    )


@forgery
def step_of_a_point(record):
    record.sql(
        "update metrics set step = step + 100000 where key = 'train_loss' and step = "
        "(select min(step) from metrics where key = 'train_loss') and run_uuid = ?"
    )


@forgery
def point_deleted(record):
    record.sql(
        "delete from metrics where key = 'train_loss' and step = "
        "(select min(step) from metrics where key = 'train_loss') and run_uuid = ?"
    )


@forgery
def point_added(record):
    record.sql(
        "insert into metrics (key, value, timestamp, step, is_nan, run_uuid) "
        "select key, 0.0, 1, 77777, 0, run_uuid from latest_metrics "
        "where key not like 'system/%' and run_uuid = ? limit 1"
    )


@forgery
def last_value_in_lists(record):
    record.sql(
        "update latest_metrics set value = 0.999 where key = 'validation_accuracy' and run_uuid = ?"
    )


@forgery
def metric_gone_from_lists(record):
    record.sql("delete from latest_metrics where key = 'validation_loss' and run_uuid = ?")


@forgery
def metric_added(record):
    record.sql(
        "insert into latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
        "values ('f1', 1.0, 1, 1, 0, ?)"
    )


@forgery
def system_metric(record):
    record.sql(
        "update metrics set value = value + 1 where key = 'system/system_memory_usage_megabytes' "
        "and step = 0 and run_uuid = ?"
    )


def _dataset(column):
    def forge(record):
        record.sql(
            f"update datasets set {column} = replace({column}, substr({column}, 1, 3), 'abc') "
            "where dataset_uuid in (select source_id from inputs where destination_id = ?)"
        )

    FORGERIES[f"dataset {column}"] = forge


for _name in ("name", "digest", "dataset_schema", "dataset_profile", "dataset_source"):
    _dataset(_name)


@forgery
def dataset_context(record):
    record.sql(
        "update input_tags set value = 'training' where value = 'testing' and input_uuid in "
        "(select input_uuid from inputs where destination_id = ?)"
    )


@forgery
def dataset_removed(record):
    record.sql("delete from inputs where destination_id = ? and source_type = 'DATASET'")


# --- files ------------------------------------------------------------------------------------


def _change_bytes(path: Path) -> None:
    content = bytearray(existing(path).read_bytes())
    if not content:
        raise NotHere
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = [
    "config.toml",
    "environment.json",
    "git.diff",
    "summary.txt",
    "manifest.json",
    "model/params.npz",
    "model/config.toml",
    "model/model.json",
    "history/steps.csv",
    "history/metrics.csv",
    "history/checkpoints.json",
    "history/layers.json",
    "plots/loss.png",
    "plots/learning_curves.png",
]


def _file(place, name, change):
    def forge(record):
        path = existing(
            (record.artifacts if place == "mlflow" else record.folder / "artifacts") / name
        )
        if change == "changed":
            _change_bytes(path)
        else:
            path.unlink()

    table = FORGERIES if place == "mlflow" else FORGERIES_OF_FOLDER
    table[f"{name} {change}"] = forge


for _place in ("mlflow", "folder"):
    for _name in FILES:
        for _change in ("changed", "deleted"):
            _file(_place, _name, _change)


@forgery
def weights_zeroed(record):
    path = existing(record.artifacts / "model" / "params.npz")
    write_arrays(path, {name: array * 0 for name, array in read_arrays(path).items()})


@forgery
def class_names(record):
    path = existing(record.artifacts / "model" / "model.json")
    facts = json.loads(path.read_text())
    facts["classes"] = facts["classes"][::-1]
    path.write_text(json.dumps(facts))


@forgery
def picture_added(record):
    (record.artifacts / "plots").mkdir(exist_ok=True)
    (record.artifacts / "plots" / "better.png").write_bytes(b"\x89PNG")


@forgery
def last_byte_of_the_manifest(record):
    path = record.artifacts / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")


def _of_model(name, change):
    def forge(record):
        if record.model is None:
            raise NotHere
        path = existing(record.model / name)
        if change == "changed":
            _change_bytes(path)
        elif change == "deleted":
            path.unlink()

    FORGERIES[f"served {name} {change}"] = forge


for _name in [
    "MLmodel",
    "requirements.txt",
    "pyfunc_model.py",
    "artifacts/model/params.npz",
    "artifacts/model/config.toml",
    "artifacts/model/model.json",
    "code/fbp/layers/_dense.py",
]:
    for _change in ("changed", "deleted"):
        _of_model(_name, _change)


@forgery
def served_file_added(record):
    if record.model is None:
        raise NotHere
    (record.model / "code" / "sitecustomize.py").write_text("print('hello')")


@forgery
def model_of_another_run(record):
    if record.model is None:
        raise NotHere
    record.sql("update logged_models set source_run_id = 'x' where source_run_id = ?")


@forgery
def model_param(record):
    if record.model is None:
        raise NotHere
    record.sql(
        "update logged_model_params set param_value = '7' where param_key = 'model_hidden' and "
        "model_id in (select model_id from logged_models where source_run_id = ?)"
    )


@forgery
def model_metric(record):
    if record.model is None:
        raise NotHere
    record.sql("update logged_model_metrics set metric_value = 0.5 where run_id = ?")


# --- the run's own folder ---------------------------------------------------------------------


@forgery_of_folder
def journal_line_removed(record):
    path = record.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))


@forgery_of_folder
def journal_seal_removed(record):
    path = record.folder / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@forgery_of_folder
def journal_added_to(record):
    from fbp.experiment.rundir.journal import Journal

    journal = Journal(record.folder)
    journal.metrics(10**6, {"test_accuracy": 1.0})
    journal.close()


@forgery_of_folder
def journal_with_a_part_of_a_line(record):
    with open(record.folder / "journal.jsonl", "ab") as file:
        file.write(b'{"kind": "me')


def _of_folder(name, change):
    def forge(record):
        matches = sorted(record.folder.glob(name))
        if not matches:
            raise NotHere
        if change == "changed":
            _change_bytes(matches[0])
        else:
            matches[0].unlink()

    FORGERIES_OF_FOLDER[f"{name} {change}"] = forge


for _name in [
    "journal.jsonl",
    "system.jsonl",
    "results.npz",
    "diagram.json",
    "destination",
    "sent.json",
    "checkpoints/step-*.npz",
]:
    for _change in ("changed", "deleted"):
        _of_folder(_name, _change)


@forgery_of_folder
def checkpoint_added(record):
    first = sorted((record.folder / "checkpoints").glob("step-*.npz"))[0]
    shutil.copy(first, first.with_name("step-000000000007.npz"))


@forgery_of_folder
def artifact_added(record):
    (record.folder / "artifacts" / "plots" / "better.png").write_bytes(b"\x89PNG")
