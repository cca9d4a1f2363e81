"""The book, built once for all tests in this folder, and a browser to look at it."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The finished build process, every warning an error, and the folder of its pages."""
    folder = tmp_path_factory.mktemp("book")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT, "--path-output", folder]
    done = subprocess.run([*command, "-W", "--keep-going"], capture_output=True, text=True)
    return done, folder / "_build" / "html"


@pytest.fixture(scope="session")
def html(build):
    """The folder of the built pages."""
    done, folder = build
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@pytest.fixture(scope="session")
def site(html):
    """The address that serves the built pages on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium from the PATH."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if not found:
        message = f"no browser on the PATH: {', '.join(BROWSERS)}"
        if os.environ.get("COURSE_NEEDS_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox needs rights that containers and the root user lack; only our own pages are opened.
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()
