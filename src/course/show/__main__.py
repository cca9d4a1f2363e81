"""``python -m course.show``, in the repository's root, draws the landing page's map anew."""

from pathlib import Path

from course.show.roadmap import landing

if __name__ == "__main__":
    Path("book/_static/roadmap.svg").write_text(landing("."))
