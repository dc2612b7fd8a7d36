"""Recipe: dataclasses, fine-tuning method, parsing and serialization.

Values only: no data is read and no model is loaded here.
"""
