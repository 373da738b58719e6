"""`ngf bench`: attacks x defenses x seeds on one machine, each cell a small JSON file.

victims.py    data, reference and victims of a seed, through the stages
cell.py       one purification, measured, in a process of its own
run.py        which cells there are, and all of them at work
table.py      means, ranks, the picture
"""
