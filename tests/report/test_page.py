from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unveil.evaluation.infill import Filling, Gap
from unveil.evaluation.likelihood import BitsPerByte
from unveil.family import Bars, Curve, HeatMap, ImageGrid, Table, TokenTimeline
from unveil.metrics.compression import Score
from unveil.report.evidence import Evidence, Headline
from unveil.report.page import render, write
from unveil.report.run import RunReport

HOSTILE = "</script><script>alert('x')</script><img src=http://evil.example/a onerror=alert(1)> & \"quoted\" {{ 7 * 7 }} <!--"
VOID = {"meta", "input", "br", "img", "link", "hr"}
REQUESTS = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction", "xlink:href"}


class Reader(HTMLParser):
    """Balance of the tags, every attribute that could make a request, and the text per element."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text: list[str] = []
        self.mistakes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in self.raw:
            self.raw[inside].append(data)
        else:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.mistakes and not reader.open
    return reader


def evidence(**more: Any) -> Evidence:
    bits = BitsPerByte(1.4321, 0.02, 0.0, 5.0, 3.0, 1000, 3000, 12)
    return replace(Evidence(bits=bits, baselines=[Score("xz", 1.9, 1.5), Score("unigram", 4.6, 4.5)]), **more)


def run(name: str = "ar", index: int = 0, found: Evidence | None = None) -> RunReport:
    log = [{"step": i, "tokens": 100 * i, "train/nll": 6 / i, "train/other": 1.0} for i in range(1, 40)]
    timing = [{"step": 39, "tokens": 3900, "tokens_per_second": 12_345.0, "seconds": 90.0, "utilisation": 0.42}]
    return RunReport(name, index, {}, "family = 'x'\n", {"torch": "2.13", "cpu": {"cores": 2}}, log, timing, found or evidence())


def hostile() -> Evidence:
    gap = Gap(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    views = [
        TokenTimeline(HOSTILE, [HOSTILE, "b"], [1, 2], [0.5, 1.0]),
        Table(HOSTILE, [HOSTILE], [[HOSTILE]]),
        Curve(HOSTILE, [1, 2], {HOSTILE: [1.0, 2.0]}, HOSTILE, HOSTILE),
    ]
    scores = [Score(HOSTILE, 1.0, 2.0)]
    return evidence(fillings=[Filling(gap, HOSTILE)], samples=[HOSTILE], views=views, baselines=scores)


def test_whatever_a_model_or_a_person_wrote_is_text() -> None:
    first = replace(run(HOSTILE, 0, hostile()), recipe_text=HOSTILE, environment={HOSTILE: HOSTILE})
    page = render([first, replace(first, index=1)], HOSTILE, HOSTILE, [HOSTILE])
    reader = read(page)
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert not [attributes for _, attributes in reader.tags if any(name.startswith("on") for name in attributes)]
    assert "alert" not in "".join(reader.raw["script"]).replace("\\u003cscript\\u003ealert", "")
    shown = "".join(reader.text)
    assert shown.count(HOSTILE) >= 2 * 15  # title, lead and command, and per run: names, captions, samples, gap, table, recipe, versions
    assert "49" not in shown.replace("49 %", "")


def test_the_page_asks_for_nothing() -> None:
    page = render([run("a", 0, hostile())], commands=["unveil sample"])
    reader = read(page)
    asked = [(name, value) for _, attributes in reader.tags for name, value in attributes.items() if name in REQUESTS]
    assert not [(name, value) for name, value in asked if name != "src" or not str(value).startswith("data:image/png;base64,")]
    assert not [tag for tag, _ in reader.tags if tag in {"link", "iframe", "object", "embed", "base"}]
    for raw in (*reader.raw["style"], *reader.raw["script"]):
        assert not re.search(r"url\(|@import|https?:|//[a-z]|fetch\(|XMLHttpRequest|import\(", re.sub(r"// .*|\[\[.*", "", raw))


def test_a_timeline_on_the_page_is_the_timeline_that_was_given() -> None:
    steps = [[1, 1, 5, 0], [2, 2, 6, 4], [3, 3, 7, 8]]
    view = TokenTimeline("t", ["def", " f", "(x)", ":", "░"], [0, 2, 3, 1, -1], [1.0, 0.25, 0.5, 0.125, 0.0], "note", steps)
    reader = read(render([run(found=evidence(views=[view]))]))
    pieces = [attributes for tag, attributes in reader.tags if tag == "span" and "data-s" in attributes]
    assert [int(p["data-s"] or "") for p in pieces] == list(view.committed_at)
    assert [float(p["data-c"] or "") for p in pieces] == pytest.approx(list(view.confidence), abs=0.006)
    assert [p.get("class") for p in pieces] == ["given", None, None, None, "covered"]
    assert [p.get("style") for p in pieces[1:4]] == ["--c:0.667;--p:0.25", "--c:1.000;--p:0.50", "--c:0.333;--p:0.12"]
    (slider,) = [attributes for tag, attributes in reader.tags if tag == "input"]
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "3")
    assert [json.loads(a["data-steps"] or "") for tag, a in reader.tags if tag == "p" and "data-steps" in a] == [steps]


def test_bars_of_one_title_stand_together_in_their_order() -> None:
    first, second = (Bars("b", ["next", HOSTILE], values, [0.1, float("nan")]) for values in ([0.5, 0.25], [0.0, 1.0]))
    reader = read(render([run("a", 0, evidence(views=[first])), run("b", 1, evidence(views=[second]))]))
    text = " ".join("".join(reader.text).split())
    assert text.count(" b a: next ") == 1 and text.index("a: next 0.500 ± 0.100") < text.index("b: next 0.000 ± 0.100") < text.index(
        "1.000"
    )
    widths = [a["style"] for tag, a in reader.tags if tag == "i" and "style" in a][-4:]
    assert widths == ["width:50.0%", "width:25.0%", "width:0.0%", "width:100.0%"], "an error that is not known is none"
    assert render([run(found=evidence(views=[Bars("none", ["x"], [0.0], [0.0])]))])


def test_headline_says_who_wins() -> None:
    text = " ".join("".join(read(render([run()])).text).split())
    assert "1.432 bits per byte" in text
    assert "xz, given the training text, needs 1.500: 5 % more than this model." in text
    worse = evidence(bits=BitsPerByte(1.8, 0.02, 0.0, 5.0, 3.0, 1000, 3000, 12))
    assert "17 % less than this model" in " ".join("".join(read(render([run(found=worse)])).text).split())


def test_a_bound_is_called_one() -> None:
    bound = evidence(bits=BitsPerByte(2.1, 0.02, 0.01, 5.0, 3.0, 1000, 3000, 12), bound=True)
    text = " ".join("".join(read(render([run(found=bound)])).text).split())
    assert "at most 2.100" in text and "upper bound" in text
    assert "less than this model" not in text  # a bound above xz does not say that the model is worse
    assert "upper bound" not in "".join(read(render([run()])).text)


def test_runs_share_a_chart_only_over_the_same_bytes() -> None:
    other = evidence(bits=BitsPerByte(1.1, 0.02, 0.0, 5.0, 3.0, 1000, 999, 12))
    titles = [text for text in read(render([run("a"), run("b", 1)])).text if text == "Held-out bits per byte"]
    assert len(titles) == 1
    assert len([text for text in read(render([run("a"), run("b", 1, other)])).text if text == "Held-out bits per byte"]) == 2


def test_infills_show_shares_over_all_and_a_few_in_full() -> None:
    gaps = [Gap(f"f{i}", "x = (", "1", ")\n") for i in range(10)]
    answers = ["1"] * 2 + ["2"] * 3 + [")"] * 5
    found = evidence(fillings=[Filling(gap, text) for gap, text in zip(gaps, answers, strict=True)])
    text = " ".join("".join(read(render([run(found=found)])).text).split())
    assert "10 20 % 50 %" in re.sub(r"\s+", " ", text)
    assert "f5" in text and "f6" not in text


def test_a_bare_run_has_a_page_and_costs_of_another_do_not_shift() -> None:
    bare = RunReport("bare", 1, {}, "", {}, [], [], Evidence())
    assert "Not evaluated" in "".join(read(render([bare])).text)
    reader = read(render([bare, run(found=evidence(costs={"parameters": 2_605_056}))]))
    assert "2.61 M" in reader.text and "12.3 k" in reader.text and "42%" in reader.text
    with pytest.raises(ValueError, match="at least one run"):
        render([])


def test_size_of_a_long_run_is_small() -> None:
    log = [{"step": i, "tokens": i, "train/nll": 1 / i} for i in range(1, 50_000)]
    views = [TokenTimeline(f"t{i}", ["token"] * 1024, list(range(1, 1025)), [0.5] * 1024) for i in range(4)]
    page = render([replace(run(found=evidence(views=views, samples=["x" * 2000] * 8)), log=log)])
    assert len(page) < 1_000_000


def test_write_replaces_the_page_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write([run()], path) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_chart_data_reaches_the_script() -> None:
    reader = read(render([run()]))
    data = json.loads(next(raw for raw in reader.raw["script"] if raw.startswith("[")))
    assert data[0][0][2:] == [100, 6.0]
    assert data[0][-1][0] == 100.0


def test_a_gallery_holds_its_sheets_and_shows_the_last() -> None:
    grid = ImageGrid("g", ["AAAA", "BBBB"], ["step 1", HOSTILE], 16, 8, HOSTILE)
    first, second = run(found=Evidence(views=[grid])), run("b", 1, Evidence(views=[ImageGrid("g", ["CCCC"], ["end"], 4, 4)]))
    page = render([first, second])
    reader = read(page)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert [str(a["src"])[-4:] for a in images] == ["AAAA", "BBBB", "CCCC"] and ["hidden" in a for a in images] == [True, False, False]
    assert images[1]["data-label"] == HOSTILE and not any(name.startswith("on") for a in images for name in a)
    (slider,) = [attributes for tag, attributes in reader.tags if tag == "input"]
    assert (slider["min"], slider["max"]) == ("0", "1")


def test_loads_of_two_runs_stand_side_by_side() -> None:
    loads = HeatMap("Load", {"blocks.1": [[0.5, 1.0], [1.5, 1.0]], HOSTILE: [[1.0, 1.0]]}, [10.0, 20.0], "tokens", "experts", HOSTILE)
    violations = [{"tokens": 10, "load/violation": 0.5}, {"tokens": 20, "load/violation": 0.25}]
    first, second = (replace(run(name, i, Evidence(views=[loads])), log=violations) for i, name in enumerate("ab"))
    page = render([first, second])
    pictures = [attributes for tag, attributes in read(page).tags if tag == "img"]
    assert len(pictures) == 4 and all(str(a["src"]).startswith("data:image/png;base64,iVBOR") for a in pictures)
    assert page.count("Maximal violation, of the worst layer") == 2  # caption and label of one chart for both
    assert "Load of the experts" not in render([run()])


def test_images_have_charts_of_their_own_and_a_headline() -> None:
    found = Evidence(
        headline=Headline(12.345, "Frechet distance", "of 1,000"), views=[Curve("q", [1, 2], {"a": [3, 4]}, section="Quality")]
    )
    pictures = replace(run("edm", 1, found), recipe={"family": "gaussian"})
    text = "".join(read(render([run(), pictures])).text)
    assert "12.3 Frechet distance" in text and "images seen" in render([pictures]) and "tokens seen" not in render([pictures])
    assert text.index("Training") < text.index("Quality") and text.count("Training loss") == 2
    assert "images trained on" in text and "tokens trained on" in text
