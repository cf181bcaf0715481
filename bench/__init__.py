"""The benchmark: `pytest bench/` times the ND loss beside its peers, on the CPU and on a GPU.

`pytest bench/` runs a quick grid, `pytest bench/ --full` the whole one; `--benchmark-json FILE`
keeps every figure and `-k "cpu and 4096x2048"` chooses rows. A test is a row of the table:

- cases.py: the grid, and the inputs of a case.
- steps.py: what is timed: `ndfast.nd_loss` and its peers, each forward and backward.
- timing.py: how: rounds in which all take turns; CUDA graphs on a GPU.
- report.py: what the times become: a record of the JSON, a row of the table.
- test_nd_loss.py: checks every step against the definition in float64, then times it.
"""
