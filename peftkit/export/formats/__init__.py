"""Export formats: the merged model, the adapter alone, ONNX, and those that a user registers.

`base` holds the record of a format, `registry` the list of formats. What every format shares
(merging, comparison on validation, receipt, model card) is one level up.
"""
