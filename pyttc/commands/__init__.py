"""The commands of `pyttc`, one a file: each has add(commands) for its arguments and run(args)."""
