"""An encoded split from its parts, those a test does not need left out."""

from peftkit.tasks import EncodedSplit


def encoded_split(outputs, labels=(), *, encoded=None, rows=None, tokenizer=None):
    return EncodedSplit(outputs=outputs, encoded=encoded, rows=rows, tokenizer=tokenizer, labels=labels)
