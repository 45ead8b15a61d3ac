"""What a verifier that runs a model's code may meet, as functions that `Sandbox` can import."""

import os
import socket
import sys
import time

KEPT = []


def run(prompt, text):
    """Runs the text as code, as nothing should outside a sandbox; what it calls `answer` is the answer."""
    names = {"prompt": prompt, "os": os, "sys": sys, "time": time, "socket": socket, "kept": KEPT}
    exec(text, names)  # noqa: S102
    return names.get("answer", False)


def length(prompt, text):
    return len(text)


def nothing(prompt, text):
    return None


def hangs_for_eight(prompt, text):
    while prompt.startswith("8"):
        time.sleep(1)
    return True
