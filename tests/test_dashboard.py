"""The real MLflow dashboard, started as a user does, in a headless browser."""

import contextlib
import html
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from tests.projects import command, runs_of
from tests.servers import free_port


def browser():
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@pytest.mark.slow
@pytest.mark.skipif(
    browser() is None or shutil.which("chromedriver") is None,
    reason="no Chromium with its driver here",
)
def test_the_dashboards_compare_view_has_the_metrics_and_parameters(inside):
    parent, children = runs_of(inside)
    port = free_port()
    words = command("ui", "--port", port)
    with (
        subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as server,
        Browser() as chromium,
    ):
        try:
            ids = ",".join(f'"{run.info.run_id}"' for run in children)
            compare_view = (
                f'/#/compare-runs?runs=[{ids}]&experiments=["{parent.info.experiment_id}"]'
            )
            shown = chromium.page(
                f"http://127.0.0.1:{port}{compare_view}", ["best_validation_loss", "data_name"]
            )
            for run in children:
                assert run.info.run_name in shown
                assert f" {round(run.data.metrics['best_validation_loss'], 3):g} " in shown
            for key in (
                "best_step",
                "delta_norm/0",
                "checkpoint_every_seconds",
                "digits",
                "seed",
            ):  # of each table the top
                assert f" {key} " in shown
            runs_view = f"http://127.0.0.1:{port}/#/experiments/{parent.info.experiment_id}/runs"
            chromium.page(runs_view, [parent.info.run_name])
        finally:
            server.terminate()
            server.wait(timeout=30)


class Browser:
    """A headless Chromium, driven through chromedriver by the W3C WebDriver protocol."""

    def __enter__(self):
        self.port, self.session = free_port(), None
        words = [shutil.which("chromedriver"), f"--port={self.port}"]
        self.driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1600,2400",
        ]
        arguments += [
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
        ]
        options = {"goog:chromeOptions": {"binary": browser(), "args": arguments}}
        try:
            deadline = time.monotonic() + 60
            while self.session is None:
                try:
                    self.session = self.ask("session", {"capabilities": {"alwaysMatch": options}})[
                        "sessionId"
                    ]
                except urllib.error.HTTPError:
                    raise  # the driver is there and says why the browser is not
                except OSError:  # it does not listen yet
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.session is not None:
            self.ask(f"session/{self.session}", method="DELETE")
        self.driver.terminate()
        self.driver.wait(timeout=30)

    def ask(self, what, content=None, method=None):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{what}", body, method=method
        )
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def page(self, address, words, seconds=180):
        """What the browser shows at an address, once all the words are there."""
        deadline, text = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.HTTPError):  # the server does not listen yet
                self.ask(f"session/{self.session}/url", {"url": "about:blank"})
                self.ask(f"session/{self.session}/url", {"url": address})
                for _ in range(60):
                    shown = self.ask(f"session/{self.session}/source")
                    text = html.unescape(
                        re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", shown, flags=re.DOTALL)
                    )
                    if all(word in text for word in words):
                        return text
                    if "ERR_CONNECTION_REFUSED" in text or time.monotonic() > deadline:
                        break
                    time.sleep(0.5)
            time.sleep(0.5)
        raise AssertionError(f"{words} are not on the page: {text[:3000]}")
