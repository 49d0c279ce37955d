"""Any diffusers pipeline as a model of states and times: its own loop is driven, nothing of it is written again."""
