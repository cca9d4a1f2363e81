"""Figures, animations, listings and the map: what they show, how large they are, the same every time."""

import ast
import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import course
from course import UserError, show
from course.show import grids, picture, style
from course.show.roadmap import CSS_WIDTH, PLACES, STOPS, WIDTH, landing

ROOT = Path(__file__).parents[2]


def noise(count=6, channels=3, size=16, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def decode(shown):
    return np.asarray(Image.open(io.BytesIO(shown.data)).convert("RGB"))


# ---- style ---------------------------------------------------------------------------------------


def luminance(channels):
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def hexadecimal(colour):
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def contrast(one, other):
    dark, light = sorted(luminance(np.array(hexadecimal(colour))) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", [style.INK, style.MUTED, style.COLOURS["data"], style.COLOURS["model"]])
def test_text_is_readable_on_the_card(colour):
    assert contrast(colour, style.PAPER) >= 4.5


def test_axes_use_the_style_without_pyplot_figures():
    import matplotlib

    with matplotlib.rc_context():
        figure, panels = show.axes(1, 2, height=2.0)
        assert panels.shape == (2,)
        assert figure.get_figwidth() == style.WIDTH
        assert panels[0].title.get_fontsize() >= 11
        assert min(label.get_fontsize() for label in panels[0].get_xticklabels()) >= 11
        assert len({line["color"] for line in matplotlib.rcParams["axes.prop_cycle"]}) == 6


def test_diverging_map_falls_evenly_on_both_sides_of_paper():
    shades = np.array([show.diverging()(value)[:3] for value in np.linspace(0, 1, 257)])
    lightness = np.cbrt(luminance(shades))
    assert lightness.argmax() in (127, 128, 129)
    np.testing.assert_allclose(lightness[:129], lightness[:127:-1], atol=0.03)
    assert np.diff(lightness[:129]).min() > 0 and np.diff(lightness[128:]).max() < 0


# ---- grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (1, 28)])
def test_pictures_are_drawn_pixel_for_pixel(channels, size):
    images = noise(10, channels, size)
    drawn = decode(picture.render(show.grid(images, columns=5)))
    pixels = grids.to_pixels(images)
    cell = (style.WIDTH - 2 * grids.MARGIN - 4 * grids.GAP) / 5  # inches
    factor = round(cell * style.DPI / size)
    dpi = factor * size / cell
    margin, gap = round(grids.MARGIN * dpi), round(grids.GAP * dpi)
    for at in (0, 4, 5, 9):
        y, x = (margin + place * (size * factor + gap) for place in divmod(at, 5))
        enlarged = pixels[at].repeat(factor, axis=0).repeat(factor, axis=1)
        np.testing.assert_array_equal(drawn[y : y + size * factor, x : x + size * factor], enlarged)


def test_to_pixels_maps_the_range_and_clips():
    levels = grids.to_pixels(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(5, 1, 1, 1))
    assert levels[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


FIGURES = {
    "grid": lambda: show.grid(noise(7), columns=4),
    "grid with texts": lambda: show.grid(
        noise(6), columns=3, titles=list("abcdef"), top=["AE", "VAE", "PCA"], left=["K = 2", "K = 128"]
    ),
    "pairs": lambda: show.pairs(noise(9), noise(9)),
    "rows": lambda: show.rows({"original": noise(8, 1), "autoencoder, 16 numbers": noise(8, 1)}),
    "strip": lambda: show.strip(noise(11), [f"{step / 10:.1f}" for step in range(11)]),
    "one picture": lambda: show.grid(noise(1)),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())
def test_figures_fit_the_page_and_their_texts_fit_the_figure(make):
    figure = make()
    shown = picture.render(figure)
    assert shown.width <= 600
    assert shown.data == picture.render(make()).data, "the same figure must give the same bytes"
    boxes = [text.get_window_extent() for text in figure.texts]
    for at, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[at + 1 :])
        assert figure.texts[at].get_fontsize() >= 11


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: show.grid(torch.zeros(3, 8, 8)), r"expected pictures \(B, C, H, W\).*\(3, 8, 8\)"),
        (lambda: show.grid(torch.zeros(2, 4, 8, 8)), "1 or 3 channels"),
        (lambda: show.grid(torch.zeros(0, 1, 8, 8)), "expected pictures"),
        (lambda: show.grid(torch.full((1, 1, 8, 8), torch.nan)), "not finite"),
        (lambda: show.grid(noise(4), titles=["one"]), "titles holds 1 texts for 4 pictures"),
        (lambda: show.grid(noise(4), columns=2, left=["a"]), "left holds 1 texts for 2 rows"),
        (lambda: show.pairs(noise(4), noise(5)), "equally many pictures"),
    ],
)
def test_grids_say_what_is_wrong(call, message):
    with pytest.raises(UserError, match=message):
        call()


