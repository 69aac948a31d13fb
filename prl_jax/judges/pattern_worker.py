"""Looks for a regular expression in texts, in a process of its own, started as a script by `patterns.py`.

An expression can try more ways to match a text than there are atoms. Here the system ends this process, and nothing
else is touched. The request is one JSON object; the answer is a line for each text: null where nothing matches, else a
list of what the group `answer` matched, or of null without such a group.
"""

import contextlib
import json
import re
import resource
import signal
import sys


def main():
    request = json.load(sys.stdin)
    pattern = re.compile(request["pattern"])
    group = "answer" if "answer" in pattern.groupindex else None
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    for text in request["texts"]:
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        found = pattern.search(text)
        print(json.dumps(found and [found[group] if group else None]), flush=True)


if __name__ == "__main__":
    main()
