"""The processes of a run: one on each GPU, started by torchrun, accelerate or Slurm.

They draw and score groups of their own, tell each other ids and rewards, share the rows that were kept and add up their
gradients. What one of them decides or meets, all of them do; one writes.
"""
