"""The command line, one file a verb: the only place that prints to a terminal or sets an exit status."""
