"""Compare fine-tuning methods: plan the runs, start them, load their results.

`analysis` computes the findings, `report` writes them. Training itself is in `training`.
"""
