"""What the documentation says is so: pages are up to date, links lead somewhere, examples run."""

import re
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from ccr.cli import cli
from ccr.settings import Settings, keys_by_section, load
from docs.generate import DOCS, EXAMPLE, PAGES, main
from router.discovery.configured import discovery_of
from router.exposition import METRICS
from router.policies import PolicySwitch

ROOT = DOCS.parent
MARKDOWN = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_CALL = re.compile(r"(?:^(?:\$ )?|`)ccr ([a-z][a-z-]*)(?: ([a-z]+)\b)?", re.MULTILINE)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Pages do not depend on who generates them."""
    import os

    for name in list(os.environ):
        if name.upper().startswith("CCR_"):
            monkeypatch.delenv(name)


def all_commands():
    """Every command and group by path, ``policy use`` for instance."""
    found = {}

    def visit(path, command):
        found[path] = command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                visit(f"{path} {name}".strip(), command.get_command(context, name))

    context = click.Context(cli)
    for name in cli.list_commands(context):
        visit(name, cli.get_command(context, name))
    return found


# -- generated pages


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run `make docs`"


def test_the_check_passes_on_this_tree_and_changes_nothing():
    before = {name: (DOCS / name).stat().st_mtime_ns for name in PAGES}

    done = CliRunner().invoke(main, ["--check"])

    assert (done.exit_code, done.output) == (0, "")
    assert {name: (DOCS / name).stat().st_mtime_ns for name in PAGES} == before


def test_a_stale_page_fails_the_check_and_is_written_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr("docs.generate.DOCS", tmp_path)
    monkeypatch.setattr("docs.generate.PAGES", {"page.md": lambda: "new"})
    page = tmp_path / "page.md"
    page.write_text("old")

    checked = CliRunner().invoke(main, ["--check"])
    assert (checked.exit_code, page.read_text()) == (1, "old")
    assert "docs/page.md is out of date" in checked.output

    written = CliRunner().invoke(main, [])
    assert (written.exit_code, page.read_text()) == (0, "new")


@pytest.mark.parametrize("key", keys_by_section())
def test_every_setting_is_described(key):
    page = (DOCS / "configuration.md").read_text()

    assert f"| `{key}` |" in page
    assert keys_by_section()[key].description


@pytest.mark.parametrize("section", Settings.model_fields)
def test_every_section_of_the_config_has_its_own(section):
    assert f"\n## {section}\n" in (DOCS / "configuration.md").read_text()


@pytest.mark.parametrize("path", all_commands())
def test_every_command_and_option_is_described(path):
    command = all_commands()[path]
    page = (DOCS / "cli.md").read_text()
    section = page.partition(f"\n## ccr {path}\n")[2].partition("\n## ")[0]

    assert command.help
    assert " ".join(command.help.split("\n\n")[0].split()) in " ".join(section.split())
    for option in [one for one in command.params if isinstance(one, click.Option)]:
        assert option.help, f"{option.opts} of {path} has no help"
        assert all(f"`{name}`" in section for name in option.opts)


def test_every_metric_is_described():
    page = (DOCS / "metrics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]

    assert len(rows) == len(METRICS)
    for metric in METRICS:
        assert any(metric.__doc__.strip() in row for row in rows)


# -- the example


def test_the_example_is_a_good_config():
    settings = load(EXAMPLE)

    PolicySwitch(settings)
    assert discovery_of(settings)
    assert CliRunner().invoke(cli, ["config", "check", str(EXAMPLE)]).exit_code == 0


def test_the_example_says_nothing_that_is_the_default():
    """It shows what one would change."""
    given = yaml.safe_load(EXAMPLE.read_text())
    defaults = Settings().model_dump(mode="json", by_alias=True)

    for section, values in given.items():
        if isinstance(values, dict) and section != "models":
            assert all(values[key] != defaults[section][key] for key in values)


# -- all pages


def links():
    """Relative links only: what is elsewhere cannot be looked at from here."""
    return [
        pytest.param(path, target, id=f"{path.relative_to(ROOT)}: {target}")
        for path in MARKDOWN
        for target in _LINK.findall(_BLOCK.sub("", path.read_text()))
        if "://" not in target and not target.startswith("mailto:")
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_every_link_leads_to_a_file(page, target):
    assert (page.parent / target).exists()


def runnable():
    """Blocks that begin with ```` ```python run ````."""
    return [
        pytest.param(code, id=f"{path.relative_to(ROOT)}: {code.splitlines()[0]}")
        for path in MARKDOWN
        for kind, code in _BLOCK.findall(path.read_text())
        if kind.split() == ["python", "run"]
    ]


@pytest.mark.parametrize("code", runnable())
def test_every_example_that_says_so_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_mentions_exists(page):
    known = all_commands()

    for name, sub in _CALL.findall(page.read_text()):
        assert name in known, f"there is no `ccr {name}`"
        if sub and isinstance(known[name], click.Group):
            assert f"{name} {sub}" in known, f"there is no `ccr {name} {sub}`"


def test_the_pages_are_found():
    """An empty list would make every test above pass."""
    assert {"configuration.md", "metrics.md", "cli.md"} <= {path.name for path in MARKDOWN}
    assert links()
    assert runnable()
    assert Path(ROOT / "pyproject.toml").exists()
