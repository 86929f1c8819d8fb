"""The command line: one file a command, imports of anything heavy inside the commands."""
