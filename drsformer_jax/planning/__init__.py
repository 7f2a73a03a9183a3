"""What training and restoring need of hardware that is not there.

`programs` compiles the real training step and the real restoring program for a slice of TPUs or
for GPUs on any machine, `hlo_cost` and `bundles` count what was compiled, `plan` makes of it what a
user asks before renting: what fits, how fast at best, how long and how much.
"""