# ---- figures on the page -------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch):
    """What a cell puts out: (data, metadata) of each display."""
    outputs = []

    def display(shown, raw=False, metadata=None):
        outputs.append((shown, metadata or {}) if raw else shown._repr_mimebundle_())

    monkeypatch.setattr("IPython.display.display", display)
    return outputs


def test_figure_carries_its_words(displayed):
    show.figure(show.grid(noise()), alt="Six\n  pictures.", caption="Noise, $x$.", name="fig-noise")
    (data, metadata), (below, mark) = displayed
    assert data["text/plain"] == "[picture: Six pictures.]", "this text is compared by nbval"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    told = metadata["image/png"]
    assert told == {
        "alt": "Six pictures.",
        "caption": "Noise, $x$.",
        "name": "fig-noise",
        "width": told["width"],
    }
    assert below == {"text/markdown": "Noise, $x$."} and mark == {"text/markdown": {"caption": True}}


def test_figure_needs_words():
    with pytest.raises(UserError, match="text alternative"):
        show.figure(show.grid(noise()))
    with pytest.raises(UserError, match="needs a caption"):
        show.figure(show.grid(noise()), alt="Noise.", name="fig-noise")


def test_large_figures_are_stored_with_fewer_colours():
    figure, axis = show.axes()
    axis.imshow(np.random.default_rng(0).random((300, 500, 3)), aspect="auto")
    shown = picture.render(figure)
    assert Image.open(io.BytesIO(shown.data)).mode == "P"


def test_fewer_colours_are_near_the_true_ones_and_leave_the_page_s_colour_alone():
    sheet = np.full((200, 300, 3), (250, 248, 243), np.uint8)
    faint = np.random.default_rng(0).integers(-3, 4, (80, 120, 3))
    sheet[20:100, 20:140], sheet[110:190, 20:140] = (200, 30, 90) + faint, (20, 160, 255) + np.minimum(faint, 0)
    exact = io.BytesIO()
    Image.fromarray(sheet).save(exact, "PNG")
    small = picture._fewer_colours(exact.getvalue())
    made = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert len(small) < len(exact.getvalue()) / 2
    assert np.abs(made - sheet).max() <= 4  # half a step of 8
    assert (made[:20] == sheet[:20]).all()


def test_pyplot_figures_are_not_shown_twice(displayed):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    axis.plot([1, 2])
    show.figure(figure, alt="A line.")
    assert not pyplot.get_fignums()


