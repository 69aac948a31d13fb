"""Renders chat templates in a process of its own, started as a script by `templates.py`; it imports jinja2 alone.

A template is a program from whoever made the model. Here it may loop, write without end or call itself: the system
ends this process, or takes memory from it no further than said, and nothing else is touched. One JSON object a line in,
one a line out.
"""

import contextlib
import datetime
import json
import math
import resource
import signal
import sys

# What templates that ask for the day are told: the same conversation has the same tokens every day. It is the date that
# Llama 3.1's template falls back to.
DAY = datetime.datetime(2024, 7, 26)


def environment():
    """The sandbox that transformers renders chat templates in, but for what changes from call to call."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant writes; it changes no text."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    for name in ("random", "pprint"):
        env.filters.pop(name, None)
    env.globals.pop("lipsum", None)
    env.globals.update(raise_exception=raise_exception, strftime_now=DAY.strftime)
    return env


def answer(env, request):
    """Returns the answer to a request: the text of a template, or the names that it reads."""
    import jinja2.meta

    if "names" in request:
        return {"names": sorted(jinja2.meta.find_undeclared_variables(env.parse(request["template"])))}
    key = request["template"]
    if compiled.get("source") != key:
        compiled.update(source=key, template=env.from_string(key))
    pieces, length = [], 0
    for piece in compiled["template"].generate(**request["values"]):
        length += len(piece)
        if length > request["most"]:
            return {"error": f"it writes more than {request['most']} characters"}
        pieces.append(piece)
    return {"text": "".join(pieces)}


compiled = {}  # the template of the last request: one after the other usually has the same


def main():
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    sys.path += sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the program that asks, whose end is the end of input
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    env = environment()
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime) + seconds
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            found = answer(env, json.loads(line))
        except RecursionError:
            found = {"error": "it calls itself, or is nested, too deeply"}
        except MemoryError:
            found = {"error": f"it needs more than {memory // 2**20} MiB of memory"}
        except Exception as error:
            found = {"error": f"{error}"[:500] or type(error).__name__}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
