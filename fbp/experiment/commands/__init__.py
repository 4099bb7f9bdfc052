"""One module per verb: what the command line and scripts call."""
