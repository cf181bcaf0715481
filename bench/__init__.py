"""The benchmark: `pytest bench/` times the ND loss beside its peers, on the CPU and on a GPU.

`pytest bench/` runs a quick grid, `pytest bench/ --full` the whole one, `pytest bench/ --telling`
the GPU cases that tell the most; `--benchmark-json FILE` keeps every figure and
`-k "cpu and 4096x2048"` chooses rows. `--shape 4096x768 --dtype bfloat16` times a shape of your own
in place of the grid, and says in words whether its time is normal. On a GPU
`--results bench/results` keeps the records, `--add --missing` times what these lack, and
`python -m bench.publish` makes docs/performance.md's table and the picture of them. A test is a row
of the table:

- cases.py: the grid, and the inputs of a case.
- shapes.py: the shapes of --shape; memory.py: what the machine's memory can do, timed beside them;
  verdict.py: the words.
- steps.py: what is timed: ndfast's loss, its peers and rooflines.
- timing.py: how: rounds in which all take turns; on a GPU in CUDA graphs, and in eager mode.
- report.py: what the times become: a record of the JSON, a row of the table; cells.py: its cells.
- builds.py: builds of the library against each other, by `python -m bench.builds`.
- results.py: the file of a GPU's records; publish.py and picture.py: what is made of it.
- test_nd_loss.py: checks every step against the definition in float64, then times it.
"""
