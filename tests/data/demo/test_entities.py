from peftkit.data.demo.entities import load_entities, tag_words


def test_marked_words_are_entities_of_the_kind_of_their_name():
    kinds = {"axis": "parameter", "Frame": "class"}
    tokens, tags = tag_words("Sum `axis` of :class:`~pandas.Frame` or raise ``ValueError``, see `x + 1`.", kinds)
    assert tokens == ["Sum", "axis", "of", "pandas.Frame", "or", "raise", "ValueError", ",", "see", "x", "+", "1", "."]
    assert [(token, tag) for token, tag in zip(tokens, tags, strict=True) if tag != "O"] == [
        ("axis", "B-parameter"), ("pandas.Frame", "B-class"), ("ValueError", "B-exception"),
        ("x", "B-expression"), ("+", "I-expression"), ("1", "I-expression"),
    ]  # fmt: skip


def test_a_marked_passage_of_many_words_is_no_entity():
    tokens, tags = tag_words("Return `one two three four five six seven` words", {})
    assert len(tokens) == 9
    assert set(tags) == {"O"}


def test_no_text_is_in_two_splits_and_every_word_has_a_tag():
    data = load_entities()
    texts = [{" ".join(tokens) for tokens in split["tokens"]} for split in data.values()]
    assert [len(found) for found in texts] == [len(split) for split in data.values()]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    for split in data.values():
        assert all(len(row["tokens"]) == len(row["ner_tags"]) for row in split)
