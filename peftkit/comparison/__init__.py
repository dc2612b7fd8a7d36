"""Compare fine-tuning methods: plan and start the runs, load the results.

`analysis` computes the findings, `report` writes reports. The package `training` trains.
"""
