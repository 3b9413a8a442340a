"""One file for each figure or table of a paper; it reads stored scores and draws."""
