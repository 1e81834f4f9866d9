"""README and docs/ speak of what is there: commands, options, settings, names, arguments, file names, links."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CODE = [
    (page.name, *block)
    for page in PAGES
    for block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.S)
]


def load(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generated = load(DOCS / "generate_pages.py")
COMMANDS = dict(generated.commands())


def typed_commands():
    """(page, words) of every `camae ...` line in a shell block, comments and launchers taken away."""
    for page, language, text in CODE:
        if language not in ("bash", "text") or "camae" not in text:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            for quoted in re.findall(r"--wrap '(camae [^']*)'", line) or [line]:
                words = shlex.split(quoted, comments=True)
                if language == "bash" and "camae" in words:
                    yield page, words[words.index("camae") :]


@pytest.mark.parametrize(("page", "words"), list(typed_commands()))
def test_commands_and_options_exist(page, words):
    name = max((n for n in COMMANDS if words[: len(n.split())] == n.split()), key=len, default=None)
    assert name is not None, f"{page}: there is no command {' '.join(words[:3])}"
    known = generated.options_of(COMMANDS[name])
    assert [w for w in words if w.startswith("--") and w not in known] == []
    settings = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]
    assert all(s.split("=")[0].split(".")[0] in train_settings() for s in settings), settings


def test_generated_pages_are_up_to_date():
    for name, text in generated.pages().items():
        assert (DOCS / name).read_text() == text, (
            f"run `python docs/generate_pages.py`: {name} is out of date"
        )


def test_options_in_prose_exist():
    known = {o for command in COMMANDS.values() for o in generated.options_of(command)} | {"--help"}
    other = {"--no-python", "--nproc-per-node", "--local-dir", "--array", "--wrap", "--full", "--compare"}
    for page in PAGES:
        named = set(re.findall(r"`(--[a-z-]+)", page.read_text()))
        assert named <= known | other, page.name


def train_settings():
    from camae.training.config import TrainConfig

    return {f.name for f in fields(TrainConfig)}


def test_settings_of_the_training_page_exist():
    table = (DOCS / "train.md").read_text().split("| about | settings |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert len(named) > 30
    assert named - {"plate", "experiment"} <= train_settings()


def calls():
    """(page, dotted name, keywords) of every call of camae's names in a Python block."""
    for page, language, text in CODE:
        if language != "python":
            continue
        tree = ast.parse(text)
        imported = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                first, _, rest = ast.unparse(node.func).partition(".")
                name = f"{imported.get(first, first)}.{rest}".rstrip(".")
                if name.startswith("camae."):
                    yield page, name, [k.arg for k in node.keywords]


def resolved(name):
    module, _, rest = name.partition(".")
    found = importlib.import_module(module)
    for part in filter(None, rest.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(f"{found.__name__}.{part}")
    return found


@pytest.mark.parametrize(("page", "name", "keywords"), list(calls()))
def test_calls_name_what_is_there(page, name, keywords):
    if "(" in name:  # the object form: maps.TVN().fit(...)
        assert callable(resolved(name.split("(")[0]))
        return
    parameters = inspect.signature(resolved(name)).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = set(keywords) - set(parameters)
    if open_ended and name == "camae.train":
        assert unknown <= train_settings()
    elif open_ended and "embed" in name:
        from camae.embedding.config import EmbedOptions

        assert unknown <= set(EmbedOptions.__annotations__)
    else:
        assert open_ended or not unknown


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(), re.M))
def test_names_of_the_api_page_exist_and_are_documented(name):
    found = resolved(name)
    assert inspect.getdoc(found)


def test_every_public_name_of_maps_is_on_the_api_page():
    from camae import maps

    named = set(re.findall(r"^::: camae\.maps\.(\w+)", (DOCS / "api.md").read_text(), re.M))
    assert set(maps.__all__) - {"METHODS"} == named


def anchors(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    for label, target in re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = page if not file else page.parent / file
        assert there.exists(), f"{page.name}: {label} -> {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {label} -> {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_figures_are_there(page):
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
        assert (page.parent / target).stat().st_size < 300_000, target


def test_paths_of_the_repository_exist():
    for page in PAGES:
        for path in re.findall(
            r"`((?:bench|examples|tests|camae|kernels|dataloader)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists() or (ROOT / "bench" / "results" / "cpu-2core" / path).exists(), (
                page.name,
                path,
            )


def name_rows():
    for line in (DOCS / "your-images.md").read_text().splitlines():
        cells = re.findall(r"^\| `([^`]+\.(?:tiff?|png))` \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", line)
        yield from cells


@pytest.mark.parametrize(("name", "plate", "well", "site", "channel"), list(name_rows()))
def test_file_names_are_read_as_the_page_says(tmp_path, name, plate, well, site, channel):
    from camae.dataloader import read_manifest

    rxrx = name.startswith("HUVEC")
    numbered = [name.replace(f"_{channel}.", f"_w{n}.") for n in range(1, 7)] if rxrx else [name]
    for file in numbered:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    manifest = read_manifest(tmp_path)
    row = manifest.table.iloc[0]
    assert (row.Metadata_Plate, row.Metadata_Well, row.Metadata_Site) == (plate, well, site)
    assert manifest.path(0, channel) == str(tmp_path / name)


def patterns():
    text = (DOCS / "your-images.md").read_text()
    return re.findall(r"'(\(\?P<.*?)'", text)


@pytest.mark.parametrize(
    ("pattern", "name", "key"),
    [
        (0, "PlateA/Images/r02c03f04p01-ch5sk1fk1fl1.tiff", ("PlateA", "B03", "4", "ch5")),
        (1, "Plate_2_images/C07_01_1_3_DAPI_001.tif", ("Plate_2", "C07", "3", "DAPI")),
    ],
)
def test_patterns_read_what_the_page_says(tmp_path, pattern, name, key):
    from camae.dataloader import read_manifest

    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    manifest = read_manifest(tmp_path, pattern=patterns()[pattern])
    row = manifest.table.iloc[0]
    assert (row.Metadata_Plate, row.Metadata_Well, row.Metadata_Site, manifest.channels[0]) == key


def test_readers_of_the_page_are_those_there_are():
    from camae.dataloader.datasets import FORMATS

    text = (DOCS / "your-images.md").read_text().split("names the reader:")[1].split(".\n\n")[0]
    assert set(re.findall(r"`([\w-]+)`", text)) == set(FORMATS)


def test_extras_of_the_quickstart_are_those_there_are():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (DOCS / "quickstart.md").read_text().split("| extra |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` ", table, re.M)) == set(extras) - {"dev", "docs"}


def test_navigation_names_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w-]+\.md", str(nav))
    assert sorted(listed) == sorted(p.name for p in DOCS.glob("*.md"))


def test_readme_is_a_front_door():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", *(ROOT / ".github").rglob("*.y*ml")]:
        for target in re.findall(r"(?:`|^|run: )make ([a-z-]+)", page.read_text(), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), (page.name, target)
