"""Export formats: the merged model, the adapter, ONNX, and registered formats.

`base` defines the record of a format, `registry` the list of formats. The parent package has the code that all formats
share: merging, comparison on validation, receipt, model card.
"""
