"""Fingerprinting methods, one a file. A method sees what `fingerbench.records.Setting` holds, never a suspect."""
