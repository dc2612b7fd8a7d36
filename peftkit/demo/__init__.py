"""The embedded default: a pretrained model and real text that need no network."""
