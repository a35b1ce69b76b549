"""The command line `san COMMAND`; each command is a module of this package with `add_arguments` and `run`."""
