"""The built book in headless Chromium: what a reader sees, on a desk and on a phone, by day and by night."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

# True once MathJax has drawn the page, or if the page has nothing to draw.
DRAWN = """() => {
    if (!window.MathJax) return true;
    if (window.drawn === undefined && MathJax.startup?.promise) {
        window.drawn = false;
        MathJax.startup.promise.then(() => { window.drawn = true; });
    }
    return window.drawn === true;
}"""
FORMULAS = """() => {
    const texts = (elements) => [...elements].map(e => e.textContent);
    const sources = [...document.querySelectorAll('article .math')];
    return {
        drawn: document.querySelectorAll('article .math mjx-container').length,
        wrong: texts(document.querySelectorAll('mjx-merror, [data-mjx-error]')),
        raw: texts(sources.filter(e => !e.querySelector('mjx-container'))),
    };
}"""
IMAGES = """async () => {
    const images = [...document.querySelectorAll('img')];
    for (const image of images) image.loading = 'eager';
    await Promise.all(images.map(i => i.complete ? 0 : new Promise(r => { i.onload = i.onerror = r; })));
    return images.filter(i => !i.naturalWidth || !i.alt.trim()).map(i => i.src + ' | ' + i.alt);
}"""
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth, whole = document.scrollingElement.scrollWidth;
    if (whole <= width) return [];
    const elements = [...document.querySelectorAll('main *')];
    const wide = elements.filter(e => e.getBoundingClientRect().right > width + 1);
    return [`${whole} pixels`, ...wide.slice(0, 5).map(e => e.outerHTML.slice(0, 80))];
}"""


@pytest.fixture
def visit(browser, site):
    """Open a page; what goes wrong meanwhile is collected in its `.troubles`."""
    contexts = []

    def open_page(path: str, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.troubles = []

        def guard(route):
            if route.request.url.startswith((site, "data:", "blob:")):
                route.continue_()
            else:
                page.troubles.append(f"asks another host: {route.request.url}")
                route.abort()

        page.route("**/*", guard)
        page.on(
            "console",
            lambda m: m.type in ("error", "warning") and page.troubles.append(f"{m.type}: {m.text}"),
        )
        page.on("pageerror", lambda error: page.troubles.append(f"script: {error}"))
        page.on("requestfailed", lambda request: page.troubles.append(f"not loaded: {request.url}"))
        page.goto(f"{site}/{path}", wait_until="load")
        page.wait_for_function(DRAWN)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("path", PAGES)
def test_page_on_a_desk(visit, path):
    page = visit(f"{path}.html", viewport=WIDE)
    formulas = page.evaluate(FORMULAS)
    assert not formulas["wrong"] and not formulas["raw"]
    assert page.evaluate(IMAGES) == []
    assert page.troubles == []


@pytest.mark.parametrize("path", PAGES)
def test_page_on_a_phone(visit, path):
    page = visit(f"{path}.html", viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    assert page.evaluate(TOO_WIDE) == []
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(
        "document.querySelectorAll('.toggle-hidden').forEach(d => d.classList.remove('toggle-hidden'))"
    )
    assert page.evaluate(TOO_WIDE) == [], "with everything unfolded"
    assert page.troubles == []


def test_formulas_are_drawn_where_the_book_has_some(visit):
    assert visit("book/notation.html").evaluate(FORMULAS)["drawn"] > 20


def background(page) -> int:
    """Brightness of the page's ground, 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return max(map(int, re.findall(r"\d+", colour)[:3]))


def test_dark_mode_follows_the_system_and_the_switch(visit):
    page = visit("book/index.html", viewport=WIDE, color_scheme="light")
    assert background(page) > 200
    seen = set()
    for _ in range(3):  # the switch goes round: as the system, light, dark
        page.locator("button.theme-switch-button:visible").first.click()
        page.wait_for_timeout(300)
        seen.add((page.evaluate("document.documentElement.dataset.mode"), background(page) > 128))
    assert ("dark", False) in seen and ("light", True) in seen
    assert background(visit("book/index.html", viewport=WIDE, color_scheme="dark")) < 60
    assert page.troubles == []


def test_search_finds_a_word(visit):
    page = visit("search.html?q=reparameterisation", viewport=WIDE)
    page.wait_for_selector("#search-results ul.search li", timeout=15_000)
    assert any(
        "glossary.html" in link
        for link in page.locator("#search-results li a").evaluate_all("a => a.map(e => e.href)")
    )
    assert page.troubles == []


def test_search_field_of_a_page_leads_to_results(visit):
    page = visit("book/index.html", viewport=WIDE)
    page.keyboard.press("Control+k")
    field = page.locator("input[type=search]:visible").first
    field.fill("bottleneck")
    field.press("Enter")
    page.wait_for_selector("#search-results ul.search li", timeout=15_000)
    assert page.troubles == []


def test_a_solution_opens_with_a_click(visit):
    """Solutions are folded away, and unfold."""
    tried = 0
    for path in PAGES:
        if path.startswith("notebooks/"):
            page = visit(f"{path}.html", viewport=WIDE)
            solution = page.locator("div.solution").first
            content = solution.locator(".section, section, .cell").first
            assert not content.is_visible()
            # the button and not the title, whose middle may be the link to the exercise
            solution.locator("button.toggle-button").click()
            content.wait_for(state="visible")
            tried += 1
    assert tried
