"""What the subcommands of nvh do."""
