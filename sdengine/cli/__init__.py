"""The `sdengine` command, one file per subcommand."""
