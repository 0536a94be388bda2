"""Commands of `pnet`, one module per stage; a module is imported when its command is run."""
