"""The command line.  Each command is loaded only when it is called."""
