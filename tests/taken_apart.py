"""A page of a report, taken apart as a browser does."""

from html.parser import HTMLParser
from pathlib import Path

# What a page of ours is made of, and the only addresses in it.
TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "h1", "h2", "p", "section", "div", "table", "thead",
    "tbody", "tr", "th", "td", "figure", "img", "figcaption", "audio",
}  # fmt: skip
ADDRESSES = ("data:image/png;base64,", "data:audio/wav;base64,", "data:,")


class Page(HTMLParser):
    """Raises AssertionError for what our template has not: other tags, code, other addresses. text: what is shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.texts = []
        self.feed(path.read_text())
        assert not self.rawdata

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "formaction", "data", "srcset", "xlink:href"):
                assert value.startswith(ADDRESSES), (tag, value[:80])

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]}")

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)
