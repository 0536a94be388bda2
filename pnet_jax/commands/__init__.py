"""Commands of `pnet`: a module for each stage. Nothing is imported before a command is run."""