def page(notebook_cells):
    """The document tree that the book makes of some outputs, without building a book."""
    render = pytest.importorskip("myst_nb.core.render")
    import nbformat
    from docutils.core import publish_doctree
    from myst_nb.docutils_ import Parser

    from course.show.page import PagePictures

    cells = [
        nbformat.v4.new_code_cell(
            "show", outputs=[nbformat.v4.new_output("display_data", data, metadata=metadata)]
        )
        for data, metadata in notebook_cells
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    loader, render.load_mime_renders = render.load_mime_renders, lambda: [PagePictures]
    settings = {
        "nb_execution_mode": "off",
        "nb_output_folder": "",
        "report_level": 5,
        "myst_enable_extensions": [],
    }
    try:
        return publish_doctree(nbformat.writes(notebook), parser=Parser(), settings_overrides=settings)
    finally:
        render.load_mime_renders = loader


def test_book_gets_alt_text_caption_and_number_from_the_output(displayed, tmp_path, monkeypatch):
    from docutils import nodes

    monkeypatch.chdir(tmp_path)
    show.figure(show.grid(noise()), alt="Six pictures.", caption="Noise *only*.", name="fig-noise")
    show.figure(show.animation([noise(), noise(seed=1)]), alt="Noise moves.")
    show.figure(show.roadmap("vae"))
    tree = page(displayed)
    images = list(tree.findall(nodes.image))
    assert [image["alt"][:12] for image in images] == ["Six pictures", "Noise moves.", "Map of the b"]
    assert all("dark-light" in image["classes"] for image in images)
    (figure,) = tree.findall(nodes.figure)
    assert "fig-noise" in figure["ids"]
    assert figure.children[-1].astext() == "Noise only." and isinstance(figure.children[-1], nodes.caption)
    assert tree.astext().count("Noise only.") == 1, (
        "the notebook's caption line must not appear again in the book"
    )


def test_book_leaves_other_images_alone(tmp_path, monkeypatch):
    from docutils import nodes

    monkeypatch.chdir(tmp_path)
    pixel = base64.b64encode(picture.render(show.grid(noise(1))).data).decode()
    (image,) = page([({"image/png": pixel}, {})]).findall(nodes.image)
    assert "alt" not in image and not image["classes"]


def test_plugin_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(
        r'\[project\.entry-points\."myst_nb\.mime_renderers"\]\n\w+ = "course\.show\.page:PagePictures"', text
    )


# ---- animations ----------------------------------------------------------------------------------


def moving(frames=12, count=6):
    images = noise(count, size=16)
    return [images.roll(step, 3) for step in range(frames)]


def test_animation_loops_and_holds_its_last_frame():
    shown = show.animation(
        moving(), fps=10, columns=3, hold=1.0, labels=[f"step {step}" for step in range(12)]
    )
    film = Image.open(io.BytesIO(shown.data))
    assert shown.mime == "image/png" and film.is_animated and film.n_frames == 12 and film.info["loop"] == 0
    durations = []
    for frame in range(film.n_frames):
        film.seek(frame)
        durations.append(film.info["duration"])
    assert durations == [100] * 11 + [1100]
    assert (
        shown.data
        == show.animation(
            moving(), fps=10, columns=3, hold=1.0, labels=[f"step {step}" for step in range(12)]
        ).data
    )


def test_animation_keeps_few_colours_exactly():
    black_and_white = [(noise(4, 1).sign()).roll(step, 2) for step in range(4)]
    film = Image.open(io.BytesIO(show.animation(black_and_white).data))
    film.seek(3)
    shown = np.asarray(film.convert("RGB"))
    factor = min((560 // 4 - 4) // 16, 150 // 16)
    expected = grids.to_pixels(black_and_white[3])[0].repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(shown[4 : 4 + 16 * factor, 4 : 4 + 16 * factor], expected)


def test_animation_gives_up_colours_then_frames_until_it_fits():
    frames = [noise(4, seed=step) for step in range(16)]
    whole = show.animation(frames, fps=10, limit=10_000_000)
    fewer_colours = show.animation(frames, fps=10, limit=len(whole.data) * 9 // 10)
    fewer_frames = show.animation(frames, fps=10, limit=len(whole.data) // 2)
    counts = [Image.open(io.BytesIO(shown.data)).n_frames for shown in (whole, fewer_colours, fewer_frames)]
    assert counts[:2] == [16, 16] and counts[2] < 16
    assert len(fewer_frames.data) <= len(whole.data) // 2


def test_animation_of_matplotlib_figures():
    def draw(height):
        figure, axis = show.axes(height=2.0)
        axis.plot([0, height])
        return figure

    shown = show.animation([draw(1), draw(2)])
    assert shown.width == 600 and decode(shown).shape == (200, 600, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: show.animation([noise()]), "two frames or more, not 1"),
        (lambda: show.animation([noise(), noise(3)], columns=3), "one size"),
        (lambda: show.animation(moving(), labels=["a"]), "1 texts for 12 frames"),
        (lambda: show.animation(moving(), limit=1000), "do not fit into 1 kB"),
    ],
)
def test_animation_says_what_is_wrong(call, message):
    with pytest.raises(UserError, match=message):
        call()


# ---- listings ------------------------------------------------------------------------------------


def code_of(text):
    fence, code = re.fullmatch(r"\[.*\]\(.*\)\n\n(`{3,})python\n(.*)\n\1", text, re.DOTALL).groups()
    return code


def listing(*objects, **options):
    from course.show.source import listing

    return listing(*objects, **options)


def test_listing_links_to_the_lines_it_shows():
    text = listing(grids.strip)
    first, last = map(int, re.search(r"/blob/main/src/course/show/grids\.py#L(\d+)-L(\d+)\)", text).groups())
    lines = Path(grids.__file__).read_text().splitlines()
    assert text.startswith(f"[course/show/grids.py, line {first}]({course.address()}/blob/")
    assert lines[first - 1].startswith("def strip(") and lines[last - 1].strip().startswith("return grid(")


def test_listing_of_a_decorated_function_is_that_of_the_function():
    from course.diffusion import samplers

    assert "def sample(" in code_of(listing(samplers.sample))


def test_listing_shortens_docstrings_unless_asked():
    assert "Args:" not in listing(
        grids.grid
    ) and '"""Pictures in reading order, ``columns`` to a row."""' in listing(grids.grid)
    assert "Args:" in listing(grids.grid, docstring=True)
    function = ast.parse(code_of(listing(grids.grid, docstring=True)))
    assert ast.dump(function) == ast.dump(ast.parse(__import__("inspect").getsource(grids.grid)))


def test_listing_of_chosen_methods():
    code = code_of(listing(show.Picture, only=("save",)))
    (shown,) = ast.parse(code).body
    assert [item.name for item in shown.body if isinstance(item, ast.FunctionDef)] == ["save"]
    assert code.count("# ...") == 2 and code.startswith("@dataclass")
    assert "\n\n\n" not in code
    assert code_of(listing(show.Picture.save)).startswith("def save(")


@pytest.mark.parametrize("shown", [show.grid, show.Picture, show.source, style.diverging, style])
def test_every_listing_is_valid_code(shown):
    ast.parse(code_of(listing(shown)))
    ast.parse(code_of(listing(shown, docstring=True)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: listing(len), "not code of the course package"),
        (lambda: listing(3), "not code of the course package"),
        (lambda: listing(torch.nn.Linear), "not code of the course package"),
        (lambda: listing(show.Picture, only=("load",)), "no method 'load'; it has: mime, save"),
        (lambda: listing(show.grid, only=("x",)), "methods of a class; grid is none"),
    ],
)
def test_listing_says_what_is_wrong(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_source_displays_text_that_can_be_compared(displayed):
    show.source(grids.strip, grids.pairs)
    assert [data["text/plain"].split(",")[0] for data, _ in displayed] == ["course/show/grids.py"] * 2
    assert all(data["text/markdown"].count("```") == 2 for data, _ in displayed)


# ---- the map -------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_stored_map_is_up_to_date():
    stored = (ROOT / "book/_static/roadmap.svg").read_text()
    assert stored == landing(ROOT), "run `python -m course.show` in the repository's root"


def test_stored_map_links_the_chapters_that_have_pages():
    tree = ElementTree.fromstring(landing(ROOT))
    links = [link.get("href") for link in tree.iter(f"{SVG}a")]
    assert links[0] == "../notebooks/01_autoencoder.html"
    assert len(links) == len(set(links)) and tree.get("role") == "group"


@pytest.mark.parametrize("place", [None, *PLACES])
def test_map_tells_what_it_shows(place):
    shown = show.roadmap(place)
    assert shown.data == show.roadmap(place).data
    tree = ElementTree.fromstring(shown.data)
    words = " ".join("".join(text.itertext()) for text in tree.iter(f"{SVG}text"))
    assert all(stop.name in words and stop.idea in words and stop.name in shown.alt for stop in STOPS)
    assert ("you are here" in words) == (place is not None) == ("You are at chapter" in shown.alt)
    assert tree.get("aria-label") == shown.alt and tree.get("role") == "img"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", shown.data.decode()), "nothing from elsewhere"
    assert len(shown.data) < 20_000


def test_map_is_readable_on_a_telephone_and_no_words_collide():
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    tree = ElementTree.fromstring(show.roadmap().data)
    boxes = []
    for text in tree.iter(f"{SVG}text"):
        size = float(text.get("font-size"))
        assert size * 340 / WIDTH >= 9
        if text.get("text-anchor") != "middle":
            # DejaVu Sans comes with matplotlib; Arial's letters are about 0.88 times as wide.
            bold = "bold" if text.get("font-weight") else "normal"
            path = TextPath(
                (0, 0),
                "".join(text.itertext()),
                prop=FontProperties(family="DejaVu Sans", weight=bold),
                size=size,
            )
            x, y = float(text.get("x")), float(text.get("y"))
            boxes.append((x, x + path.get_extents().width * 0.88, y - 0.75 * size, y + 0.22 * size))
    for at, (left, right, top, bottom) in enumerate(boxes):
        assert right <= WIDTH - 8
        for stop in STOPS:
            assert not (
                left < stop.x + 15 and right > stop.x - 15 and top < stop.y + 15 and bottom > stop.y - 15
            )
        for others in boxes[at + 1 :]:
            assert not (left < others[1] and right > others[0] and top < others[3] and bottom > others[2])
    assert CSS_WIDTH <= 600


def test_unknown_place():
    with pytest.raises(UserError, match="unknown place 'gan' on the map; choose from autoencoder, vae"):
        show.roadmap("gan")


def test_dots_lie_at_their_values_in_their_order():
    figure = show.dots({"VAE": 0.5, "autoencoder": 20.0}, label="distance", floor=0.1, model="VAE")
    axis = figure.axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [(0.5, 0), (20.0, 1)]
    assert [line.get_color() for line in dots] == [show.COLOURS["model"], show.COLOURS["rival"]]
    assert axis.get_xscale() == "log" and axis.get_ylim()[0] > axis.get_ylim()[1]  # first name on top
    assert [text.get_text() for text in axis.get_yticklabels()] == ["VAE", "autoencoder"]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_dots_refuse_what_a_logarithmic_scale_cannot_show(value):
    with pytest.raises(UserError, match="above zero"):
        show.dots({"good": 1.0, "bad": value}, label="distance")
