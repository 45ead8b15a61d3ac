"""Why a change to the Python code that no test notices is no bug, by file, function and change."""

REASONS: dict[tuple[str, str, str], str] = {}
