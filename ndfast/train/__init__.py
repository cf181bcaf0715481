"""The training harness behind `ndfast train`: a teacher, its class means, and students of it.

- `config`: what a run is made of, and the defaults of each data set
- `data`, `models`, `losses`: the parts; a new data set, network or method is added there
- `loop`: one training and one evaluation, on Hugging Face Accelerate
- `experiment`: teacher, class means and students from these parts
- `comparison`: the fused loss against the reference, in trajectory and in time
- `report`, `plot`: the table, `results.json` and the picture
- `run`: the command, from the configuration to the files
"""
