"""The zoo: which models there are, how each is made, one file an attack."""
