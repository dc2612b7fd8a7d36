import json
import shutil

import pytest
from transformers import AutoTokenizer

from peftkit.errors import UserError
from peftkit.runs.manifest import (
    MANIFEST,
    PARTS,
    check_base,
    check_labels,
    identify_base,
    identify_tokenizer,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_manifest(tmp_path, **{**dict.fromkeys(PARTS), "labels": ["a", "b"]})
    return tmp_path


def test_what_was_written_is_read(folder):
    contract = read_manifest(folder)
    assert contract["labels"] == ["a", "b"]
    assert contract["files"]["model.safetensors"]["bytes"] == 7
    assert read_manifest(folder.parent) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"weight", r"model\.safetensors: wrong size \(expected 7 bytes, got 6\); download or copy the folder again"),
        (b"weightz", r"model\.safetensors: wrong SHA-256; download"),
        (None, r"model\.safetensors is missing"),
    ],
)
def test_files_that_are_not_whole_are_refused(folder, content, message):
    if content is None:
        (folder / "model.safetensors").unlink()
    else:
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest(folder)


def test_a_contract_that_cannot_be_read_is_one_line(folder):
    contract = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**contract, "format": 99}))
    with pytest.raises(UserError, match=r"unsupported format \(expected at most 1, got 99\); update peftkit"):
        read_manifest(folder)
    named = {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}
    for broken in ("{", "[]", "{}", *(json.dumps({**contract, "files": files}) for files in ([], {"a": 3}, named))):
        (folder / MANIFEST).write_text(broken)
        with pytest.raises(UserError, match=r"contract\.json: cannot be read"):
            read_manifest(folder)


def test_labels_are_named_on_both_sides(folder):
    check_labels(folder, {"labels": ["a", "b"]}, ("a", "b"))
    with pytest.raises(UserError, match=r"label mismatch: config\.json has b, a, the weights were trained with a, b"):
        check_labels(folder, {"labels": ["a", "b"]}, ("b", "a"))


def test_a_base_is_known_by_its_bytes_wherever_it_lies(checkpoints, tmp_path):
    known = identify_base(str(checkpoints / "bert"))
    shutil.copytree(checkpoints / "bert", tmp_path / "copy")
    assert identify_base(str(tmp_path / "copy")) == known
    other = identify_base(str(checkpoints / "roberta"))
    assert other["sha256"] != known["sha256"]
    contract = {"base": {"name_or_path": "bert-base", **known}}
    check_base(tmp_path, contract, str(tmp_path / "copy"), None)
    with pytest.raises(UserError, match=r"base model mismatch \(expected bert-base, \w+; got .*roberta, \w+\)"):
        check_base(tmp_path, contract, str(checkpoints / "roberta"), None)
    assert identify_base("nobody/nothing") == {"revision": None, "sha256": None}


def test_a_tokenizer_is_known_by_its_tokens(checkpoints):
    one, other = (AutoTokenizer.from_pretrained(checkpoints / name) for name in ("bert", "gpt2"))
    assert identify_tokenizer(one) == identify_tokenizer(AutoTokenizer.from_pretrained(checkpoints / "roberta"))
    assert identify_tokenizer(one) != identify_tokenizer(other)
    one.model_max_length = 7
    assert identify_tokenizer(one) == identify_tokenizer(AutoTokenizer.from_pretrained(checkpoints / "roberta"))
