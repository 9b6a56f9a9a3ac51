"""The report is one file that needs nothing else and lies about nothing."""

from html.parser import HTMLParser

import pytest

from envs.evaluation.report import page
from tests.envs.evaluation.synthetic import an_engine
from tests.envs.evaluation.test_comparison import a_comparison

MANIFEST = {
    "command": "ccr evaluate --policies 'a,b' <x>",
    "commit": "abc123",
    "when": "2030-01-02T03:04:05+00:00",
}
VOID = {"meta", "br", "use", "path", "img"}


class Reader(HTMLParser):
    """Collects tags, ids and references, and that everything opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.tags, self.texts = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.tags.append(tag)
        if "id" in facts:
            self.ids.append(facts["id"])
        self.references += [facts[name] for name in ("href", "src", "xlink:href") if name in facts]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def html():
    comparison = a_comparison("base", "half", "slow", "hopeless", scenarios=("calm", "storm <b>"), seeds=5)
    return page(comparison, an_engine().scenarios, MANIFEST)


@pytest.fixture(scope="module")
def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def test_it_is_well_formed_and_every_name_is_escaped(html, read):
    assert read.open == []
    assert "b" not in read.tags
    assert "storm <b>" in read.texts
    assert "A scenario & its name need escaping. " in read.texts
    assert MANIFEST["command"] in read.texts


def test_it_needs_no_network_and_no_script(html, read):
    assert {"script", "link", "iframe", "img"} & set(read.tags) == set()
    assert all(reference.startswith("#") for reference in read.references)
    assert "@import" not in html
    assert "url(http" not in html


def test_ids_are_unique_and_every_reference_leads_somewhere(read):
    assert len(read.ids) == len(set(read.ids))
    assert {reference.removeprefix("#") for reference in read.references} <= set(read.ids)


def test_drawings_take_their_colours_from_the_page(html):
    assert "var(--better)" in html
    assert "prefers-color-scheme: dark" in html
    assert "#0101" not in html
    assert "#0102" not in html


def test_there_is_an_overview_and_a_drawing_for_each_scenario(read):
    assert read.tags.count("svg") == 3


def test_it_says_what_to_keep_in_mind_and_how_to_do_it_again(read):
    said = " ".join(read.texts)

    assert "6 comparisons" in said
    assert "All this is a simulation" in said
    assert "Latencies are of served requests only" in " ".join(said.split())


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_draw_too(seeds):
    assert "<svg" in page(a_comparison("base", "half", seeds=seeds), {}, MANIFEST)


def test_one_policy_alone_says_that_there_is_nothing_to_compare():
    assert "name at least two policies" in page(a_comparison("base", seeds=2), {}, MANIFEST)


def test_the_same_comparison_is_the_same_page(html):
    comparison = a_comparison("base", "half", "slow", "hopeless", scenarios=("calm", "storm <b>"), seeds=5)

    assert page(comparison, an_engine().scenarios, MANIFEST) == html
