import pytest

from tests.docs.page import PageError, PageRunner, add_options, find_missing_line, read_page, split_console

PAGE = """# A page

<!-- test: options "python add.py" 2 -->
<!-- test: python
first = 20
-->

```python
print(first + 1)
```

<!-- test: output -->
```text
...1
```

Save it:

<!-- test: file add.py -->
```python
import sys
print("sum", sum(map(int, sys.argv[1:])))
sys.exit(len(sys.argv) > 3)
```

```console
$ python add.py 1  # one argument
sum 3
```

<!-- test: exit 1 -->
```console
$ python add.py 1 \\
    3
sum ...
```

<!-- test: skip needs a GPU -->
```bash
nvidia-smi
```

```bash
for name in a b; do echo $name >> names; done
test "$(cat names)" = $'a\\nb'
```
"""


@pytest.fixture
def run(tmp_path):
    def run(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        folder = tmp_path / "folder"
        folder.mkdir()
        return PageRunner(folder, tmp_path).run(page)

    return run


def test_page(run):
    assert run(PAGE) == 6


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("print(first + 1)", "print(second)", r"page.md:8: .*NameError"),
        ("...1\n", "22\n", r"page.md:13: the output lacks the line '22'"),
        ("sum 3", "sum 4", r"page.md:26: the output lacks the line 'sum 4'"),
        ("exit 1", "exit 0", r"page.md:32: exit code 1"),
        ("skip needs a GPU", "skip", r"page.md:39: test: skip needs a reason"),
        ("skip needs a GPU", "ignore", r"page.md:38: unknown comment 'test: ignore'"),
        ("```bash\nfor", "```\nfor", r"page.md:43: the block has no language"),
        ("add.py -->\n", "add.py -->\n\nText.\n\n", r"'test: file' is not followed by a block"),
    ],
)  # fmt: skip
def test_page_that_fails(run, old, new, error):
    assert old in PAGE
    with pytest.raises(PageError, match=f"(?s){error}"):
        run(PAGE.replace(old, new))


def test_read_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("- item\n\n  <!-- test: file a.yaml -->\n  ```yaml\n  a: 1\n  ```\n")
    (block,) = read_page(page)
    assert (block.language, block.text, block.comments) == ("yaml", "a: 1\n", {"file": "a.yaml"})


def test_split_console():
    assert split_console("$ a \\\n  b\nout\n$ c\n") == [("a \\\n  b", ["out"]), ("c", [])]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("peftkit train r.yaml", "peftkit train r.yaml --x 1"),
        ("peftkit train r.yaml  # text", "peftkit train r.yaml --x 1  # text"),
        ("peftkit train r.yaml | tail", "peftkit train r.yaml --x 1 | tail"),
        ("peftkit train \\\n  r.yaml", "peftkit train \\\n  r.yaml --x 1"),
        ("peftkit training", "peftkit training"),
    ],
)
def test_add_options(line, expected):
    assert add_options(line, {"peftkit train": "--x 1"}) == expected


def test_find_missing_line():
    assert find_missing_line(["a ... c", "...", "d"], "x\na b  c\ny\nd") is None
    assert find_missing_line(["d", "a"], "a\nd") == "a"
    assert find_missing_line(["a [x]"], "a x") == "a [x]"
