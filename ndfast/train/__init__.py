"""The training harness behind `ndfast train`, `compare`, `detect` and `teacher-outputs`, in rooms.

Each imports only from those above it:

- `errors`, `interrupts`, `files`: what every room may use
- `data/`: images, labels, views, batches, mixing
- `models/`: networks by name, and checkpoints that fit them
- `config/`: what a run is made of: its fields, their flags, the methods
- `recipes/`: files of such fields, for the lines of the paper's tables
- `machine/`: device and processes by Accelerate, memory on the CPU, bars in the terminal
- `distill/`: the frozen teacher, what is kept of it, the student beside it, what both reach
- `engine/`: one training: steps, epochs, and what watches them
- `report/`: what was found, as tables, pictures, a page
- `runs/`: one student from its config to the files in its folder
- `compare/`: students by several methods from the same seeds
- `detection/`: the ND loss on the box-head features of a detector
- `commands`: the command line
"""
