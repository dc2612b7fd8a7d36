"""The page of real runs on text that would be markup and script, opened in a real browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from peftkit import DataConfig, Method, ModelConfig, Recipe, Seq2Seq, SequenceClassification, lora
from peftkit.comparison.report.writer import format_report, write_report
from peftkit.errors import UserError
from peftkit.training.run import run

# One worker draws the page for all tests of it.
pytestmark = pytest.mark.xdist_group("page")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
# Each would leave a mark on the page's root element if it ran.
MARK = "document.documentElement.setAttribute('data-ran','yes')"
TRICKS = (
    f"<script>{MARK}</script>",
    f'<img src=x onerror="{MARK}">',
    f"</script><script>{MARK}</script>",
    f"<svg/onload={MARK}>",
    "{{ 7 * 7 }} &lt;b&gt; \u2028 ]]> --> '\"`",
)
LABELS = (TRICKS[1], TRICKS[2], "plain | <b>a</b>")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
    "--virtual-time-budget=10000",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(checkpoints, tmp_path_factory):
    """Two runs on rows whose texts and labels are markup."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [
        {
            "text": f"{TRICKS[place % len(TRICKS)]} row {place}",
            "label": LABELS[place % 3],
        }
        for place in range(120)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe(
        name=TRICKS[1], model=ModelConfig(name_or_path=str(checkpoints / "bert")), data=DataConfig(path=str(file)),
        task=SequenceClassification(max_length=32),
        training={
            "max_steps": 6, "per_device_train_batch_size": 8, "seed": 3, "report_to": "none", "disable_tqdm": True,
            "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2,
        },
    )  # fmt: skip
    methods = (Method(name="full"), Method(name="<i>lora</i>", peft=lora().peft))
    for place, method in enumerate(methods):
        run(replace(recipe, method=method, training={**recipe.training, "output_dir": str(folder / f"run-{place}")}))
    # Six steps teach both to say the same; here they shall disagree.
    place = folder / "run-1" / "predictions.jsonl"
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    place.write_text("".join(json.dumps({**line, "label": LABELS[n % 3]}) + "\n" for n, line in enumerate(lines)))
    return [folder / "run-0", folder / "run-1"]


@pytest.fixture(scope="module")
def page(folders):
    return write_report(folders, output=folders[0].parent / "page.html")


def browse(page, tmp_path, *flags):
    """What Chromium makes of the page: its tree as text, and its console."""
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom", *flags, page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class Tree(HTMLParser):
    """Elements, ids, and what is fetched."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links, self.text = [], [], [], []
        self.root = {}

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids.append(found.get("id"))
        self.links += [found[name] for name in ("src", "href", "srcset") if found.get(name)]
        if tag == "html":
            self.root = found
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_of_the_data_is_markup_in_the_file(page):
    tree = Tree()
    tree.feed(page.read_text(encoding="utf-8"))
    assert tree.tags.count("script") == 3
    assert not {"img", "i", "b", "iframe", "object", "link"} & set(tree.tags)
    # Only places within the page are linked.
    assert all(link.startswith("#") for link in tree.links)
    ids = [name for name in tree.ids if name]
    assert len(ids) == len(set(ids))
    assert all(link.removeprefix("#") in ids for link in tree.links)
    text = "".join(tree.text)
    for trick in TRICKS:
        assert trick in text, trick


@needs_browser
@pytest.mark.browser
def test_a_browser_runs_nothing_of_the_data_draws_everything_and_has_no_error(page, tmp_path):
    dom, console = browse(page, tmp_path)
    assert console == []
    tree = Tree()
    tree.feed(dom)
    assert "data-ran" not in tree.root
    pictures = re.findall(r'data-picture="([\w-]+)"', page.read_text(encoding="utf-8"))
    assert {"memory", "validation-over-tokens", "validation-over-seconds", "loss-over-tokens", "confusion-1"} <= {
        *pictures
    }
    assert tree.tags.count("svg") == len(pictures)


def test_a_page_without_examples_holds_no_text_of_the_data(folders, tmp_path):
    path = write_report(folders, output=tmp_path / "bare.html", examples=0)
    text = path.read_text(encoding="utf-8")
    assert "blockquote>" not in text
    assert 'class="example"' not in text


def test_data_that_has_changed_since_is_not_shown(folders, tmp_path):
    rows = folders[0].parent / "rows.jsonl"
    kept = rows.read_text()
    try:
        rows.write_text(kept.replace(" row 7", " row seven"))
        text = write_report(folders, output=tmp_path / "a.html").read_text(encoding="utf-8")
        assert "the data has changed since" in text
        rows.unlink()
        text = write_report(folders, output=tmp_path / "b.html").read_text(encoding="utf-8")
        assert "no such file or folder" in text
    finally:
        rows.write_text(kept)


def test_every_format_and_no_file_is_overwritten(folders, page):
    for form, said in (("md", "| full |"), ("csv", "row,kind,quick,seed"), ("json", '"recommendation"')):
        text = format_report(folders, form)
        assert said in text
        # Neither Markdown nor a spreadsheet runs any of it.
        assert form != "md" or "<i>" not in text
        assert "\n=" not in text
    with pytest.raises(UserError, match="already exists"):
        write_report(folders, output=page)


def test_a_run_can_be_repeated_from_what_the_page_says(page):
    text = page.read_text(encoding="utf-8")
    assert "peftkit train recipe.yaml" in text
    assert "output_dir" not in text.split('<script type="application/json"')[0]
    fingerprint = json.loads((page.parent / "run-0" / "report.json").read_text())["data"]["fingerprint"]
    assert fingerprint in text


def test_generated_texts_stand_side_by_side(small_recipe, tmp_path):
    task = Seq2Seq(max_source_length=32, max_target_length=8)
    recipe = small_recipe("t5", task=task, path="demo-summaries", report_to="none", max_steps=2)
    folders = []
    for place in (1, 2):
        folders.append(tmp_path / f"run-{place}")
        run(
            replace(recipe, training={**recipe.training, "output_dir": str(folders[-1]), "learning_rate": place * 1e-2})
        )
    text = write_report(folders, output=tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count('class="example"') >= 1
    assert "ROUGE-L" in text


def test_a_page_runs_no_query_that_a_run_folder_names(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTKIT_TEST_TOKEN", "secret")
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    for folder in copies:
        report = json.loads((folder / "report.json").read_text())
        report["recipe"]["data"] = {"path": "sqlite:///leak-$PEFTKIT_TEST_TOKEN.db", "sql": "select 1 as text"}
        (folder / "report.json").write_text(json.dumps(report))
    page = write_report(copies, output=tmp_path / "page.html")
    assert TRICKS[4] not in page.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("leak*"))
