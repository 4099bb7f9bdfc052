"""Real servers for tests, each as a process of its own: MLflow's, and PostgreSQL beneath it."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """``mlflow server`` on 127.0.0.1, which can be killed and started again."""

    def __init__(self, folder: Path, store: str):
        self.folder, self.store, self.port = folder, store, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, seconds: float = 180) -> None:
        settings = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        words = [
            "--backend-store-uri",
            self.store,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        with open(self.folder / "server.log", "ab") as log:
            words += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | settings,
                cwd=self.folder,
            )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200:
                    return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str | None]:
    """A PostgreSQL server on a store of its own, as a URI; None if it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    there = shutil.which("initdb") or (str(found[-1]) if found else None)
    if there is None:
        yield None
        return
    tools, port = Path(os.path.realpath(there)).parent, free_port()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user and not any(entry.pw_name == user for entry in pwd.getpwall()):
        yield None
        return
    data = Path(tempfile.mkdtemp(prefix="fbp-postgresql-"))
    if user:
        shutil.chown(data, user)
    try:
        options = {
            "user": user,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "cwd": "/",
            "text": True,
        }
        words = [
            "--pgdata",
            str(data / "data"),
            "--username",
            "fbp",
            "--auth",
            "trust",
            "--no-sync",
        ]
        made = subprocess.run([tools / "initdb", *words], **options, check=False)
        assert made.returncode == 0, made.stdout
        server = subprocess.Popen(
            [
                tools / "postgres",
                "-D",
                str(data / "data"),
                "-p",
                str(port),
                "-h",
                "127.0.0.1",
                "-k",
                str(data),
            ],
            **options,
        )
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (data / f".s.PGSQL.{port}").exists():
                time.sleep(0.1)
            time.sleep(1)
            yield f"postgresql://fbp:a-secret-word@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=30)
    finally:
        shutil.rmtree(data, ignore_errors=True)
