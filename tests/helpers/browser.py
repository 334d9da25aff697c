"""A browser, and visits that are watched: what a page asks for, complains of, and runs."""

import shutil
from collections.abc import Iterator

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("needs Chromium on the PATH")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, address) -> Iterator:
    """Opens the page; on the way out, checks that it asked for nothing, complained of nothing and ran nothing alien."""
    contexts, complaints, requests = [], [], []

    def open_page(width: int = 1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(address)
        return page

    yield open_page
    scripted = [page for context in contexts for page in context.pages]
    hacked = [page.evaluate("window.hacked ?? null") for page in scripted]
    for context in contexts:
        context.close()
    assert {url for url in requests if not url.startswith("data:")} == {address}
    assert complaints == []
    assert set(hacked) == {None}
