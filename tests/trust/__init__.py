"""Checks that attack the package itself, too slow for every push: sanitizers and mutants. Each is a command
that works in a copy of the source under build/, fails when it finds something, and leaves its counts in
docs/trust."""
