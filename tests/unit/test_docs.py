"""README and docs: their links, the commands in their code blocks, the length of guides, the page of commands."""

import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from itertools import takewhile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import lpsel.sweep  # noqa: F401  names the folders of sweeps in conf/base.yaml
from lpsel.cli import FLAG_COMMANDS, HYDRA_COMMANDS
from lpsel.command_line import check_arguments
from lpsel.config import config_dir
from lpsel.overrides import hydra_arguments

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
GUIDE_WORDS = 400
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"FOLDER_OR_HUB_ID")  # in place of a path, which has a slash
LOOKING = {"--help", "--cfg", "--version"}


def name(path):
    return path.relative_to(ROOT).as_posix()


def headings(path):
    """The anchors of a page's headings, as mkdocs makes them."""
    found = re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"\W+", "-", re.sub(r"[^\w\- ]", "", heading.lower())).strip("-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            wrong.append(link)
    assert wrong == []


def test_pages_that_code_and_configuration_name_exist():
    folders = ("lpsel", "conf", "benchmarks", "examples", "tests")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".j2")
    ]
    named = {page for path in files for page in re.findall(r"docs/[\w/-]+\.md", path.read_text())}
    assert {page for page in named if not (ROOT / page).exists()} == set()
    assert len(named) > 5


@pytest.mark.parametrize("page", [page for page in DOCS if page.parent.name == "guides"], ids=name)
def test_guides_are_short(page):
    assert len(page.read_text().split()) <= GUIDE_WORDS


def test_pages_of_the_site_fit_a_phone_and_are_dark_where_it_is(browser):
    site = ROOT / "build" / "site"
    if not site.is_dir():
        pytest.skip("build/site does not exist: run make docs")
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    for name in ("", "reference/rules", "results/benchmarks"):  # with the widest code and tables, which scroll
        page.goto((site / name / "index.html").as_uri(), wait_until="domcontentloaded")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)", name
    context.close()


@pytest.fixture(scope="module")
def commands_page():
    spec = spec_from_file_location("commands_page", ROOT / "docs" / "commands_page.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_has_their_options(commands_page):
    assert commands_page.PAGE.read_text() == commands_page.page(), "run python docs/commands_page.py"


def commands():
    """(command, arguments) of every different command line in the code blocks of all pages."""
    lines = {}
    for page in PAGES:
        for language, block in CODE.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
                if (parsed := command_in(line)) is not None:
                    lines.setdefault(parsed, page)
    return lines


def command_in(line):
    words = shlex.split(line, comments=True) if "$(" not in line else []
    words = list(takewhile(lambda word: word not in ("|", "&&", ">"), words))
    for i, word in enumerate(words):
        script = re.fullmatch(r"(train|select|evaluate)\.py", Path(word).name)
        command = script[1] if script else words[i + 1] if Path(word).name == "lpsel" and i + 1 < len(words) else None
        if command in (*HYDRA_COMMANDS, *FLAG_COMMANDS):
            arguments = words[i + (1 if script else 2) :]
            return (command, *arguments) if arguments and not LOOKING & set(arguments) else None
    return None


def runs_of(overrides):
    """The overrides of enough runs of a sweep that every value occurs."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [] for o in parsed]
    for run in range(max([1, *map(len, swept)])):
        yield [
            f"{override.split('=')[0]}={values[run % len(values)]}" if values else override
            for override, values in zip(overrides, swept, strict=True)
        ]


def test_commands_of_the_pages_have_options_that_exist(commands_page):
    found = commands()
    assert {command for command, *_ in found} == {*HYDRA_COMMANDS, *FLAG_COMMANDS}
    composed = set()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for (command, *arguments), page in sorted(found.items(), key=lambda item: -len(item[0])):  # covers most options
            try:
                if command in FLAG_COMMANDS:
                    commands_page.parser_of(command).parse_intermixed_args(arguments)
                    continue
                for run in runs_of(hydra_overrides(command, arguments)):
                    options = {(command, *option) for option in options_of(run)}
                    if not options <= composed:  # composing takes 0.2 s
                        compose(command, overrides=run, return_hydra_config=True)
                        composed |= options
            except Exception as error:
                error.add_note(f"{name(page)}: lpsel {command} {shlex.join(arguments)}")
                raise


def options_of(run):
    """Every choice of a group, and every option with the choice of its group: values are not composed again."""
    values = dict(override.split("=", 1) for override in run)
    groups = {option for option in values if option == "scorer" or (config_dir() / option).is_dir()}
    for option, value in values.items():
        group = option.split(".")[0]
        yield option, value if option in groups else values[group] if group in groups else None


def hydra_overrides(command, arguments):
    arguments = [PLACEHOLDER.sub("some/model", argument) for argument in arguments]
    check_arguments(arguments)
    return [argument for argument in hydra_arguments(command, arguments) if not argument.startswith("-")]
