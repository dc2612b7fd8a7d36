"""Process groups, ranks and DeepSpeed configuration.

The memory estimates of ZeRO are in `planning`.
"""
