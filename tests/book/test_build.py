"""The built pages: complete, whole, and loading nothing from another host."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

import course

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADED_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "prefetch",
    "dns-prefetch",
    "preconnect",
    "manifest",
}


def expected_pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


@pytest.fixture(scope="module")
def soups(html):
    """Every page, parsed, by its path."""
    paths = sorted(html.rglob("*.html"))
    paths = [path for path in paths if "_static" not in path.parts]
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths}


def test_it_builds_without_a_warning(build):
    done, _ = build
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-6000:]
    assert not re.findall(r"^.*(?:WARNING|ERROR|CRITICAL):.*$", text, re.MULTILINE)


@pytest.mark.parametrize("page", [*expected_pages(), "index", "search", "genindex"])
def test_the_page_is_there(html, page):
    assert (html / f"{page}.html").stat().st_size > 0


def test_the_root_leads_to_the_landing_page(soups, html):
    assert soups[html / "index.html"].meta["content"].endswith("url=book/index.html")


def test_no_page_besides_the_expected_ones(soups, html):
    found = {path.relative_to(html).with_suffix("").as_posix() for path in soups}
    assert found == {*expected_pages(), "index", "search", "genindex"}


def test_internal_links_and_images_resolve(soups, html):
    broken = []
    for path, soup in soups.items():
        for tag in soup.find_all(["a", "link", *LOADED]):
            link = tag.get("href") or tag.get("src") or ""
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not link or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append((path.name, link))
            elif parts.fragment and target in soups and not has(soups[target], unquote(parts.fragment)):
                broken.append((path.name, link))
    assert not broken


def has(soup, fragment: str) -> bool:
    return soup.find(id=fragment) is not None or soup.find(attrs={"name": fragment}) is not None


def test_nothing_is_loaded_from_another_host(soups, html):
    foreign = []
    for path, soup in soups.items():
        for tag in soup.find_all(list(LOADED)):
            foreign += [
                (path.name, tag.get(key)) for key in ("src", "srcset", "data-src") if absolute(tag.get(key))
            ]
        for tag in soup.find_all("link"):
            if set(tag.get("rel", [])) & LOADED_LINKS and absolute(tag.get("href")):
                foreign.append((path.name, tag["href"]))
        # a script in the page may name the address of another one
        for tag in soup.find_all("script"):
            foreign += [
                (path.name, url) for url in re.findall(r"https?://[^\s\"']+\.m?js\b", tag.string or "")
            ]
    for path in html.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        foreign += [
            (path.name, url)
            for url in re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", text)
        ]
    assert not foreign


def absolute(link: str | None) -> bool:
    return bool(link) and bool(urlsplit(link).netloc)


def test_every_picture_has_words(soups):
    blind = [(path.name, tag.get("src")) for path, soup in soups.items() for tag in soup.find_all("img")
             if not (tag.get("alt") or "").strip()]  # fmt: skip
    assert not blind
    # Sphinx writes the file's own path where the author gave no words
    assert not [
        tag["alt"] for soup in soups.values() for tag in soup.find_all("img") if tag["alt"] == tag["src"]
    ]


def test_chapters_open_in_colab(soups, html):
    repository = course.address().removeprefix("https://github.com/")
    for page in expected_pages():
        if page.startswith("notebooks/"):
            links = {tag["href"] for tag in soups[html / f"{page}.html"].find_all("a", href=True)}
            assert f"https://colab.research.google.com/github/{repository}/blob/main/{page}.ipynb" in links
            assert any(link.split("?")[0].endswith(f"_sources/{page}.ipynb") for link in links)


def test_mathjax_brings_its_fonts(html):
    mathjax = html / "_static" / "mathjax"
    assert (mathjax / "tex-chtml.js").is_file()
    assert len(list((mathjax / "output/chtml/fonts/woff-v2").glob("*.woff"))) > 20
