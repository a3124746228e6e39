"""The page: well-formed, whole, offline, with every name as text, whatever the record holds."""

import html
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports import html as page_module
from gradstab.reports.html import FIGURES, to_html, write_html

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background"}
ALL = {figure.name for figure in FIGURES}
OFTEN = {"layers", "norm", "incidents", "clips"}  # drawn from what every record has


class Page(HTMLParser):
    """What stands in a page; fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], Counter(), [], []
        self.figures, self.in_svg = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        if tag == "figure":
            self.figures.append(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> outside of an SVG"
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> too many"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "svg" in self.open and "text" in self.open:
            self.in_svg.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def page_of(run_dir):
    return Page(write_html(run_dir).read_text(encoding="utf-8"))


RUNS = {
    "nan_run": OFTEN,
    "vanishing_run": OFTEN,
    "full_run": ALL,
    "wide_run": ALL,
    "bare_run": OFTEN,
    "empty_run": set(),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("run", RUNS)
def test_the_page_is_whole_and_loads_nothing(run, request):
    run_dir = request.getfixturevalue(run)
    page = page_of(run_dir)
    assert page.tags["html"] == page.tags["head"] == page.tags["body"] == page.tags["h1"] == 1
    assert not page.tags.keys() & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for _, name, _ in page.attributes if name in LOADING or name.startswith("on")]
    for reference in page.values("href", "xlink:href"):
        assert reference.startswith(("#", "data:image/png;base64,")), reference[:80]
    assert "http:" not in (run_dir / "report.html").read_text(encoding="utf-8")
    assert "https:" not in (run_dir / "report.html").read_text(encoding="utf-8")
    policy = dict(zip(page.values("http-equiv"), page.values("content"), strict=False))
    assert policy["Content-Security-Policy"].startswith("default-src 'none';")
    assert "script-src" not in policy["Content-Security-Policy"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("run", RUNS)
def test_every_figure_is_there_once_or_named_as_missing(run, request):
    page = page_of(request.getfixturevalue(run))
    if run in ("nan_run", "vanishing_run"):  # the monitor may record more than it must
        assert set(page.figures) >= RUNS[run]
    else:
        assert set(page.figures) == RUNS[run]
    ids = Counter(page.values("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    assert ids.keys() >= ALL, "a figure is neither drawn nor named as missing"
    assert page.tags["svg"] == len(page.figures) == len(set(page.figures))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("run", ["full_run", "wide_run"])
def test_what_a_figure_refers_to_is_in_that_figure(run, request):
    page = page_of(request.getfixturevalue(run))
    ids = set(page.values("id"))
    references = {value[1:] for value in page.values("href") if value.startswith("#")}
    for value in page.values("style", "clip-path"):
        references.update(re.findall(r"url\(#([^)]*)\)", value))
    assert references
    assert references <= ids


def test_names_are_text_in_tables_and_figures(full_run):
    page = page_of(full_run)
    assert "model/<script>alert(1)</script>/kernel" in page.text
    assert 'model/"><img src=x onerror=alert(2)>/bias' in page.text
    assert "model/$\\frac{1}$/kernel" in page.text
    assert page.tags["img"] == page.tags["script"] == 0
    labels = "".join(page.in_svg)
    assert "<script>alert(1)</script>" in labels
    assert "$\\frac{1}$" in labels
    assert "$odd" in labels
    text = (full_run / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800]", text)


def test_names_from_elsewhere_in_the_record_are_text_too(tmp_path):
    bad = "<b>&\"'</b>"
    config = {bad: bad, "optimizer": bad, "max_norm": bad}
    run_dir = tmp_path / bad.replace("/", "")
    with RecordWriter(run_dir, variables=[bad], layers=[bad], config=config) as writer:
        sample, by_layer = {"grad_norm": [1.0]}, {"activation_mean": [1.0]}
        writer.step(1, {"loss": 1.0, bad: 2.0}, sample, by_layer)
        writer.event(bad, step=1, **{bad: bad})
        writer.event("skip", step=1, cause=bad, variable=bad)
        writer.event("stop", step=1, message=bad, cause=bad)
    page = page_of(run_dir)
    assert page.tags["b"] == 0
    assert page.text.count(bad) > 10


def test_the_summary_of_a_run_with_nan_batches(nan_run):
    page = page_of(nan_run)
    assert "2 steps (nonfinite 2)" in page.text
    assert "first/kernel at step 6" in page.text
    assert re.search(r"6 skipped: nonfinite variable \S*first/kernel", page.text)
    assert "largest gradient norm" in page.text


@pytest.mark.slow
def test_the_heat_map_names_the_layers_in_order_of_depth(vanishing_run):
    page = page_of(vanishing_run)
    labels = [text.strip() for text in page.in_svg if re.fullmatch(r"\s*(deep_\d+|head)\s*", text)]
    assert labels[:13] == [*(f"deep_{place}" for place in range(12)), "head"]


@pytest.mark.slow
def test_many_variables_fold_and_thin_out(wide_run, full_run):
    wide = write_html(wide_run).read_text(encoding="utf-8")
    page = Page(wide)
    assert "<details><summary>Variables (320)</summary>" in wide
    assert wide.count('<td class="name">net/block_159/bias</td>') == 1
    named = [text for text in page.in_svg if text.strip().startswith("block_")]
    assert 20 <= len(named) <= 70
    assert "160 layers, the first on top, one in 4 named" in "".join(page.in_svg)
    assert len(wide) < 1_000_000
    small = write_html(full_run).read_text(encoding="utf-8")
    assert "<details open><summary>Variables (5)</summary>" in small


def test_numbers_of_a_variable_stand_in_its_row(tmp_path):
    with RecordWriter(tmp_path, variables=["a", "b"]) as writer:
        writer.step(1, {}, {"grad_norm": [3.0, math.inf], "update_ratio": [0.25, 0.5]})
        writer.step(2, {}, {"grad_norm": [1.0, math.nan], "weight_norm": [8.0, 9.0]})
        writer.step(3, {}, {"update_ratio": [0.125, 0.0625]})
    text = page_of(tmp_path).text
    assert "a 1 3 0 8 0.25 0.125" in text
    assert "b nan - 2 9 0.5 0.0625" in text


def test_many_incidents_are_cut_and_said_to_be(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step in range(2, 6001, 2):  # never two in a row
            writer.event("skip", step=step, cause="spike")
    written = write_html(tmp_path)
    page = Page(written.read_text(encoding="utf-8"))
    assert "Incidents (3,000)" in page.text
    assert "2,000 rows between the first and the last 500 left out." in page.text
    assert written.stat().st_size < 500_000


def test_a_half_written_last_line_and_a_bad_one(full_run):
    with (full_run / "record.jsonl").open("ab") as file:
        file.write(b'nonsense\n{"kind":"step","step":310,"sca')
    with pytest.warns(UserWarning, match="not JSON"):
        written = write_html(full_run)
    page = Page(written.read_text(encoding="utf-8"))
    assert "unreadable lines" in page.text
    assert "not JSON" in page.text
    assert "last step 300" in page.text


def test_a_page_that_fails_leaves_the_old_one(full_run, monkeypatch):
    written = write_html(full_run)
    before, files = written.read_bytes(), sorted(full_run.iterdir())
    monkeypatch.setattr(page_module, "to_html", lambda record: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_html(full_run)
    assert written.read_bytes() == before
    assert sorted(full_run.iterdir()) == files


def test_path_and_permissions(bare_run, tmp_path):
    target = tmp_path / "deep" / "er" / "page.html"
    assert write_html(bare_run / "record.jsonl", target) == target
    assert target.stat().st_mode & 0o777 == 0o644
    assert not (bare_run / "report.html").exists()
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_the_same_record_gives_the_same_page_whatever_matplotlib_is_set_to(full_run):
    first = to_html(read_record(full_run))
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "text.color": "lime"}):
        assert to_html(read_record(full_run)) == first


# --- in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def in_chromium(test):
    """Mark a test that opens the page in a browser: seconds each, so with the slow ones."""
    return pytest.mark.slow(
        pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")(test)
    )


def chromium(folder, *arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--user-data-dir={folder / 'profile'}", *arguments]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


def screenshot(page, folder, name, size, *arguments):
    image = folder / f"{name}.png"
    chromium(folder, f"--window-size={size}", f"--screenshot={image}", *arguments, page.as_uri())
    return matplotlib.image.imread(image)[..., :3]


@in_chromium
@pytest.mark.parametrize("run", ["full_run", "wide_run", "nan_run"])
def test_light_and_dark_can_be_read(run, request, tmp_path):
    page = write_html(request.getfixturevalue(run))
    light = screenshot(page, tmp_path, "light", "1280,2000")
    preferring_dark = "--blink-settings=preferredColorScheme=0"
    dark = screenshot(page, tmp_path, "dark", "1280,2000", preferring_dark)
    for image, background in ((light, 1.0), (dark, 0.0)):
        brightness = image.mean(axis=2)
        # Both a background and ink far from it, and more of the background.
        assert abs(np.median(brightness) - background) < 0.2
        assert (abs(brightness - background) > 0.7).mean() > 0.003


@in_chromium
@pytest.mark.parametrize("width", [390, 820, 1400])
@pytest.mark.parametrize("run", ["full_run", "wide_run"])
def test_nothing_is_wider_than_the_window(run, width, request, tmp_path):
    text = write_html(request.getfixturevalue(run)).read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    measure = (
        "<script>onload = () => {const page = document.querySelector('iframe').contentDocument;"
        "document.title = page.documentElement.scrollWidth + ' of '"
        " + page.documentElement.clientWidth + ', '"
        " + page.querySelectorAll('figure svg').length}</script>"
    )
    frame = f'<iframe width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html>{measure}{frame}", encoding="utf-8")
    dom = chromium(tmp_path, "--window-size=1600,1000", "--dump-dom", wrapper.as_uri())
    title = re.search("<title>(.*?)</title>", dom)
    assert title, dom[:500]
    scroll, client, figures = map(int, re.findall(r"\d+", title[1]))
    assert abs(client - width) <= 4 + 20  # the frame's border, a scroll bar
    assert scroll <= client
    assert figures == len(FIGURES)


@in_chromium
def test_a_script_would_not_run(full_run, tmp_path):
    """The policy is the second wall: were a name not escaped, it could do nothing."""
    text = write_html(full_run).read_text(encoding="utf-8")
    script = "<script>document.title = 'it ran'</script>"
    for name, page, ran in (
        ("with", text, False),
        ("without", text.replace("Content-Security-Policy", "nothing"), True),
    ):
        file = tmp_path / f"{name}.html"
        file.write_text(page.replace("</body>", f"{script}</body>"), encoding="utf-8")
        assert ("<title>it ran</title>" in chromium(tmp_path, "--dump-dom", file.as_uri())) is ran


@in_chromium
def test_it_prints(wide_run, tmp_path):
    page = write_html(wide_run)
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
